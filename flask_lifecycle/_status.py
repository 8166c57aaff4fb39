"""The status document: all that one application can tell about itself at this moment, as values that JSON can write.

``/healthcheck?verbose`` answers it to whoever may see details, the status page shows it, and whatever else tells
people how an application is prints it. It is made from what is there anyway, without running a check or waiting for
anything, and it is bounded: of ten thousand requests in flight the oldest fifty are listed and the others counted.

All times are seconds. A moment is told in ISO 8601 and by its ``age``, because the clocks of two machines differ.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ._config import Settings
from ._inflight import Ledger, RequestInfo, _quoted
from ._parties import ServerInfo
from ._probers import Probers
from ._render import component_of, iso, plain, transition_of
from ._shutdown import Coordinator
from ._startup import StartupTasks
from ._work import WorkInfo, WorkLedger
from .checks import CheckReport, HealthReport
from .checks._engine import CheckHistory
from .checks._health import Health

if TYPE_CHECKING:
    from ._control import Control

# So many requests, and so many tokens, are listed. Nobody reads more, and a page of ten thousand rows is none.
MOST_LISTED = 50
# And so much of a path, which a client may make as long as the server lets it.
_LONGEST = 500


class Process(Protocol):
    """What is asked about the process."""

    coordinator: Coordinator

    def members(self) -> Sequence[Any]:
        """The applications in it."""

    def server_info(self, search: bool = ...) -> ServerInfo | None:
        """Which server carries it, as far as that is known."""


class App(Protocol):
    """What is asked about the application."""

    name: str
    settings: Settings
    since: float  # time.monotonic() of when this process began to serve it
    health: Health
    ledger: Ledger
    work: WorkLedger
    tasks: StartupTasks
    probers: Probers
    control: Control | None
    last_receipt: dict[str, Any] | None

    @property
    def process(self) -> Process:
        """The process that it is in."""


def status_document(app: App, report: HealthReport) -> dict[str, Any]:
    """All there is to tell to whoever may see details.

    :param report: what the health check says. Where the state alone has decided, the checks say what they said last.
    """
    document = {
        "status": report.status,
        "state": report.state.value,
        "reason": report.reason,
        "cordon": _cordon(app.control),
        "application": {"name": app.name, "host": socket.gethostname(), "pid": os.getpid()},
        "server": _server(app.process),
        "time": iso(time.time()),
        "uptime": round(time.monotonic() - app.since, 1),
        "grace_period": app.settings.grace_period,
        **_stop(app.process.coordinator),
        "checks": _checks(report.checks or app.health.known(), app.health.engine.histories()),
        "transitions": [transition_of(each) for each in app.health.transitions()],
        "load": _load(app.process.coordinator),
        "in_flight": len(app.ledger),
        **_listed("requests", _requests(app), _request),
        **_listed("tokens", app.work.tokens(), _token),
        "startup_tasks": [_token(task) for task in app.tasks.tokens()],
        "probers": [prober._asdict() for prober in app.probers.snapshot()],
        "receipt": None if app.last_receipt is None else _receipt(app.last_receipt),
    }
    found: dict[str, Any] = plain(document)
    return found


def _cordon(control: Control | None) -> dict[str, Any] | None:
    """The operator's cordon, if there is one."""
    lease = control.lease if control is not None else None
    if lease is None:
        return None
    return {"by": lease.by, "seconds": lease.seconds, "remaining": _rounded(lease.until.remaining())}


def _server(process: Process) -> dict[str, Any] | None:
    """What carries the application, and which promise holds under it; it has been looked for before the start."""
    info = process.server_info(search=False)
    return None if info is None else info._asdict()


def _stop(stop: Coordinator) -> dict[str, Any]:
    """The shutdown, as far as it has come."""
    return {
        "phase": stop.phase,
        "remaining": _rounded(stop.remaining()),
        "phases": [{"name": phase.name, "seconds": round(phase.duration, 3)} for phase in tuple(stop.phases)],
        "report": None if stop.report is None else _receipt(stop.report.as_dict()),
    }


def _checks(checks: Iterable[CheckReport], histories: Mapping[str, CheckHistory]) -> dict[str, Any]:
    """The checks in the shape of the IETF draft, each with what is kept of its past."""
    now = time.time()
    return {check.name: [component_of(check) | _past(check, histories.get(check.name), now)] for check in checks}


def _past(check: CheckReport, history: CheckHistory | None, now: float) -> dict[str, Any]:
    past: dict[str, Any] = {"age": _rounded(max(0.0, now - check.time)), "duration": round(check.duration, 6)}
    if history is not None:
        past["durations"] = [round(duration, 6) for duration in history.durations]
        if history.changed:
            past["changed"] = {"time": iso(history.changed), "age": _rounded(max(0.0, now - history.changed))}
    return past


def _load(stop: Coordinator) -> dict[str, Any] | None:
    # A server that somebody else started would have to be searched for.
    load = stop.server.load() if stop.server is not None else None
    return None if load is None else load._asdict() | {"oldest": _rounded(load.oldest)}


def _requests(app: App) -> Sequence[RequestInfo]:
    """What is in flight, oldest first, with what the server holds; unless that may be another application's."""
    alone = len(app.process.members()) == 1
    requests = app.process.coordinator.unfinished() if alone else app.ledger.requests()
    return sorted(requests, key=lambda request: -request.age)


def _request(request: RequestInfo) -> dict[str, Any]:
    """A request by what is known of it; who sent it is known only if the application wants that to be told."""
    told = request._asdict() | {"age": _rounded(request.age)}
    told |= {name: _quoted(told[name][:_LONGEST]) for name in ("method", "path", "remote")}
    return {name: value for name, value in told.items() if name != "stack" and value != ""}


def _receipt(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a stop without stacks: that one tells what held it up, and the file has all of it."""

    def bare(entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [
            {name: value for name, value in each.items() if name != "stack"} if isinstance(each, Mapping) else each
            for each in entries[:MOST_LISTED]
        ]

    return {name: bare(value) for name, value in report.items()}


def _token(token: WorkInfo) -> dict[str, Any]:
    return {"name": token.name, "age": _rounded(token.age), "thread": token.thread, "info": token.info}


def _listed(name: str, all_of_it: Sequence[Any], told: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The first of a list, and how many there are beside them."""
    return {
        name: [told(each) for each in all_of_it[:MOST_LISTED]],
        f"{name}_omitted": max(0, len(all_of_it) - MOST_LISTED),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
