"""A process that serves nothing and does jobs: in its main thread, or in a thread while the main one has ended."""

from __future__ import annotations

import sys
import threading

from live_app import HOME, LONGEST, app, event, lifecycle, pass_gate


def jobs() -> None:
    """Do one job after the other until the drain begins."""
    number = 0
    while not lifecycle.draining.wait(0.01):
        number += 1
        with lifecycle.work("job", number=number):
            event(f"begin job {number}")
            pass_gate(f"job-{number}")
            event(f"end job {number}")
        if number == 2:  # between two jobs
            event("idle")
            lifecycle.draining.wait(LONGEST)
    event("loop ended")


if __name__ == "__main__":
    assert HOME.exists()
    assert app.name == "live"
    if sys.argv[1:] == ["thread"]:  # the main thread ends; the interpreter does not wait for a daemon
        threading.Thread(target=jobs, daemon=True).start()
        pass_gate("main")
    else:
        jobs()
