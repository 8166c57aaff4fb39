"""The adapter of cheroot, on its own server in this process: what the live tests cannot force."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path
from typing import Any

import cheroot.connections
import pytest
from cheroot.server import HTTPServer
from cheroot.ssl.builtin import BuiltinSSLAdapter

from flask_lifecycle._servers import sockets
from flask_lifecycle._servers.cheroot import find
from flask_lifecycle._servers.discovery import handshakes
from tests._fakes import BOUND, served, until
from tests._tls import Authority
from tests.live._client import Connection, request_head
from tests.servers.test_run import app


@pytest.mark.parametrize(
    ("where", "name", "after"),
    [
        (cheroot.connections, "prevent_socket_inheritance", False),
        (HTTPServer, "process_conn", False),
        (queue.Queue, "get", True),
    ],
    ids=["in the accept", "in the loop", "in a worker"],
)
def test_a_connection_on_its_way_to_a_worker_of_cheroot(
    where: Any, name: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bad interleaving: its thread gets no time while the drain looks, and cheroot lists it nowhere."""
    held, released, step = threading.Event(), threading.Event(), getattr(where, name)

    def hold(*arguments: Any) -> Any:
        result = step(*arguments) if after else None
        held.set()
        released.wait(BOUND)
        return result if after else step(*arguments)

    monkeypatch.setattr(where, name, hold)
    with served("cheroot", app) as subject, Connection(subject.address) as client:
        client.send(request_head("/"))
        assert held.wait(BOUND)
        try:
            subject.begin_drain()
            assert not subject.runner.wait_idle(0.0, 0.0)
        finally:
            released.set()
        assert client.response().body == b"body"


def test_an_expired_connection_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop, which expires kept connections, hangs them up and leaves the lingering to a worker."""
    lingers: list[threading.Thread] = []
    monkeypatch.setattr(sockets, "linger", lambda *_arguments: lingers.append(threading.current_thread()))
    with served("cheroot", app) as subject, Connection(subject.address) as client:
        client.get("/")
        subject.runner.announce()
        ((connection, _requests),) = subject.runner.requests()
        connection.server._connections._expire(time.time() + BOUND)
        assert client.rest() == b""
    assert threading.current_thread() not in lingers


def test_connections_are_not_listed_for_longer_than_they_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed ones leave the list at once; so does one that its client resets, and that cheroot then forgets."""
    with served("cheroot", app) as subject:
        subject.runner.announce()
        with Connection(subject.address) as client:
            client.get("/")
        until(lambda: not subject.runner.opened)
        forgotten: list[Any] = []
        monkeypatch.setattr(HTTPServer, "process_conn", lambda _server, connection: forgotten.append(connection))
        lost = Connection(subject.address)
        until(lambda: forgotten == [each for each, _ in subject.runner.requests()] != [])
        monkeypatch.undo()
        lost.reset()
    forgotten[0].close()


def test_a_tls_handshake_that_is_never_begun(tmp_path: Path) -> None:
    """It takes place in the loop, and is hung up after the linger and not after cheroot's timeout."""
    certificate = str(Authority(tmp_path).issue("server"))
    with served("cheroot", app, timeout=2 * BOUND) as subject:
        subject.runner._servers[0].ssl_adapter = BuiltinSSLAdapter(certificate, certificate)
        with socket.create_connection(subject.address):
            until(lambda: len(handshakes()) == 1)
            subject.begin_drain()
            assert subject.runner.wait_idle(BOUND, 0.0)


def test_what_follows_a_request_over_tls(tmp_path: Path) -> None:
    """A response in a shutdown looks for a further request behind an unread body, as far as TLS shows it."""
    authority = Authority(tmp_path)
    certificate = str(authority.issue("server"))
    with served("cheroot", app) as subject:
        subject.runner._servers[0].ssl_adapter = BuiltinSSLAdapter(certificate, certificate)
        subject.runner.announce()
        sock = authority.trusting().wrap_socket(socket.create_connection(subject.address), server_hostname="localhost")
        with Connection(subject.address, sock=sock) as client:
            client.send(request_head("/", "POST", 10) + b"1234567890")
            assert client.response().body == b"body"


def test_a_server_with_pyopenssl() -> None:
    """Its connections do not behave like sockets, so the server is only watched."""
    with served("cheroot", app) as subject:
        subject.runner._servers[0].ssl_adapter = type("", (), {"__module__": "cheroot.ssl.pyopenssl"})()
        adapter: Any = find()
        assert (adapter.name, adapter.guarantee) == ("cheroot", "started requests")
