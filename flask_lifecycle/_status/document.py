"""The status document: the current status of one application, as values that JSON can write.

``/healthcheck?verbose`` returns it to callers allowed to see details, and the status page shows it. Making it runs no
check and waits for nothing, and its size is bounded: of ten thousand requests in flight the oldest fifty are listed and
the others counted.

All times are seconds. A moment has its ISO 8601 time and its ``age``, because the clocks of two machines differ.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._core.inflight import RequestInfo, _quoted
from .._core.report import UNCOUNTED
from .._core.shutdown import Shutdown
from .._core.work import WorkInfo
from .._probes.render import component_of, iso, plain, transition_of
from ..checks import CheckReport, HealthReport
from ..checks._check import CheckHistory

# How many requests, and how many work items, are listed.
MOST_LISTED = 50
# Characters of a path, whose length only the server bounds.
_LONGEST = 500


def status_document(app: Any, report: HealthReport) -> dict[str, Any]:
    """The status document of an application.

    :param app: the ``Application``, which is in a layer above this one.
    :param report: of the health check. If the state alone has decided it, the last results of the checks are listed.
    """
    server = app.serving.info(search=False)
    document = {
        "status": report.status,
        "state": report.state.value,
        "reason": report.reason,
        "cordon": _cordon(app.control),
        "application": {"name": app.flask.name, "host": socket.gethostname(), "pid": os.getpid()},
        "server": None if server is None else server._asdict(),
        "time": iso(time.time()),
        "uptime": round(time.monotonic() - app.startup.since, 1),
        "grace_period": app.settings.grace_period,
        **_stop(app.process.shutdown),
        "checks": _checks(report.checks or app.health.known(), app.health.engine.histories()),
        "transitions": [transition_of(each) for each in app.health.transitions()],
        "load": _load(app.process.shutdown),
        "in_flight": len(app.ledger),
        **_listed("requests", _requests(app), _request),
        **_listed("work", app.work.items(), _work_item),
        "startup_tasks": [_work_item(task) for task in app.tasks.items()],
        "probers": [prober._asdict() for prober in app.probes.probers.snapshot()],
        "last_report": None if app.last_report is None else _report(app.last_report),
    }
    found: dict[str, Any] = plain(document)
    return found


def _cordon(control: Any) -> dict[str, Any] | None:
    """The operator's cordon, if operators may make requests and there is one."""
    lease = control.lease if control is not None else None
    if lease is None:
        return None
    return {"by": lease.by, "seconds": lease.seconds, "remaining": _rounded(lease.until.remaining())}


def _stop(stop: Shutdown) -> dict[str, Any]:
    return {
        "phase": stop.phase,
        "remaining": _rounded(stop.remaining()),
        "phases": [{"name": phase.name, "seconds": round(phase.duration, 3)} for phase in tuple(stop.progress.records)],
        "report": None if stop.report is None else _report(stop.report.as_dict()),
    }


def _checks(checks: Iterable[CheckReport], histories: Mapping[str, CheckHistory]) -> dict[str, Any]:
    """The checks in the shape of the IETF draft, each with its history."""
    now = time.time()
    return {check.name: [component_of(check) | _past(check, histories.get(check.name), now)] for check in checks}


def _past(check: CheckReport, history: CheckHistory | None, now: float) -> dict[str, Any]:
    past: dict[str, Any] = {"age": _rounded(max(0.0, now - check.time)), "duration": round(check.duration, 6)}
    if history is not None:
        past["durations"] = [round(duration, 6) for duration in history.durations]
        if history.changed:
            past["changed"] = {"time": iso(history.changed), "age": _rounded(max(0.0, now - history.changed))}
    return past


def _load(stop: Shutdown) -> dict[str, Any] | None:
    # The server of another runner would have to be searched for.
    load = stop.server.load() if stop.server is not None else None
    return None if load is None else load._asdict() | {"oldest": _rounded(load.oldest)}


def _requests(app: Any) -> Sequence[RequestInfo]:
    """The requests in flight, oldest first, with those in the server unless they may be another application's."""
    alone = len(app.process.applications()) == 1
    requests: Sequence[RequestInfo] = app.process.shutdown.unfinished().requests if alone else app.ledger.requests()
    requests = [request for request in requests if request.stage != UNCOUNTED]  # one is this very probe
    return sorted(requests, key=lambda request: -request.age)


def _request(request: RequestInfo) -> dict[str, Any]:
    """A request, without its stack; ``remote`` is there if ``LIFECYCLE_LOG_REMOTE_ADDR`` is set."""
    found = request._asdict() | {"age": _rounded(request.age)}
    found |= {name: _quoted(found[name][:_LONGEST]) for name in ("method", "path", "remote")}
    return {name: value for name, value in found.items() if name != "stack" and value != ""}


def _report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report of a shutdown, without the stacks that the log and the report file have."""

    def bare(entries: Any) -> Any:
        if not isinstance(entries, list):
            return entries
        return [
            {name: value for name, value in each.items() if name != "stack"} if isinstance(each, Mapping) else each
            for each in entries[:MOST_LISTED]
        ]

    return {name: bare(value) for name, value in report.items()}


def _work_item(item: WorkInfo) -> dict[str, Any]:
    return {"name": item.name, "age": _rounded(item.age), "thread": item.thread, "info": item.info}


def _listed(name: str, entries: Sequence[Any], describe: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The first of a list, and the number of the others."""
    return {
        name: [describe(each) for each in entries[:MOST_LISTED]],
        f"{name}_omitted": max(0, len(entries) - MOST_LISTED),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
