"""What a scenario is, and what it works with: the process under test, the paths of its work, and the clients."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Mapping

from .client import Connection, Response, Storm, connect_unless_gone, request_head
from .routes import LARGE, PARTS
from .subject import Subject

STARTED, ACCEPTED, ALL = "started", "accepted", "all"
LEVELS = (STARTED, ACCEPTED, ALL)  # each includes those before it
BEYOND = "beyond"  # some servers keep it; it is reported, and none of the levels includes it

# Seconds. On a machine that needs longer a scenario tries something easier, and none fails for it.
_SETTLE = 0.5
# Seconds beyond the grace period that a loaded machine may take.
SLACK = 5.0
_BODIES = {
    "fast": b"fast", "slow": b"slow", "large": LARGE, "file": LARGE, "thread": b"thread",
    "stream": b"".join(b"part %d\n" % number for number in range(PARTS)),
}  # fmt: skip


class BrokenError(Exception):
    """The promise does not hold; the text says what was seen."""


class NotCheckedError(Exception):
    """The scenario says nothing about this command; the text says why."""


def check_storms(*storms: Storm) -> int:
    """Return how many requests were answered; :exc:`BrokenError` if one was lost."""
    lost, answered = [loss for storm in storms for loss in storm.lost], sum(storm.answered for storm in storms)
    if lost:
        raise BrokenError(f"{len(lost)} lost of {answered + len(lost)}, for example: {lost[0]}")
    return answered


class Trial:
    """What a scenario works with.

    :param paths: templates with ``{seconds}``, by the kind of work.
    :param number: the signal that stops the process.
    :param grace: seconds that the process may take from the signal to its exit.
    :param reload_on: the signal on which the command replaces its processes, if there is one.
    """

    def __init__(
        self,
        subject: Subject,
        paths: Mapping[str, str],
        *,
        number: int,
        grace: float,
        reload_on: int | None = None,
    ) -> None:
        self.subject, self.number, self.grace, self.reload_on = subject, number, grace, reload_on
        self._paths = paths
        self._resources = contextlib.ExitStack()

    def close(self) -> None:
        self._resources.close()

    def path(self, kind: str, seconds: float = 1.0) -> str:
        return self._paths[kind].replace("{seconds}", f"{seconds:g}")

    def records(self, kind: str) -> bool:
        """Whether this work is a route of ``verify``, which records it, and not a path that was given."""
        return self._paths[kind].startswith(f"/{self.subject.prefix}/")

    @property
    def probe_port(self) -> int | None:
        """The port of the probe listener, if it is fixed."""
        return self.subject.settings.get("probe_port")

    def connect(self, *, slow: bool = False) -> Connection:
        return self._resources.enter_context(Connection(self.subject.address, self.subject.patience, slow=slow))

    def connect_unless_gone(self, within: float | None = None) -> Connection | None:
        """A new connection, or ``None`` if it is refused, or not made within these seconds."""
        subject = self.subject
        connection = connect_unless_gone(subject.address, subject.gone, within or subject.patience)
        return None if connection is None else self._resources.enter_context(connection)

    def storm(self, *, clients: int, keep: bool) -> Storm:
        """Clients that ask without a pause; each has had some responses."""
        subject, body = self.subject, _BODIES["fast"] if self.records("fast") else None
        return Storm(
            subject.address, self.path("fast"), subject.gone, subject.patience, clients=clients, keep=keep, body=body
        )

    def begin(self, kind: str, seconds: float = 1.0, *, version: str = "1.1") -> Connection:
        """Send a request and wait until it runs."""
        before = len(self.subject.recorded("begin"))
        connection = self.connect()
        connection.send(request_head(self.path(kind, seconds), version=version))
        if not self.records(kind):
            time.sleep(_SETTLE)
        elif not self.subject.wait_for(lambda: len(self.subject.recorded("begin")) > before, self.subject.patience):
            raise BrokenError("a request did not begin to run before the shutdown")
        return connection

    def stop(self) -> None:
        self.subject.signal(self.number)

    def settle(self) -> None:
        """Give the process the time to act on what it cannot record: bytes received, a signal."""
        time.sleep(_SETTLE)

    def expect(self, connection: Connection, kind: str) -> None:
        """Read the response and compare it with what the work of this kind answers."""
        self.check(connection.response(), kind)

    def check(self, response: Response, kind: str) -> None:
        """Compare a response with what the work of this kind answers."""
        if response.status != 200:
            raise BrokenError(f"status {response.status} instead of 200")
        if self.records(kind) and response.body != _BODIES.get(kind, response.body):
            raise BrokenError(f"a body of {len(response.body)} bytes which is not that of the application")

    def stop_and_wait(self) -> int:
        """Stop the process, wait for the exit and return the code."""
        self.stop()
        return self.exit()

    def exit(self, within: float | None = None) -> int:
        """Wait for the exit ``within`` seconds of the signal, or the grace period and slack; return the code."""
        limit = self.grace + SLACK if within is None else within
        passed = time.monotonic() - self.subject.signalled_at
        code = self.subject.wait_gone(max(0.0, limit - passed))
        if code is None:
            raise BrokenError(f"still running {limit:.0f} s after {signal.Signals(self.number).name}")
        return code


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One scenario.

    :param needs: the kinds of work whose paths it uses; without any it runs while the command starts.
    :param promise: one sentence about what holds. ``docs/verify.md`` has why that matters.
    :param run: returns what it saw if the promise holds. It raises :exc:`BrokenError` if not, or what the
        client raises for a lost response; and :exc:`NotCheckedError` if it says nothing about this command.
    :param own: it needs the routes of ``verify``, or what they record.
    :param hook: what an ``on_shutdown`` function does that is added for it: ``raises`` or ``hangs``.
    """

    name: str
    level: str
    needs: tuple[str, ...]
    promise: str
    run: Callable[[Trial], str]
    own: bool
    hook: str

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


def scenario(
    name: str, level: str, *needs: str, own: bool = False, hook: str = ""
) -> Callable[[Callable[[Trial], str]], Scenario]:
    """Make a scenario of a function, whose docstring is the promise."""
    return lambda run: Scenario(name, level, needs, run.__doc__ or "", run, own or bool(hook), hook)
