"""What a load balancer and an orchestrator see."""

from __future__ import annotations

import time

from ..client import Connection, LostError, is_refused
from ..trial import ACCEPTED, BEYOND, STARTED, BrokenError, NotCheckedError, Trial, scenario


def status_of(trial: Trial, kind: str) -> int:
    """The status of a probe, on the probe listener if there is one; 0 if no connection is made."""
    host, port = trial.subject.address
    try:
        with Connection((host, trial.probe_port or port), trial.subject.patience) as client:
            return client.get(trial.path(kind)).status
    except ConnectionRefusedError:
        return 0


@scenario("probes/ready-fails", STARTED, "ready", "slow")
def ready_fails(trial: Trial) -> str:
    """Readiness fails, or connections are refused, while the last requests run."""
    if status_of(trial, "ready") != 200:
        raise BrokenError("readiness was not 200 before the shutdown")
    client = trial.begin("slow", 2)
    trial.stop()
    end = time.monotonic() + 1.5
    status = 200
    while status == 200 and time.monotonic() < end:
        try:
            status = status_of(trial, "ready")
        except LostError:
            status = 0
    trial.expect(client, "slow")
    if status == 200:
        raise BrokenError("readiness stayed 200 while the last request ran")
    return f"status {status}" if status else "connections refused"


@scenario("probes/live-holds", STARTED, "live", "slow")
def live_holds(trial: Trial) -> str:
    """Liveness does not fail during the shutdown."""
    client = trial.begin("slow", 2)
    trial.stop()
    statuses: list[int] = []
    while not trial.subject.recorded("end") and not trial.subject.gone.is_set() and len(statuses) < 50:
        try:
            statuses.append(status_of(trial, "live"))
        except (LostError, TimeoutError):
            break  # the listener was closed under the probe, which "accept" judges
        if statuses[-1] not in (0, 200):
            raise BrokenError(f"liveness answered {statuses[-1]} during the shutdown")
        time.sleep(0.05)
    trial.expect(client, "slow")
    return f"{statuses.count(200)} answered 200, none failed"


@scenario("probes/live-after-close", STARTED, "live", "slow")
def live_after_close(trial: Trial) -> str:
    """Liveness on the probe listener answers while a request runs after the main listener was closed."""
    subject = trial.subject
    if not trial.probe_port:
        raise NotCheckedError("the application has no probe listener; let it have LIFECYCLE_PROBE_PORT={probe_port}")
    client = trial.begin("slow", 4)
    trial.stop()
    end = time.monotonic() + 3.0
    # Not often: each look that is not refused takes a place in the accept queue.
    while not (closed := is_refused(subject.address, 0.5)) and time.monotonic() < end:
        time.sleep(0.2)
    if not closed or subject.recorded("end"):
        raise NotCheckedError("the main listener stays open while the last request runs")
    if (status := status_of(trial, "live")) != 200:
        raise BrokenError(f"status {status}" if status else "the probe listener refuses connections")
    trial.expect(client, "slow")
    return "answered"


def _must_answer_meanwhile(trial: Trial) -> str:
    """Liveness answers before any of the requests has ended."""
    try:
        status = status_of(trial, "live")
    except TimeoutError:
        status = 0
    ended = len(trial.subject.recorded("end"))
    if status == 200 and not ended:
        return "answered before any of the busy requests ended"
    if trial.subject.settings.get("probe_port", 0) is None:
        raise NotCheckedError("the main listener does not answer probes while it is busy; set LIFECYCLE_PROBE_PORT")
    raise BrokenError(f"status {status} after {ended} of the busy requests had ended")


@scenario("probes/live-busy", ACCEPTED, "live", "slow", own=True)
def live_busy(trial: Trial) -> str:
    """Liveness answers while every worker is busy."""
    trial.begin("slow", 6)
    for _ in range(40):
        # A full accept queue drops a SYN, which is repeated a second later; the first requests may have ended by then.
        if (client := trial.connect_unless_gone(0.1)) is not None:
            client.ask(trial.path("slow", 6))
    busy = 0
    while (begun := len(trial.subject.recorded("begin"))) > busy:  # until no worker is free
        busy = begun
        trial.settle()
    return _must_answer_meanwhile(trial)


@scenario("probes/live-cpu", BEYOND, "live", "cpu", own=True)
def live_cpu(trial: Trial) -> str:
    """Liveness answers while requests compute in Python, which keeps other threads waiting."""
    trial.begin("cpu", 8)
    trial.connect().ask(trial.path("cpu", 8))
    return _must_answer_meanwhile(trial)
