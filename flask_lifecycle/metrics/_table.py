"""The metrics of an application: one table for Prometheus and OpenTelemetry.

A metric is read when it is scraped and costs nothing before. Reading runs no check and waits for none: a scrape shows
what the last probes and background checks have found.

Labels have few values. Only the names of work items may be made up at run time, so a process distinguishes the first
:data:`MOST_NAMES` of them and counts later ones as ``other``.

Where a collector covers several applications, the metrics of each have its name as the label ``app``. A process has one
shutdown: its metrics appear once and without the label.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from .._core.inflight import Load
from .._core.shutdown import Shutdown
from .._core.state import State
from .._core.tally import Tally
from .._core.work import WorkLedger
from ..checks._check import STATUSES, is_number
from ..checks._health import READY

PREFIX = "flask_lifecycle"

MOST_NAMES = 50  # names of work items in the life of a process: each is a time series for as long as it is stored
_LONGEST = 100  # characters of such a name in a label

App: TypeAlias = Any  # an Application, whose module is above this one
Sample: TypeAlias = "tuple[tuple[str, ...], float]"


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    :param name: without prefix and suffixes.
    :param read: reads it from one application; from all of them, if the ``scope`` is ``process``.
    :param kind: ``gauge``, or ``counter`` for what only grows.
    :param unit: ``s`` for seconds, else what is counted, as UCUM and OpenTelemetry write it.
    :param workers: how several worker processes are combined: the ``sum``, the ``max`` or the ``min``.
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
        unit = "_seconds" if self.unit == "s" else ""
        return f"{PREFIX}_{self.name}{unit}{'_total' if self.kind == 'counter' else ''}"


def text(name: str) -> str:
    """A name as a label can have it: half of a surrogate pair would make the whole response invalid."""
    return name.encode("utf-8", "backslashreplace").decode()


def _one(value: float | None) -> list[Sample]:
    """The one sample of a metric without labels; none for ``None``."""
    return [] if value is None else [((), float(value))]


# -- of one application -------------------------------------------------------------------------------------------


def _state(app: App) -> list[Sample]:
    now = app.machine.state
    return [((state.value,), float(state is now)) for state in State]


# The last value: it is a difference of two numbers that are counted one after the other, and a counter that falls back
# by one looks like a restarted process.
_served_before: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def _served(app: App) -> list[Sample]:
    _served_before[app] = max(_served_before.get(app, 0), app.served)
    return _one(_served_before[app])


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


def _previous(key: str) -> Callable[[App], list[Sample]]:
    """A number of the previous process's shutdown report; the length of a list."""

    def sample(app: App) -> list[Sample]:
        report = app.last_report or {}
        value = report.get(key)
        if isinstance(value, list):
            more = report.get(f"more_{key}", 0)
            value = len(value) + (more if is_number(more) else 0)
        return _one(value) if is_number(value) else []

    return sample


# -- of a process -------------------------------------------------------------------------------------------------


def _load(read: Callable[[Load], float | None]) -> Callable[[Sequence[App]], list[Sample]]:
    def sample(apps: Sequence[App]) -> list[Sample]:
        load = apps[0].serving.known_load()
        return [] if load is None else _one(read(load))

    return sample


def _age(tallies: Iterable[Tally]) -> list[Sample]:
    """The age of the oldest entry; 0 without any."""
    ages = (tally.clock() - entry.started for tally in tallies for entry in tally.entries())
    return _one(max(ages, default=0.0))


def _each(apps: Sequence[App], part: Callable[[App], Any]) -> list[Any]:
    """A part of all applications, each once: several may share a ``Lifecycle``."""
    return list({id(found): found for app in apps if (found := part(app)) is not None}.values())


def _ledgers(apps: Sequence[App]) -> list[WorkLedger]:
    return _each(apps, lambda app: app.work)


_names: weakref.WeakKeyDictionary[WorkLedger, set[str]] = weakref.WeakKeyDictionary()


def _work(apps: Sequence[App]) -> list[Sample]:
    """Work items by name. A name that was seen before is 0 when it has no items any more."""
    counted: Counter[str] = Counter()
    for ledger in _ledgers(apps):
        known = _names.setdefault(ledger, set())
        counted.update(dict.fromkeys(known, 0))
        counted.update(_known_name(known, item.name) for item in ledger.active.copy())
    return [((name,), float(count)) for name, count in counted.items()]


def _known_name(known: set[str], name: str) -> str:
    """The name of a work item as a label, or ``other`` if there are too many."""
    label = text(str(name)[:_LONGEST])
    if label not in known:
        if len(known) >= MOST_NAMES:
            return "other"
        known.add(label)
    return label


def _startup_tasks(apps: Sequence[App]) -> list[Sample]:
    return _one(sum(len(tasks) for tasks in _each(apps, lambda app: app.tasks)))


def _hooks(apps: Sequence[App]) -> list[Sample]:
    kept = [*(app.hooks.records for app in apps), *(tasks.records for tasks in _each(apps, lambda app: app.tasks))]
    records = [record for each in kept for record in each.copy()]
    ended = Counter((record.kind, record.outcome) for record in records)
    return [(labels, float(count)) for labels, count in ended.items()]


def _phases(apps: Sequence[App]) -> list[Sample]:
    """The phases that are over, and the current one with its duration so far."""
    stop: Shutdown = apps[0].process.shutdown
    over = {record.name: record.duration for record in list(stop.progress.records)}
    current = stop.phase
    if current and current not in over and stop.report is None:
        over[current] = stop.progress.current.duration
    return [((name,), duration) for name, duration in over.items()]


# fmt: off
METRICS = (
    Metric("state", "State of the application: 1 for the current one, 0 for the others.", _state, ("state",)),
    Metric("ready", "Readiness by the last known results: 1 if it would pass, else 0.",
           lambda app: _one(app.health.known_status(READY) != "fail"), workers="min"),
    Metric("requests_in_flight", "Requests that are not answered yet.",
           lambda app: _one(len(app.ledger)), unit="{request}"),
    Metric("oldest_request", "Age of the oldest request in flight, 0 if there is none.",
           lambda app: _age([app.ledger]), unit="s", workers="max"),
    Metric("requests_refused", "Requests refused with 503 because of the shutdown.",
           lambda app: _one(app.refused), kind="counter", unit="{request}"),
    Metric("requests_served_in_drain", "Requests finished after the shutdown had begun.",
           _served, kind="counter", unit="{request}"),
    Metric("check_status", "Status of a check: 1 for the current one, 0 for the others; absent before its first run.",
           _check_status, ("check", "status")),
    Metric("check_duration", "Duration of the last run of a check; if it hangs, the time so far.",
           _check_duration, ("check",), unit="s", workers="max"),
    Metric("check_last_change_timestamp", "Unix time of the last change of a check's status.",
           _check_changed, ("check",), unit="s", workers="max"),
    Metric("probes", "Answered probes, by group of checks and HTTP status.",
           _probes, ("probe", "code"), kind="counter", unit="{probe}"),
    Metric("server_requests_queued", "Requests that wait for a thread of the server.",
           _load(lambda load: load.queued), unit="{request}", scope="process"),
    Metric("server_threads", "Worker threads of the server.",
           _load(lambda load: load.threads), unit="{thread}", scope="process"),
    Metric("server_threads_busy", "Worker threads of the server that run a request.",
           _load(lambda load: load.busy), unit="{thread}", scope="process"),
    Metric("work_items", "Open work items (work that is not a request).",
           _work, ("name",), unit="{item}", scope="process"),
    Metric("oldest_work", "Age of the oldest open work item, 0 if there is none.",
           lambda apps: _age(_ledgers(apps)), unit="s", workers="max", scope="process"),
    Metric("startup_tasks_pending", "Startup tasks that have not ended.",
           _startup_tasks, unit="{task}", scope="process"),
    Metric("hooks", "Start-up and shutdown functions that were called, by outcome.",
           _hooks, ("kind", "outcome"), kind="counter", unit="{hook}", scope="process"),
    Metric("shutdown_phase", "Duration of a phase of the shutdown, or the time so far; absent before a shutdown.",
           _phases, ("phase",), unit="s", workers="max", scope="process"),
    Metric("shutdown_remaining", "Remaining grace period; absent before a shutdown.",
           lambda apps: _one(apps[0].process.shutdown.remaining()), unit="s", workers="min", scope="process"),
    Metric("requests_abandoned", "Requests that the shutdown abandoned.",
           lambda apps: _one(len(apps[0].process.shutdown.abandoned.requests)),
           kind="counter", unit="{request}", scope="process"),
    Metric("work_abandoned", "Work items that the shutdown abandoned.",
           lambda apps: _one(len(apps[0].process.shutdown.abandoned.work)),
           kind="counter", unit="{item}", scope="process"),
    Metric("previous_shutdown_exit_code", "Exit code of the previous process, according to its shutdown report.",
           _previous("exit_code"), workers="max"),
    Metric("previous_shutdown_duration",
           "Duration of the previous process's shutdown, according to its shutdown report.",
           _previous("duration"), unit="s", workers="max"),
    Metric("previous_shutdown_requests_abandoned",
           "Requests that the previous process abandoned, according to its shutdown report.",
           _previous("abandoned"), unit="{request}", workers="max"),
)
# fmt: on


def read(
    apps: Sequence[App], metrics: Sequence[Metric] = METRICS
) -> Iterator[tuple[Metric, tuple[str, ...], list[Sample]]]:
    """The current metrics of these applications, with the names of their labels and their samples."""
    if not apps:
        return
    several = len(apps) > 1
    names = list(distinct([text(app.flask.name) for app in apps]))
    for metric in metrics:
        if metric.scope == "process":
            yield metric, metric.labels, list(metric.read(apps))
        elif not several:
            yield metric, metric.labels, list(metric.read(apps[0]))
        else:
            named = zip(names, apps, strict=True)
            found = [((name, *labels), value) for name, app in named for labels, value in metric.read(app)]
            yield metric, ("app", *metric.labels), found


def distinct(names: Sequence[str]) -> Iterator[str]:
    """The names, each once: a second ``api`` becomes ``api-2``."""
    given: set[str] = set()
    for name in names:
        numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        given.add(one := next(each for each in numbered if each not in given))
        yield one
