"""What a real process tells a service manager, from its start to its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest

from ._client import get
from ._process import Running, Starter, wait_until
from ._traffic import hung_request, in_flight

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is the subject")


class Manager:
    """The socket of a service manager, read by a thread; ``name`` is as in ``NOTIFY_SOCKET``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[tuple[float, list[str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while datagram := self._socket.recv(65536):
            self.heard.append((time.monotonic(), datagram.decode().split("\n")))

    @property
    def lines(self) -> list[str]:
        """All that was said, in its order."""
        return [line for _, lines in self.heard.copy() for line in lines]

    def wait_for(self, pattern: str) -> str:
        """Wait for a line and return it."""
        wait_until(lambda: any(re.fullmatch(pattern, line) for line in self.lines), f"the line {pattern!r}")
        return next(line for line in self.lines if re.fullmatch(pattern, line))

    def close(self) -> None:
        if self._thread.is_alive():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"", self._socket.getsockname())
            self._thread.join()
        self._socket.close()


@pytest.fixture
def home() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home:  # pytest's own may be longer than a socket's name
        yield home


@pytest.fixture
def manager(request: pytest.FixtureRequest, home: str) -> Iterator[Manager]:
    manager = Manager(f"{getattr(request, 'param', '')}{home}/notify")
    yield manager
    manager.close()


def serve(live: Starter, server: str, name: str, **more: object) -> Running:
    """Start the application as a service; ``more`` are settings, or variables of its environment."""
    environ = {key: str(value) for key, value in more.items() if not key.startswith("LIFECYCLE_")}
    settings = {key: value for key, value in more.items() if key.startswith("LIFECYCLE_")}
    return live.serve(server, app="systemd_app.py", settings=settings, env={"NOTIFY_SOCKET": name, **environ})


@pytest.mark.parametrize(
    ("server", "manager"), [("waitress", ""), ("werkzeug", "@")], ids=["path", "abstract"], indirect=["manager"]
)
def test_a_service(live: Starter, server: str, manager: Manager) -> None:
    """A service is ready when the application is, counts what runs, and asks for time while it drains."""
    running = serve(live, server, manager.name, LIFECYCLE_GRACE_PERIOD=20)
    manager.wait_for("READY=1")
    assert get(running.address, "/environment").body.strip() == b"[]"
    with in_flight(running):
        manager.wait_for("STATUS=READY, 1 in flight")
        running.begin_stop()
        manager.wait_for("STOPPING=1")
        manager.wait_for(r"STATUS=stopping \(drain\), 1 in flight, 1\d s left")
    assert running.wait_gone() == 0
    manager.wait_for("STATUS=STOPPED: clean, exit 0")
    (stopping,) = (lines for _, lines in manager.heard if "STOPPING=1" in lines)
    assert "EXTEND_TIMEOUT_USEC=10000000" in stopping
    assert manager.lines.count("READY=1") == 1
    assert not any(line.startswith("WATCHDOG") for line in manager.lines)


def test_heartbeats_stop_with_liveness(live: Starter, manager: Manager) -> None:
    """Heartbeats come as long as liveness passes, not when its check hangs, and again in a stop."""
    running = serve(live, "waitress", manager.name, WATCHDOG_USEC=200_000)
    wait_until(lambda: manager.lines.count("WATCHDOG=1") >= 5, "five heartbeats")
    running.open_gate("hang")
    running.wait_event("hanging")
    heard = manager.lines.count("WATCHDOG=1")
    assert get(running.address, "/sleep/1.0").body == b"slept 1.0"
    assert manager.lines.count("WATCHDOG=1") <= heard + 1  # the one that was due when the check began to hang
    with hung_request(running, "a") as connection:
        running.begin_stop()
        wait_until(lambda: manager.lines.count("WATCHDOG=1") >= heard + 3, "heartbeats in the stop")
        running.open_gate("a")
        connection.answer()
    assert running.wait_gone() == 0


def test_a_manager_that_has_gone(live: Starter, home: str) -> None:
    """A manager that is gone is told of in the log once, and the service serves and stops as ever."""
    manager = Manager(f"{home}/notify")
    running = serve(live, "waitress", manager.name, WATCHDOG_USEC=200_000)
    manager.wait_for("WATCHDOG=1")
    manager.close()
    running.wait_log("cannot notify systemd")
    assert get(running.address, "/sleep/0.5").body == b"slept 0.5"
    assert running.stop() == 0
    assert running.log.count("cannot notify systemd at") == 1


def test_children_do_not_speak(live: Starter, manager: Manager) -> None:
    """A child that is forked while the service runs says nothing when it ends, and the service goes on speaking."""
    running = serve(live, "waitress", manager.name)
    child = int(get(running.address, "/fork").body)
    running.wait_event("forked")
    os.kill(child, 15)
    assert get(running.address, "/fast").body == b"fast"
    assert "STOPPING=1" not in manager.lines
    assert running.stop() == 0
    assert manager.lines.count("STOPPING=1") == 1


def test_a_server_of_its_own(live: Starter, manager: Manager) -> None:
    """Beside a server that is not ours the service is ready with its first request, and says when it stops."""
    env = {"NOTIFY_SOCKET": manager.name, "SYSTEMD_EXEC_PID": ""}
    command = (sys.executable, "-m", "flask", "--app", "systemd_app.py", "run", "-p", "0")
    running = live.start(
        "/bin/sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh", *command, plan={"logging": True}, env=env,
    )  # fmt: skip
    running.wait_for(lambda: running.addresses, "its listener")
    assert get(running.address, "/fast").body == b"fast"
    manager.wait_for("READY=1")
    running.stop()
    assert "STOPPING=1" in manager.lines


def test_reloads(live: Starter, manager: Manager) -> None:
    """The process that keeps the listeners speaks for those that serve: one reload, one stop."""
    options = ("--reload-on", "SIGHUP", "--reload-within", "20")
    env = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"}
    command = 'WATCHDOG_PID=$$ SYSTEMD_EXEC_PID=$$ exec "$@"'
    running = live.serve("waitress", *options, app="systemd_app.py", env=env, prefix=("/bin/sh", "-c", command, "sh"))
    manager.wait_for("READY=1")
    assert get(running.address, "/environment").body.strip() == b"[]"
    with in_flight(running):
        manager.wait_for("STATUS=READY, 1 in flight")
        running.send(signal.SIGHUP)
        manager.wait_for("RELOADING=1")
        wait_until(lambda: manager.lines.count("READY=1") == 2, "the end of the reload")
        running.wait_log("-> DRAINING")
        heard = manager.lines.count("WATCHDOG=1")
        wait_until(lambda: manager.lines.count("WATCHDOG=1") >= heard + 3, "the heartbeats of the next one")
    running.wait_log("shutdown complete")
    assert "STOPPING=1" not in manager.lines
    (reloading,) = (lines for _, lines in manager.heard if "RELOADING=1" in lines)
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", reloading[1])
    assert running.stop() == 0
    assert manager.lines.count("STOPPING=1") == 1
    manager.wait_for("STATUS=STOPPED: clean, exit 0")
