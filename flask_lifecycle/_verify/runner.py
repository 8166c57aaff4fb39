"""Tries the scenarios of the catalogue, each on a process of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .client import Connection, LostError, Tcp, is_refused, shown
from .scenarios import CATALOGUE
from .subject import MisuseError, Subject
from .trial import ACCEPTED, ALL, STARTED, BrokenError, NotCheckedError, Scenario, Trial

HOLDS, BROKEN, NOT_CHECKED = "holds", "broken", "not checked"
_OWN = ("fast", "slow", "cpu", "stream", "upload", "large", "file", "thread", "websocket")
CLAIMS = {"all connections": ALL, "accepted requests": ACCEPTED}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one scenario. ``log`` is the end of what the process printed."""

    scenario: str
    family: str
    level: str
    promise: str
    result: str
    seen: str
    seconds: float
    log: str = dataclasses.field(default="", repr=False)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run."""

    command: Sequence[str]
    address: Tcp | None
    paths: Mapping[str, str]  # of a server's own work, by kind; they take the place of the routes of ``verify``
    number: int  # of the signal
    grace: float | None  # seconds from the signal to the exit; ``None``: that of the application, or 30
    patience: float  # seconds that each wait may take
    reload_on: int | None = None  # the signal on which the command replaces its processes
    keep_logs: Path | None = None


class Runner:
    """Runs scenarios; :meth:`cancel` kills all their processes, from any thread."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.claim = STARTED
        self._subjects: set[Subject] = set()
        self._lock = threading.Lock()  # guards the set and the flag
        self._cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            subjects = list(self._subjects)
        for subject in subjects:
            subject.kill()  # the thread that has started it ends it

    @contextlib.contextmanager
    def _started(self, hook: str = "") -> Iterator[Subject]:
        """A process.

        Interleavings: if :meth:`cancel` looked at the set between the test of the flag and the addition, the process
        would outlive it. Both hold the lock, so it either finds the process or prevents it.
        """
        with tempfile.TemporaryDirectory(prefix="lifecycle-verify-") as home:
            with self._lock:
                if self._cancelled:
                    raise NotCheckedError("cancelled")
                subject = Subject(self.plan.command, self.plan.address, Path(home), self.plan.patience, hook)
                self._subjects.add(subject)
            try:
                yield subject
            finally:
                subject.end()
                with self._lock:
                    self._subjects.discard(subject)

    def try_command(self) -> None:
        """Start the command once, and remember what its server claims; :exc:`MisuseError` if it cannot be checked."""
        if not Path("/proc/self/environ").exists():
            raise MisuseError("This system has no /proc, by which the processes of the command are found; use Linux.")
        if self.plan.address is not None and not is_refused(self.plan.address, self.plan.patience):
            raise MisuseError(f"Something listens on {shown(self.plan.address)} already; stop it first.")
        with self._started() as subject:
            subject.wait_serving()
            if subject.settings:
                with Connection(subject.address, subject.patience) as client:
                    claim = client.get(f"/{subject.prefix}/guarantee").body.decode()
                self.claim = CLAIMS.get(claim, STARTED)
            elif not self.plan.paths:
                raise MisuseError(
                    "The application has no Lifecycle, so give the paths of its own work:"
                    " --fast /ping --slow '/report?s={seconds}' ..."
                )

    def run(self, scenarios: Iterable[Scenario], jobs: int = 1) -> Iterator[Outcome]:
        """The outcomes, in the order in which they are known; none after :meth:`cancel`."""
        with ThreadPoolExecutor(jobs) as pool:
            waiting = [pool.submit(self._try, scenario) for scenario in scenarios]
            try:
                for future in as_completed(waiting):
                    if self._cancelled:
                        return
                    yield future.result()
            finally:
                for future in waiting:
                    future.cancel()

    def _try(self, scenario: Scenario) -> Outcome:
        began = time.monotonic()
        log = ""
        try:
            with self._started(scenario.hook) as subject:
                try:
                    seen = self._run_on(subject, scenario)
                finally:
                    log = subject.log
            result = HOLDS
        except NotCheckedError as error:
            result, seen = NOT_CHECKED, str(error)
        except (BrokenError, LostError, MisuseError) as error:
            result, seen = BROKEN, str(error)
        except TimeoutError:
            result, seen = BROKEN, f"no response within {self.plan.patience:g} s"
        except (OSError, ValueError) as error:
            result, seen = BROKEN, f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        if self.plan.keep_logs is not None:
            (self.plan.keep_logs / f"{scenario.name.replace('/', '-')}.log").write_text(log)
        return Outcome(
            scenario.name, scenario.family, scenario.level, scenario.promise, result, seen, round(seconds, 2), log
        )

    def _run_on(self, subject: Subject, scenario: Scenario) -> str:
        if scenario.needs:
            subject.wait_serving()
        else:
            subject.wait_for(lambda: subject.starting, subject.patience)
        settings = subject.settings
        if scenario.own and not settings:
            raise NotCheckedError("needs an application with a Lifecycle")
        paths = {}
        if settings:
            paths = {kind: f"/{subject.prefix}/{kind}?seconds={{seconds}}" for kind in _OWN}
            paths |= {kind: settings[kind] for kind in ("ready", "live")}
        if not scenario.own:
            paths |= self.plan.paths
        missing = [kind for kind in scenario.needs if kind not in paths]
        if missing:
            raise NotCheckedError(f"no path is given for {', '.join(missing)}")
        grace = self.plan.grace or float(settings.get("grace", 30.0))
        trial = Trial(subject, paths, number=self.plan.number, grace=grace, reload_on=self.plan.reload_on)
        with contextlib.closing(trial):
            return scenario.run(trial)


def choose(only: Sequence[str], skip: Sequence[str]) -> list[Scenario]:
    """The scenarios of these names or families, or all; :exc:`MisuseError` for a name that there is not."""
    families = {each.family for each in CATALOGUE.values()}
    for name in (*only, *skip):
        if name not in CATALOGUE and name not in families:
            near = difflib.get_close_matches(name, [*CATALOGUE, *families], 1, 0.4)
            hint = f"; did you mean '{near[0]}'?" if near else "; --list shows all."
            raise MisuseError(f"There is no scenario '{name}'{hint}")
    return [
        each for each in CATALOGUE.values()
        if (not only or {each.name, each.family} & set(only)) and not {each.name, each.family} & set(skip)
    ]  # fmt: skip
