"""The process as PID 1 of its namespace, as in a container."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests._needs import missing, program
from tests.live._client import get
from tests.live._process import Running, Starter, children_of
from tests.live._traffic import in_flight
from tests.live.test_processes import FOREIGN as COMMANDS
from tests.live.test_processes import start_foreign
from tests.live.test_reload import SERVES

pytestmark = pytest.mark.usefixtures("pid_namespace")
UNSHARE = ("unshare", "--fork", "--pid", "--kill-child")
RELOADER = ("-m", "flask", "--app", "live_app.py", "run", "--reload", "-p", "0")
FOREIGN = {**COMMANDS, "flask run --reload": RELOADER}


def child_of(running: Running) -> int:
    """Return the pid, as this side sees it, of the only child of a process."""
    running.wait_for(lambda: children_of(running.popen.pid), "the child of unshare")
    (pid,) = children_of(running.popen.pid)
    return pid


@pytest.fixture
def pid_namespace() -> None:
    """Skip where the kernel refuses a new PID namespace."""
    tried = subprocess.run([program(UNSHARE[0]), *UNSHARE[1:], "true"], capture_output=True, timeout=20)
    if tried.returncode:
        missing("the right to make a PID namespace")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pid_1(live: Starter, server: str, number: int) -> None:
    """As PID 1, for which the kernel ignores what has no handler, the process answers what is in flight and exits 0."""
    running = live.serve(server, prefix=UNSHARE)
    running.target = child_of(running)
    with in_flight(running):
        running.begin_stop(number)
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]


@pytest.mark.parametrize("command", FOREIGN.values(), ids=FOREIGN)
def test_pid_1_under_a_foreign_server(live: Starter, command: tuple[str, ...]) -> None:
    """As PID 1 under a server that the package did not start SIGTERM drains, runs the hooks and ends the process."""
    running = start_foreign(live, command, prefix=UNSHARE)
    running.target = child_of(running)
    with in_flight(running):
        running.begin_stop()
    running.wait_gone()
    assert running.hooks() == ["last", "first"]


def test_pid_1_leaves_by_a_signal(live: Starter, server: str) -> None:
    """As PID 1, which cannot die by a signal of its own, the process leaves with LIFECYCLE_EXIT "signal" too."""
    running = live.serve(server, prefix=UNSHARE, settings={"LIFECYCLE_EXIT": "signal"})
    running.target = child_of(running)
    assert running.stop() in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_pid_1_that_reloads(live: Starter) -> None:
    """As PID 1 it reloads, reaps what a process has left behind, and stops."""
    running = live.serve("waitress", "--reload-on", "SIGHUP", "-p", "0", prefix=UNSHARE)
    running.target = child_of(running)
    (first,) = children_of(running.target)
    get(running.address, "/fork")
    running.wait_event("forked")
    (orphan,) = children_of(first)
    running.send(signal.SIGHUP)
    running.wait_log(SERVES.pattern)
    running.wait_for(lambda: not Path(f"/proc/{first}").exists(), "the one before leaves")
    running.wait_for(lambda: orphan in children_of(running.target), "its child is left to PID 1")
    os.kill(orphan, signal.SIGKILL)
    running.wait_for(lambda: not Path(f"/proc/{orphan}").exists(), "the child is reaped")
    assert get(running.addresses[0], "/fast").body == b"fast"
    assert running.stop() == 0
