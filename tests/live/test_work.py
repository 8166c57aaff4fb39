"""Work, start-up tasks and reports of real processes."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import pytest

from ._client import get
from ._process import Running, Starter
from ._traffic import hung_request, in_flight
from .test_stop import assert_clean


def report(running: Running) -> dict[str, Any]:
    """Return the report that a process has left."""
    told: dict[str, Any] = json.loads((running.home / "report.json").read_text())
    return told


@pytest.fixture
def settings(tmp_path: Any) -> dict[str, Any]:
    """Ask for a report in the home of the first process."""
    return {"LIFECYCLE_REPORT_FILE": str(tmp_path / "process-0" / "report.json")}


def test_a_stop_waits_for_work(live: Starter, settings: dict[str, Any]) -> None:
    """Work that goes on in a thread is finished before the hooks run, and the report says how it went."""
    running = live.serve("waitress", settings=settings)
    assert get(running.address, "/work/a").status == 202
    running.wait_event("begin work a")
    with in_flight(running, gate="b"):
        running.begin_stop()
        running.wait_log("listener closed")
    assert not running.gone.wait(0.3)
    assert running.hooks() == []
    running.open_gate("a")
    assert_clean(running, running.wait_gone())
    assert running.told("end work a") < running.told("shutdown last")
    told = report(running)
    assert (told["reason"], told["clean"], told["served"], told["exit_code"]) == ("SIGTERM", True, 1, 0)
    assert [phase["name"] for phase in told["phases"]] == ["announce", "delay", "stop accepting", "drain", "hooks"]


def test_work_that_never_ends(live: Starter, settings: dict[str, Any]) -> None:
    """Work that does not end is named halfway and at the deadline, with its stack; the hooks run and the code is 1."""
    running = live.serve("waitress", settings={**settings, "LIFECYCLE_GRACE_PERIOD": 2.0})
    assert get(running.address, "/work/never").status == 202
    running.wait_event("begin work never")
    assert running.stop() == 1
    for words in ("halfway through the drain, waiting for", "abandoned"):
        assert f"{words} work 'job' (gate='never') after" in running.log
    assert running.log.count("in pass_gate") == 2
    assert running.hooks() == ["last", "first"]
    told = report(running)
    assert [work["what"] for work in told["work"]] == ["work 'job' (gate='never')"]
    assert "in do_work" in told["work"][0]["stack"]
    assert (told["clean"], told["exit_code"], told["summary"]) == (False, 1, "1 abandoned, exit 1")


def test_a_forced_stop_leaves_a_report(live: Starter, settings: dict[str, Any]) -> None:
    """A second signal leaves at once, and the report names what was abandoned, request and work."""
    running = live.serve("waitress", settings=settings)
    assert get(running.address, "/work/never").status == 202
    running.wait_event("begin work never")
    with hung_request(running):
        running.begin_stop()
        running.wait_log("listener closed")
        assert not running.gone.wait(0.2)  # a repetition within a tenth of a second is the same signal
        running.send(signal.SIGINT)
        assert running.wait_gone() == 128 + signal.SIGINT
    told = report(running)
    assert (told["forced"], told["exit_code"], told["summary"]) == (True, 130, "forced, 2 abandoned, exit 130")
    assert [request["route"] for request in told["abandoned"]] == ["/gate/<gate>"]
    assert [work["name"] for work in told["work"]] == ["job"]
    assert "forced by SIGINT: abandoned 2" in running.log


def test_a_stop_that_hangs_leaves_a_report(live: Starter, settings: dict[str, Any]) -> None:
    """Where a receiver hangs for ever the process is gone at its grace period, and the report tells the phase."""
    plan = {"receiver": "hang"}
    running = live.serve("waitress", settings={**settings, "LIFECYCLE_GRACE_PERIOD": 1.0}, plan=plan)
    assert running.stop() == 1
    told = report(running)
    assert (told["forced"], [phase["name"] for phase in told["phases"]]) == (True, ["announce"])


WORKED = "from live_app import event, lifecycle, pass_gate\nwith lifecycle.work('job'): "
BLOCKED = f"{WORKED}pass\ntry: event('idle'); pass_gate('next')\nfinally: event('closed')"
ENDLESS = f"{WORKED}\n  try: event('idle'); pass_gate('next')\n  finally: event('closed')"


def test_a_job_loop_without_a_server(live: Starter) -> None:
    """A process that does jobs in its main thread is drained: the job is finished, no other begins, hooks run."""
    running = live.start(sys.executable, "jobs_app.py", plan={"logging": True})
    running.wait_event("begin job 1")
    running.begin_stop()
    running.open_gate("job-1")
    assert_clean(running, running.wait_gone())
    assert running.told("end job 1") < running.told("loop ended")
    assert running.told("begin job 2") == []


def test_a_job_loop_between_two_jobs(live: Starter) -> None:
    """Also between two jobs the process has something to drain: the loop sees it, and the hooks run."""
    running = live.start(sys.executable, "jobs_app.py", plan={"logging": True})
    running.open_gate("job-1")
    running.open_gate("job-2")
    running.wait_event("idle")
    assert_clean(running, running.stop())
    assert running.told("loop ended")


def test_a_process_that_waits_for_a_job(live: Starter) -> None:
    """A process that is blocked between two jobs ends with the exit code of its stop; its main thread cleans up."""
    running = live.start(sys.executable, "-c", BLOCKED, plan={"logging": True})
    running.wait_event("idle")
    assert_clean(running, running.stop())
    assert running.told("shutdown first") < running.told("closed")
    assert "grace period over" not in running.log


def test_a_job_in_the_main_thread_that_does_not_end(live: Starter) -> None:
    """A job of the main thread that is abandoned at the deadline is ended as whatever raises there would end it."""
    grace = {"LIFECYCLE_GRACE_PERIOD": 3.0, "LIFECYCLE_HOOK_RESERVE": 1.0}
    running = live.start(sys.executable, "-c", ENDLESS, plan={"logging": True}, settings=grace)
    running.wait_event("idle")
    assert running.stop() == 1
    assert "abandoned work 'job'" in running.log
    assert running.told("shutdown first") < running.told("closed")
    assert "grace period over" not in running.log


def test_jobs_in_a_daemon_thread_when_the_main_one_ends(live: Starter) -> None:
    """The interpreter does not wait for daemon threads; their work is waited for all the same."""
    running = live.start(sys.executable, "jobs_app.py", "thread", plan={"logging": True})
    running.wait_event("begin job 1")
    running.open_gate("main")
    running.wait_log("shutdown begins: interpreter exit")
    running.open_gate("job-1")
    assert_clean(running, running.wait_gone())
    assert running.told("end job 1")


def test_a_process_that_has_done_no_work(live: Starter) -> None:
    """Where neither a request nor work has ever been, the signal does what it does without us, and no hook runs."""
    code = "from live_app import event, lifecycle, pass_gate; lifecycle.work('x')(print); event('here'); pass_gate('x')"
    running = live.start(sys.executable, "-c", code)
    running.wait_event("here")
    assert running.stop() == -signal.SIGTERM
    assert running.hooks() == []


def test_a_task_holds_readiness_and_no_request(live: Starter, server: str) -> None:
    """While a start-up task runs requests are served and readiness says 503; then it says 200."""
    running = live.serve(server, plan={"tasks": [["warm", "gate", "shutdown"]]}, listeners=0)
    running.wait_event("task warm")
    running.wait_for(lambda: running.addresses, "its listener")
    assert get(running.address, "/fast").body == b"fast"
    assert [get(running.address, path).status for path in ("/livez", "/startupz", "/readyz")] == [200, 503, 503]
    running.open_gate("warm")
    running.wait_log("STARTING -> READY")
    assert [get(running.address, path).status for path in ("/livez", "/startupz", "/readyz")] == [200, 200, 200]
    assert_clean(running, running.stop())
