"""What can be told of applications in figures: one table, which Prometheus and OpenTelemetry are both fed from.

A figure is read when somebody asks for it, and reading costs nothing before. It looks at what stands: no check is run,
nobody is waited for, and a lock is held by nobody longer than for a few assignments. So a scrape shows what the last
probes and the background checks have found, and it can neither load what they check nor be hung by it.

Labels have few values: states, statuses, phases, and what the application itself has registered. The names of tokens
are the one thing that a program may make up as it goes, so only the first :data:`MOST_NAMES` of a process are told
apart; what comes later is counted as ``other``.

Where a collector covers more than one application, the figures that each of them has carry its name as the label
``app``. A process has one shutdown, whoever is in it: the figures of that are told once and without the label.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from ._hooks import Hooks
from ._inflight import Ledger, Load
from ._record import NamedTuple
from ._shutdown import Coordinator
from ._startup import StartupTasks
from ._state import State, StateMachine
from ._tally import Tally
from ._work import WorkLedger
from .checks._check import STATUSES, is_number
from .checks._health import READY, Health

PREFIX = "flask_lifecycle"

# So many names of tokens are told apart, in the life of a process: each is a time series for as long as it is stored.
MOST_NAMES = 50
# What a label shows of the name of a token.
_LONGEST = 100

Sample: TypeAlias = "tuple[tuple[str, ...], float]"


class Process(Protocol):
    """What is asked about the process."""

    coordinator: Coordinator

    def known_load(self) -> Load | None:
        """What the server has to do, as far as that is known without a search."""


class Counts(Protocol):
    """What has counted the probes."""

    def counts(self) -> dict[tuple[str, int], int]:
        """How many were answered, by the group and the status."""


class App(Protocol):
    """What is asked about an application."""

    name: str
    machine: StateMachine
    ledger: Ledger
    health: Health
    hooks: Hooks
    work: WorkLedger
    tasks: StartupTasks
    refused: int
    last_receipt: dict[str, Any] | None

    @property
    def served(self) -> int:
        """How many requests have been answered since the drain began, but for those that were refused."""

    @property
    def process(self) -> Process:
        """The process that it is in."""

    @property
    def probes(self) -> Counts:
        """Its probes."""


class Figure(NamedTuple):
    """One row of the table.

    :param name: without prefix and suffixes.
    :param kind: ``gauge``, or ``counter`` for what only grows.
    :param unit: ``s`` for seconds, else what is counted, as UCUM and OpenTelemetry write it.
    :param workers: what several worker processes make together: the ``sum``, the ``max`` or the ``min``.
    :param read: reads it from one application; from all of them, if the ``scope`` is ``process``.
    """

    name: str
    help: str
    read: Callable[[Any], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    kind: str = "gauge"
    unit: str = ""
    workers: str = "sum"
    scope: str = "application"

    @property
    def full_name(self) -> str:
        """As Prometheus shows it."""
        unit = "_seconds" if self.unit == "s" else ""
        return f"{PREFIX}_{self.name}{unit}{'_total' if self.kind == 'counter' else ''}"


def text(name: str) -> str:
    """A name as a label can hold it: half of a surrogate pair would spoil the whole answer."""
    return name.encode("utf-8", "backslashreplace").decode()


def _one(value: float | None) -> list[Sample]:
    """The one sample of a figure without labels; none where there is nothing to tell."""
    return [] if value is None else [((), float(value))]


# -- of one application -------------------------------------------------------------------------------------------


def _state(app: App) -> list[Sample]:
    now = app.machine.state
    return [((state.value,), float(state is now)) for state in State]


def _ready(app: App) -> list[Sample]:
    return _one(app.health.standing(READY) != "fail")


# What was told last: the figure is a difference of two, which are counted one after the other, and a counter that falls
# back by one is taken for a process that has begun anew.
_told: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _served(app: App) -> list[Sample]:
    _told[app] = max(_told.get(app, 0), app.served)
    return _one(_told[app])


def _check_status(app: App) -> list[Sample]:
    return [
        ((text(report.name), status), float(report.status == status))
        for report in app.health.engine.known()
        for status in STATUSES
    ]


def _check_duration(app: App) -> list[Sample]:
    return [((text(report.name),), report.duration) for report in app.health.engine.known()]


def _check_changed(app: App) -> list[Sample]:
    histories = app.health.engine.histories()
    return [((text(name),), history.changed) for name, history in histories.items() if history.changed]


def _probes(app: App) -> list[Sample]:
    return [((text(group), str(code)), float(count)) for (group, code), count in app.probes.counts().items()]


# -- of a process -------------------------------------------------------------------------------------------------


def _load(read: Callable[[Load], float | None]) -> Callable[[Sequence[App]], list[Sample]]:
    def sample(apps: Sequence[App]) -> list[Sample]:
        load = apps[0].process.known_load()
        return [] if load is None else _one(read(load))

    return sample


def _age(tallies: Iterable[Tally]) -> list[Sample]:
    """How old the oldest of what is under way is; 0 without."""
    ages = (tally.clock() - entry.started for tally in tallies for entry in tally.active.copy())
    return _one(max(ages, default=0.0))


def _each(apps: Sequence[App], part: Callable[[App], Any]) -> list[Any]:
    """A part of all applications, each once: several may share a ``Lifecycle``."""
    return list({id(found): found for app in apps if (found := part(app)) is not None}.values())


def _ledgers(apps: Sequence[App]) -> list[WorkLedger]:
    return _each(apps, lambda app: app.work)


_names: weakref.WeakKeyDictionary[WorkLedger, set[str]] = weakref.WeakKeyDictionary()


def _work(apps: Sequence[App]) -> list[Sample]:
    """The tokens by name. A name that has been seen is told with 0 when there is none of it any more."""
    counted: Counter[str] = Counter()
    for ledger in _ledgers(apps):
        known = _names.setdefault(ledger, set())
        counted.update(dict.fromkeys(known, 0))
        counted.update(_known_name(known, token.name) for token in ledger.active.copy())
    return [((name,), float(count)) for name, count in counted.items()]


def _known_name(known: set[str], name: str) -> str:
    """A token's name as a label, or ``other`` where there are enough of them."""
    label = text(str(name)[:_LONGEST])
    if label not in known:
        if len(known) >= MOST_NAMES:
            return "other"
        known.add(label)
    return label


def _startup_tasks(apps: Sequence[App]) -> list[Sample]:
    return _one(sum(len(tasks) for tasks in _each(apps, lambda app: app.tasks)))


def _hooks(apps: Sequence[App]) -> list[Sample]:
    records = [record for hooks in _each(apps, lambda app: app.hooks) for record in hooks.records.copy()]
    ended = Counter((record.kind, record.outcome) for record in records)
    return [(labels, float(count)) for labels, count in ended.items()]


def _phases(apps: Sequence[App]) -> list[Sample]:
    """Those that are over, and the one that goes on with what it has taken so far."""
    stop = apps[0].process.coordinator
    over = {record.name: record.duration for record in list(stop.phases)}
    current = stop.phase
    if current and current not in over and stop.report is None:
        over[current] = stop.clock.monotonic() - stop.phase_began
    return [((name,), duration) for name, duration in over.items()]


def _remaining(apps: Sequence[App]) -> list[Sample]:
    return _one(apps[0].process.coordinator.remaining())


def _previous(key: str) -> Callable[[App], list[Sample]]:
    """A number of the receipt that the process before this one has left; a list is told by its length."""

    def sample(app: App) -> list[Sample]:
        receipt = app.last_receipt or {}
        found = receipt.get(key)
        if isinstance(found, list):
            more = receipt.get(f"more_{key}", 0)
            found = len(found) + (more if is_number(more) else 0)
        return _one(found) if is_number(found) else []

    return sample


FIGURES = (
    Figure(
        "state",
        "Which state the application is in: 1 for that one, 0 for the others.",
        _state,
        ("state",),
    ),
    Figure(
        "ready",
        "Whether readiness would say yes by what is known now, without running a check.",
        _ready,
        workers="min",
    ),
    Figure(
        "requests_in_flight",
        "Requests that are not answered yet.",
        lambda app: _one(len(app.ledger)),
        unit="{request}",
    ),
    Figure(
        "oldest_request",
        "Age of the oldest request in flight, 0 without any.",
        lambda app: _age([app.ledger]),
        unit="s",
        workers="max",
    ),
    Figure(
        "requests_refused",
        "Requests that were answered 503 because of the shutdown.",
        lambda app: _one(app.refused),
        kind="counter",
        unit="{request}",
    ),
    Figure(
        "requests_served_in_drain",
        "Requests that were finished after the shutdown had begun.",
        _served,
        kind="counter",
        unit="{request}",
    ),
    Figure(
        "check_status",
        "What counts of a check now: 1 for that status, 0 for the others; nothing before its first run.",
        _check_status,
        ("check", "status"),
    ),
    Figure(
        "check_duration",
        "How long the last run of a check took; of one that hangs, how long it has taken so far.",
        _check_duration,
        ("check",),
        unit="s",
        workers="max",
    ),
    Figure(
        "check_last_change_timestamp",
        "When the status of a check changed last, since the epoch.",
        _check_changed,
        ("check",),
        unit="s",
        workers="max",
    ),
    Figure(
        "probes",
        "Probes that were answered, by the group of checks that they asked for and the status of the answer.",
        _probes,
        ("probe", "code"),
        kind="counter",
        unit="{probe}",
    ),
    Figure(
        "server_requests_queued",
        "Requests that wait for a thread of the server.",
        _load(lambda load: load.queued),
        unit="{request}",
        scope="process",
    ),
    Figure(
        "server_threads",
        "Threads that the server has for work.",
        _load(lambda load: load.threads),
        unit="{thread}",
        scope="process",
    ),
    Figure(
        "server_threads_busy",
        "Threads of the server that run a request.",
        _load(lambda load: load.busy),
        unit="{thread}",
        scope="process",
    ),
    Figure(
        "work_tokens",
        "Pieces of work under way that are no requests.",
        _work,
        ("name",),
        unit="{token}",
        scope="process",
    ),
    Figure(
        "oldest_work",
        "Age of the oldest piece of such work, 0 without any.",
        lambda apps: _age(_ledgers(apps)),
        unit="s",
        workers="max",
        scope="process",
    ),
    Figure(
        "startup_tasks_pending",
        "Tasks of the start-up that have not ended.",
        _startup_tasks,
        unit="{task}",
        scope="process",
    ),
    Figure(
        "hooks",
        "Functions of the start-up and the shutdown that were called, by what became of them.",
        _hooks,
        ("kind", "outcome"),
        kind="counter",
        unit="{hook}",
        scope="process",
    ),
    Figure(
        "shutdown_phase",
        "How long a phase of the shutdown took, or has taken so far; nothing before there is one.",
        _phases,
        ("phase",),
        unit="s",
        workers="max",
        scope="process",
    ),
    Figure(
        "shutdown_remaining",
        "What is left of the grace period; nothing before a shutdown has begun.",
        _remaining,
        unit="s",
        workers="min",
        scope="process",
    ),
    Figure(
        "requests_abandoned",
        "Requests that the shutdown has left behind unanswered.",
        lambda apps: _one(len(apps[0].process.coordinator.abandoned[0])),
        kind="counter",
        unit="{request}",
        scope="process",
    ),
    Figure(
        "work_abandoned",
        "Pieces of other work that the shutdown has left behind.",
        lambda apps: _one(len(apps[0].process.coordinator.abandoned[1])),
        kind="counter",
        unit="{token}",
        scope="process",
    ),
    Figure(
        "previous_shutdown_exit_code",
        "What the process before this one has exited with, by the receipt that it has left.",
        _previous("exit_code"),
        workers="max",
    ),
    Figure(
        "previous_shutdown_duration",
        "How long the shutdown of the process before this one took, by its receipt.",
        _previous("duration"),
        unit="s",
        workers="max",
    ),
    Figure(
        "previous_shutdown_requests_abandoned",
        "Requests that the process before this one has left behind unanswered, by its receipt.",
        _previous("abandoned"),
        unit="{request}",
        workers="max",
    ),
)


def read(
    apps: Sequence[App], figures: Sequence[Figure] = FIGURES
) -> Iterator[tuple[Figure, tuple[str, ...], list[Sample]]]:
    """Figures of these applications as they are now, with the names of their labels and their samples."""
    if not apps:
        return
    several = len(apps) > 1
    names = list(distinct([text(app.name) for app in apps]))
    for figure in figures:
        if figure.scope == "process":
            yield figure, figure.labels, list(figure.read(apps))
        elif not several:
            yield figure, figure.labels, list(figure.read(apps[0]))
        else:
            named = zip(names, apps, strict=True)
            found = [((name, *labels), value) for name, app in named for labels, value in figure.read(app)]
            yield figure, ("app", *figure.labels), found


def distinct(names: Sequence[str]) -> Iterator[str]:
    """Names that are told apart: a second ``api`` is ``api-2``."""
    given: set[str] = set()
    for name in names:
        numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        given.add(one := next(each for each in numbered if each not in given))
        yield one
