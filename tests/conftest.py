"""What every test gives back: its threads and the process's signal handlers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterator

import pytest

# The default of LIFECYCLE_SHUTDOWN_DELAY depends on it, and a test may well run inside a cluster.
os.environ.pop("KUBERNETES_SERVICE_HOST", None)

# A shell without job control starts what it puts into the background with SIGINT ignored, and every process that is
# started from here would inherit that; a handler is not inherited, its child begins with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# How long a thread that has been told to end may take, in seconds.
_PATIENCE = 5.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let what hostile tests have logged go from one process to another: pytest-xdist takes no lone surrogates."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """Fail a test that leaves a thread running or a signal handler replaced."""
    threads = set(threading.enumerate())
    handlers = {number: signal.getsignal(number) for number in _WATCHED}
    yield
    changed = [number.name for number in _WATCHED if signal.getsignal(number) != handlers[number]]
    for number, handler in handlers.items():
        signal.signal(number, handler)
    deadline = time.monotonic() + _PATIENCE
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    running = [thread.name for thread in left if thread.is_alive()]
    assert not changed, f"signal handlers not restored: {', '.join(changed)}"
    assert not running, f"threads still running: {', '.join(running)}"
