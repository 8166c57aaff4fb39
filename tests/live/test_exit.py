"""The interpreter's end after a stop: functions of ``atexit``, buffers, exit codes."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest

from ._client import free_port
from ._process import Running, Starter
from .test_elsewhere import SERVERS

# What is registered before the package is imported runs after its own function.
PROGRAM = """
import atexit, os, sys, threading

def telemetry():
    live_app.event("exit before")
    if sys.argv[3] == "hang":
        live_app.pass_gate("never")

atexit.register(telemetry)
import live_app, serve_elsewhere
atexit.register(lambda: live_app.event("exit after"))
kept = open(live_app.HOME / "kept", "w")
kept.write("kept")
print("printed", end="")
getattr(serve_elsewhere, sys.argv[1])(int(sys.argv[2]))
"""


def serve(live: Starter, server: str, hang: str = "", hooks: str = "ok", **settings: Any) -> Running:
    """Start a program that serves, and wait until it is ready."""
    running = live.start(
        sys.executable, "-c", PROGRAM, server, str(free_port()), hang,
        plan={"logging": True, "hooks": {"shutdown": [["only", hooks, None]]}}, settings=settings,
        env={"PYTHONUNBUFFERED": ""}, excuse="ValueError: boom",
    )  # fmt: skip
    running.wait_log("STARTING -> READY")
    return running


# By the signal it leaves in one way where it was started by `run`, and in another where the server is found.
@pytest.mark.parametrize(
    ("server", "how", "hooks", "code"),
    [*((server, "code", "raise", 1) for server in SERVERS),
     *((server, "signal", "ok", -signal.SIGTERM) for server in ("waitress", "app_run", "uvicorn", "run"))],
)  # fmt: skip
def test_exit_functions_run_and_buffers_are_written(
    live: Starter, server: str, how: str, hooks: str, code: int
) -> None:
    """However the process is to leave, all functions of atexit run once, and nothing printed is lost."""
    running = serve(live, server, hooks=hooks, LIFECYCLE_EXIT=how)
    # run() returns the report here, and the program makes no exit code of it.
    assert running.stop() == (0 if server == "run" and how == "code" else code)
    assert [e.text for e in running.events if e.text.startswith("exit")] == ["exit after", "exit before"]
    assert "printed" in running.log
    assert (running.home / "kept").read_text() == "kept"


@pytest.mark.parametrize(("server", "how", "code"), [("waitress", "signal", -signal.SIGTERM), ("run", "code", 1)])
def test_an_exit_function_that_hangs(live: Starter, server: str, how: str, code: int) -> None:
    """A function of atexit that hangs is named at the deadline, and the process leaves as it was told."""
    # A part of the grace period is for the last line, in proportion.
    running = serve(live, server, "hang", LIFECYCLE_EXIT=how, LIFECYCLE_GRACE_PERIOD=3.0)
    assert running.stop() == code
    assert running.told("exit before")
    assert "leaving at once: an atexit function has not returned: 'telemetry' (<string>, line " in running.log
    assert "printed" in running.log
