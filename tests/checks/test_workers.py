"""The check of the worker pool, and the load of the servers; real processes are in the live tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import pytest
from waitress.server import create_server

from flask_lifecycle import Lifecycle
from flask_lifecycle._core.inflight import Load
from flask_lifecycle._servers import create
from flask_lifecycle._servers.waitress import Waitress
from flask_lifecycle.checks import WorkerPoolCheck
from tests._fakes import BOUND, FakeServer, make_app, state_of, until, whole


def status_of(load: Load | None, **thresholds: Any) -> tuple[str, str]:
    result = WorkerPoolCheck(lambda: load, **thresholds)()
    return result.status, result.output


# -- the check ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "thresholds", "status", "output"),
    [
        (Load(0, 4, 0), {}, "pass", ""),
        (Load(0, 4, 4, 9.0), {}, "pass", ""),
        (Load(3, 4, 4), {}, "pass", ""),
        (Load(4, 4, 4), {}, "warn", "4 requests wait for a worker."),
        (Load(400, 4, 4), {}, "warn", "400 requests wait for a worker."),
        (Load(4, 4, 4), {"warn_queue": 5}, "pass", ""),
        (Load(5, 4, 4), {"warn_queue": 5}, "warn", "5 requests wait for a worker."),
        (Load(9, 4, 4), {"fail_queue": 10}, "warn", "9 requests wait for a worker."),
        (Load(10, 4, 4), {"fail_queue": 10}, "fail", "10 requests wait for a worker."),
        (Load(0, 4, 3, 29.9), {"max_age": 30}, "pass", ""),
        (Load(0, 4, 3, 30.0), {"max_age": 30}, "warn", "A request is 30.0 s old."),
        (Load(0, 4, 4, 30.0), {"max_age": 30}, "fail", "All 4 workers are busy, and a request is 30.0 s old."),
        (Load(0, None, 4, 30.0), {"max_age": 30}, "warn", "A request is 30.0 s old."),
        (Load(0, None, None, 1.0), {"fail_queue": 1}, "pass", ""),
        (Load(0, 0, 0), {}, "pass", ""),  # at its end it has no threads any more
        (None, {"max_age": 1}, "pass", "The server of this process does not report its load."),
    ],
)
def test_the_load_decides(load: Load | None, thresholds: dict[str, Any], status: str, output: str) -> None:
    """The queue has its thresholds; an old request warns, and fails if no thread is idle."""
    assert status_of(load, **thresholds) == (status, output)
    result = WorkerPoolCheck(lambda: Load(2, 4, 3, 1.23456))()
    assert result.observed == {"queued": 2, "threads": 4, "busy": 3, "idle": 1, "oldest": 1.235}
    assert (result.value, result.unit) == (2, "requests")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"load": 5}, TypeError, "'load' must be a function without arguments, not 5."),
        ({"warn_queue": 0}, ValueError, "'warn_queue' must be a number of requests greater than zero, not 0."),
        (
            {"fail_queue": float("nan")},
            ValueError,
            "'fail_queue' must be a number of requests greater than zero, not nan.",
        ),
        (
            {"warn_queue": 9, "fail_queue": 5},
            ValueError,
            "'warn_queue' must not be more than 'fail_queue', or it never warns: 9 and 5.",
        ),
        (
            {"max_age": -1},
            ValueError,
            "'max_age' must be a number of seconds greater than zero, at most 31536000, not -1.",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Each bad argument is an error of one sentence, at construction."""
    with pytest.raises(kind, match=whole(message)):
        WorkerPoolCheck(**arguments)


# -- how it finds the server ----------------------------------------------------------------------------------------


def test_the_server_is_found_by_the_application_context() -> None:
    """The extension knows the server of the process; without one the check passes and says so."""
    app = make_app()
    lifecycle = Lifecycle(app)
    check = WorkerPoolCheck()
    lifecycle.add_check(check)
    assert (check.name, check.scope) == ("workers", "local")

    @app.get("/look")
    def look() -> str:
        until(lambda: check().observed["oldest"] > 0)  # this request, which the server does not know
        return "seen"

    with app.app_context():
        assert astuple(check())[:2] == ("pass", "The server of this process does not report its load.")
        state_of(app).process.shutdown.server = FakeServer()
        assert check().observed["oldest"] == 0
        assert app.test_client().get("/look", buffered=True).text == "seen"
        assert check().observed["oldest"] == 0


def test_a_server_that_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search looks at all objects of the process, so it runs until it succeeds, and never again."""
    app = make_app()
    Lifecycle(app)
    serving = state_of(app).serving
    found = [None, FakeServer(), None]
    monkeypatch.setattr(serving, "find", lambda: found.pop(0))
    assert serving.load() is None
    assert serving.load() == Load(0)
    assert serving.load() == Load(0)
    assert len(found) == 1


# -- the load of servers --------------------------------------------------------------------------------------------


class Gated:
    """An application whose requests wait for the test."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.begun.release()
        self.gate.wait(BOUND)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def wait_begun(self, times: int) -> None:
        for _ in range(times):
            assert self.begun.acquire(timeout=BOUND)


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Sockets that are closed in the end."""
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.close()


def ask(clients: list[socket.socket], port: int, path: str = "/") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), BOUND)
    clients.append(sock)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    return sock


def read_answer(sock: socket.socket) -> None:
    """Read to the end of the body, which may come by itself."""
    data = b""
    while not data.endswith(b"\r\n\r\nok"):
        more = sock.recv(1000)
        assert more
        data += more


def test_the_load_of_waitress(clients: list[socket.socket]) -> None:
    """Threads, busy ones, the queue and the oldest request; a probe in a dedicated worker is not part of it."""
    app = Gated()
    runner = create("waitress", app, None, 0, {"threads": 2})
    runner.use_probe_workers(lambda path: "live" if path == "/livez" else None)
    [address] = runner.addresses()
    port = int(address.rpartition(":")[2])
    thread = threading.Thread(target=runner.serve)
    thread.start()
    try:
        until(lambda: runner.load() == Load(0, 2, 0, 0.0))
        probe = ask(clients, port, "/livez")
        app.wait_begun(1)
        assert runner.load() == Load(0, 2, 0, 0.0)
        work = [ask(clients, port) for _ in range(5)]
        app.wait_begun(2)
        until(lambda: astuple(runner.load())[:3] == (3, 2, 2))  # type: ignore[arg-type]
        first = runner.load()
        until(lambda: runner.load().oldest > first.oldest)  # type: ignore[union-attr]
        app.gate.set()
        for sock in (probe, *work):
            read_answer(sock)
        until(lambda: runner.load() == Load(0, 2, 0, 0.0))
    finally:
        app.gate.set()
        runner.stop_accepting(BOUND)
        runner.wait_idle(BOUND, 0)
        runner.stop()
        thread.join(BOUND)


def test_the_load_of_werkzeug(clients: list[socket.socket]) -> None:
    """There is no pool; a connection counts from the request to the end of the response."""
    app = Gated()
    runner = create("werkzeug", app, None, 0, {})
    [address] = runner.addresses()
    port = int(address.rpartition(":")[2])
    thread = threading.Thread(target=runner.serve)
    thread.start()
    try:
        clients.append(socket.create_connection(("127.0.0.1", port)))  # says nothing, and counts for nothing
        assert runner.load() == Load(0, None, 0, 0.0)
        work = [ask(clients, port) for _ in range(3)]
        app.wait_begun(3)
        load = runner.load()
        assert load is not None
        assert astuple(load)[:3] == (0, None, 3)
        assert load.idle is None
        app.gate.set()
        for sock in work:
            read_answer(sock)
        until(lambda: runner.load() == Load(0, None, 0, 0.0))
    finally:
        app.gate.set()
        runner.stop_accepting(BOUND)
        for sock in clients:
            sock.close()
        runner.wait_idle(BOUND, 0)
        runner.stop()
        thread.join(BOUND)


def test_the_load_of_somebody_elses_waitress(clients: list[socket.socket]) -> None:
    """Its threads and queue are counted once, however many listeners share them."""
    app = Gated()
    channels: dict[int, Any] = {}
    server = create_server(app, map=channels, listen="127.0.0.1:0 127.0.0.1:0", threads=2)
    listeners = [each for each in channels.values() if hasattr(each, "task_dispatcher")]
    adapter = Waitress()
    adapter.adopt(listeners, [])
    load = adapter.load
    port = listeners[0].socket.getsockname()[1]
    over = threading.Event()

    def serve() -> None:
        from waitress import wasyncore

        while not over.is_set():
            wasyncore.loop(timeout=0.05, map=channels, count=1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        until(lambda: load() == Load(0, 2, 0, 0.0))
        work = [ask(clients, port) for _ in range(5)]
        app.wait_begun(2)
        until(lambda: astuple(load())[:3] == (3, 2, 2))
        until(lambda: load().oldest > 0)
        assert load().idle == 0
        app.gate.set()
        for sock in work:
            read_answer(sock)
        until(lambda: load() == Load(0, 2, 0, 0.0))
    finally:
        app.gate.set()
        over.set()
        thread.join(BOUND)
        listeners[0].task_dispatcher.shutdown(timeout=BOUND)
        server.close()
