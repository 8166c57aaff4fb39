"""The marker that a test has of its folder, and what every test gives back: threads and signal handlers."""

from __future__ import annotations

import compileall
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests._raw_server import RawServer

# The default of LIFECYCLE_SHUTDOWN_DELAY depends on it, and a test may well run inside a cluster.
os.environ.pop("KUBERNETES_SERVICE_HOST", None)

# Some tests start a pytest of their own, which is not to run with the options of this one.
os.environ.pop("PYTEST_ADDOPTS", None)

# A shell without job control starts what it puts into the background with these ignored, and every process that is
# started from here would inherit that; a handler is not inherited, its child begins with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

_WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

# Tests without a marker start no server in a process of its own and need nothing but what pip installs.
_MARKERS = {
    **dict.fromkeys(("live", "verify", "catalogue", "parity"), "live"),
    "services": "services",
    "fleet": "fleet",
}

# Hundreds of processes import the same modules. Where the environment forbids it no process would write their
# bytecode, and each would compile them again, the tests themselves as well.
sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    """Compile what the processes import, once, before pytest-xdist starts its own."""
    if not hasattr(config, "workerinput"):
        for folder in ("flask_lifecycle", "tests/live_apps"):
            compileall.compile_dir(Path(__file__).parent.parent / folder, quiet=2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test by its folder, before tests are selected by their markers."""
    # Live tests are distributed one by one. The others stay together with those of their file, because a server object
    # that one leaves to the garbage collector could be found by one of another file.
    for item in items:
        marker = _MARKERS.get(item.path.parent.name)
        if marker:
            item.add_marker(marker)
        if marker != "live":
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


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
    deadline = time.monotonic() + 5.0  # for threads that have been told to end
    left = [thread for thread in threading.enumerate() if thread not in threads]
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    running = [thread.name for thread in left if thread.is_alive()]
    assert not changed, f"signal handlers not restored: {', '.join(changed)}"
    assert not running, f"threads still running: {', '.join(running)}"


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    """Start raw servers, and end them."""
    with contextlib.ExitStack() as stack:
        yield lambda *script, **options: stack.enter_context(contextlib.closing(RawServer(*script, **options)))


@pytest.fixture
def free() -> Iterator[threading.Event]:
    """What hanging functions of a test wait for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()
