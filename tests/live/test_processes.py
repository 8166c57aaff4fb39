"""Processes that the package does not rule alone: foreign servers, several applications, workers, PID 1."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ._client import Connection, get
from ._process import UNTIL_ASKED, Running, Starter, wait_until
from .test_probes import PROBE_LISTENER, probe_address

FOREIGN: dict[str, tuple[str, ...]] = {
    "waitress-serve": ("-m", "waitress", "--listen=127.0.0.1:0", "live_app:app"),
    "flask run": ("-m", "flask", "--app", "live_app.py", "run", "--no-reload", "-p", "0"),
}
each_foreign = pytest.mark.parametrize("command", FOREIGN.values(), ids=FOREIGN.keys())


def start_foreign(
    live: Starter, command: Sequence[str], *, settings: dict[str, object] | None = None, prefix: Sequence[str] = ()
) -> Running:
    """Start a server that knows nothing of the package, and wait until it listens."""
    running = live.start(*prefix, sys.executable, *command, plan={"logging": True}, settings=settings)
    running.wait_log(r"(Serving|Running) on http")
    return running


@each_foreign
def test_foreign_server_is_ready_unasked(live: Starter, command: tuple[str, ...]) -> None:
    """With init_app alone the start-up comes with the server; SIGINT stays with the server, and the hooks run once."""
    running = start_foreign(live, command, settings=PROBE_LISTENER)
    assert get(probe_address(running), "/readyz").status == 200
    running.wait_log("flask_lifecycle: server ")
    assert get(running.address, "/fast").body == b"fast"
    assert running.stop(signal.SIGINT) == 0
    assert running.hooks() == ["last", "first"]


# Each keeps a response of the test client to its end, in a variable or a traceback.
HELD: dict[str, tuple[str, int]] = {
    "work": ("work = live_app.lifecycle.work('import')", 0),
    "pytest": (
        """
import pytest, sys

def test():
    response = client.get("/fast")
    assert response.status_code == 500

if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", __file__]))
""",
        1,
    ),
    "beside a server": (
        """
import threading, waitress
server = waitress.create_server(live_app.app, host="127.0.0.1", port=0)
threading.Thread(target=server.run, daemon=True).start()
response = client.get("/fast")
""",
        0,
    ),
}


@pytest.mark.parametrize("kept", HELD)
def test_interpreter_exit_does_not_wait_for_itself(live: Starter, tmp_path: Path, kept: str) -> None:
    """What the main thread has not ended does not hold up the exit: nothing serves it, and the thread is over."""
    code, expected = HELD[kept]
    script = tmp_path / "test_held.py"
    head = "import os, sys\nsys.path.insert(0, os.getcwd())\nimport live_app\nclient = live_app.app.test_client()\n"
    script.write_text(head + code)
    running = live.start(sys.executable, str(script), settings={"LIFECYCLE_GRACE_PERIOD": 120.0})
    assert running.wait_gone() == expected, running.log
    assert running.hooks() == ["last", "first"]
    assert ("abandoned" in running.log) == (kept == "work")


@pytest.mark.parametrize("server", ["waitress", "waitress-serve", "flask-run"])
def test_two_apps(live: Starter, server: str) -> None:
    """Of two applications in one process both are drained, the hooks of both run once, and the process exits once."""
    plan = {"second": True, **UNTIL_ASKED}
    running = live.serve(server, plan=plan)
    assert get(running.address, "/second/readyz").status == 200
    with Connection(running.address) as one, Connection(running.address) as two:
        one.ask("/gate/a")
        two.ask("/second/gate/a")
        running.wait_event("begin live a")
        running.wait_event("begin second a")
        running.begin_stop()
        wait_until(lambda: get(running.address, "/second/readyz").status == 503, "the second app drains")
        assert get(running.address, "/readyz").status == 503
        running.open_gate("asked")
        running.open_gate("second asked")
        running.wait_log("listener closed")
        assert running.hooks() == []
        running.open_gate("a")
        assert one.answer().body == b"passed a"
        assert two.answer().body == b"passed a"
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first", "last", "second first", "second last"]
    assert max(running.told("end second a") + running.told("end live a")) < min(
        event.when for event in running.events if event.text.startswith("shutdown ")
    )


SERVE_NOTHING = """
import signal, sys

def exits(number, frame):
    live_app.event(f"previous {number}")
    sys.exit(7)

def returns(number, frame):
    live_app.event(f"previous {number}")

signal.signal(signal.SIGTERM, %s)
import live_app
live_app.event("waiting")
live_app.pass_gate("leave")
live_app.event("left")
sys.exit(3)
"""
# Longer than a test waits for anything.
SLOW = {"LIFECYCLE_SHUTDOWN_DELAY": 60.0, "LIFECYCLE_KEEPALIVE_LINGER": 60.0, "LIFECYCLE_GRACE_PERIOD": 180.0}


def start_worker(live: Starter, previous: str) -> Running:
    """Start a process that imports the application and serves nothing, with long delays."""
    running = live.start(sys.executable, "-c", SERVE_NOTHING % previous, settings=SLOW)
    running.wait_event("waiting")
    return running


@pytest.mark.parametrize(("previous", "code", "calls"), [("signal.SIG_DFL", -signal.SIGTERM, 0), ("exits", 7, 1)])
def test_worker_that_sigterm_ends(live: Starter, previous: str, code: int, calls: int) -> None:
    """A process that serves nothing ends by SIGTERM as ever, with no delay and no linger."""
    running = start_worker(live, previous)
    assert running.stop() == code
    assert len(running.told(f"previous {signal.SIGTERM:d}")) == calls


@pytest.mark.parametrize(("previous", "told"), [("returns", True), ("signal.SIG_IGN", False)])
def test_worker_that_sigterm_does_not_end(live: Starter, previous: str, told: bool) -> None:
    """In a process that serves nothing the previous owner of the signal does its job; an ignored one stays so."""
    running = start_worker(live, previous)
    for times in (1, 2):
        running.send(signal.SIGTERM)
        running.wait_event(f"previous {signal.SIGTERM:d}", times * told)
        assert not running.gone.wait(0.3)
    running.open_gate("leave")
    assert running.wait_gone() == 3
    assert running.told("left")
    assert len(running.told(f"previous {signal.SIGTERM:d}")) == 2 * told


def test_command_of_the_application(live: Starter) -> None:
    """A command of the application, which serves nothing, is neither slowed down nor given another exit code."""
    command = ("-m", "flask", "--app", "live_app.py", "routes")
    running = live.start(sys.executable, *command, settings=SLOW)
    assert running.wait_gone() == 0
    assert len(running.hooks()) <= 2
