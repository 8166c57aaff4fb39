"""Listeners beside others at one address (``SO_REUSEPORT``), and how one of two leaves."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flask_lifecycle.servers import RUNNERS, _closing, _diag, _reuseport, create
from tests._fakes import BOUND, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the groups of listeners are those of Linux")


@pytest.fixture
def one() -> Iterator[socket.socket]:
    """A listener that others may join."""
    (sock,) = _reuseport.listen(None, 0, {})
    with sock:
        yield sock


@pytest.fixture
def two(one: socket.socket) -> Iterator[socket.socket]:
    """The one that has joined it."""
    (sock,) = _reuseport.listen(None, one.getsockname()[1], {})
    with sock:
        yield sock


def connect(to: socket.socket, times: int) -> None:
    for _ in range(times):
        socket.create_connection(to.getsockname(), BOUND).close()


def waiting(sock: socket.socket) -> int:
    """Accept what waits, and count it."""
    sock.setblocking(False)
    count = 0
    while True:
        try:
            sock.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_listeners_of_an_address_are_counted(one: socket.socket) -> None:
    """Those at the same address are counted, and no other of the same port."""
    port = one.getsockname()[1]
    assert _diag.listeners_at(one) == 1
    (two,) = _reuseport.listen("127.0.0.1", port, {})
    with two, socket.create_server(("127.0.0.2", port)):
        assert _diag.listeners_at(one) == _diag.listeners_at(two) == 2
        assert _reuseport.has_one_sibling(one)
        (three,) = _reuseport.listen("127.0.0.1", port, {})
        with three:
            assert not _reuseport.has_one_sibling(one)
            assert _reuseport.is_shared(one)


def test_who_has_no_sibling(monkeypatch: pytest.MonkeyPatch, one: socket.socket, two: socket.socket) -> None:
    """A Unix socket and a listener that shares with nobody have none; nor has one of which the kernel does not tell."""
    with socket.socket(socket.AF_UNIX) as unix, socket.create_server(("127.0.0.1", 0)) as alone:
        assert not _reuseport.has_one_sibling(unix)
        assert not _reuseport.has_one_sibling(alone)
        assert not _reuseport.is_shared(alone)

    def refuse(sock: socket.socket) -> int:
        raise OSError("the kernel does not tell")

    monkeypatch.setattr(_diag, "listeners_at", refuse)
    assert not _reuseport.has_one_sibling(one)
    assert _reuseport.is_shared(one)


def test_a_shared_listener_keeps_its_devices(
    one: socket.socket, two: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is dealt to a listener of a group would not be refused by it, so only the socket filter will do."""
    monkeypatch.setattr(_closing, "attach_syn_filter", lambda sock: False)
    assert _closing.deafen(one) is None
    assert one.getsockopt(socket.SOL_SOCKET, _closing._SO_BINDTOIFINDEX) == 0
    two.close()
    assert _closing.deafen(one) == "no device"


@pytest.mark.parametrize("index", [0, 1])
def test_the_kernel_deals_as_it_is_told(one: socket.socket, two: socket.socket, index: int) -> None:
    """All new connections go to the listener of the index; once a third comes, the kernel deals to all again."""
    assert _reuseport.deal_to(one, index)
    connect(one, 20)
    assert (waiting(one), waiting(two)) == ((20, 0) if index == 0 else (0, 20))
    (three,) = _reuseport.listen(None, one.getsockname()[1], {})
    with three:
        connect(one, 60)
        assert all(waiting(sock) for sock in (one, two, three))


def test_a_kernel_that_does_not_deal() -> None:
    """Where the kernel takes no program, that is said."""
    with socket.socket(socket.AF_UNIX) as sock:
        assert not _reuseport.deal_to(sock, 0)


@pytest.mark.parametrize(
    ("host", "port", "options", "message"),
    [
        (
            None,
            None,
            {"unix_socket": "/tmp/s"},
            "'reuse_port' cannot be combined with 'unix_socket' or 'sockets'; it is",
        ),
        (None, 80, {"listen": ":80"}, "A host or port cannot be combined with 'listen'; give one of them."),
        (None, None, {"listen": "127.0.0.1"}, "'127.0.0.1' is no address to listen on; write it as 127.0.0.1:5000 or"),
    ],
)
def test_addresses_that_are_none(host: str | None, port: int | None, options: dict[str, Any], message: str) -> None:
    """It is for hosts and ports, and says so."""
    with pytest.raises(ValueError, match=f"^{message}"):
        _reuseport.listen(host, port, options)


def test_an_address_that_is_taken() -> None:
    """One that shares with nobody is in the way, and none of the others stays open."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:0 127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="it is in use by another program"):
            _reuseport.listen(None, None, {"listen": where})


def test_ipv6() -> None:
    """An IPv6 address may be shared as well."""
    (six,) = _reuseport.listen("::1", 0, {})
    with six:
        (other,) = _reuseport.listen(None, None, {"listen": f"[::1]:{six.getsockname()[1]}"})
        with other:
            assert _reuseport.has_one_sibling(six)


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Serving:
    """A server at a shared address, in a thread of its own."""

    def __init__(self, server: str, port: int) -> None:
        self.runner: Any = create(server, wsgi, None, port, lambda path: None, {"reuse_port": True})
        self.port = int(self.runner.addresses()[0].rpartition(":")[2])
        self._thread = threading.Thread(target=self.runner.serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.runner.stop_accepting(BOUND)
        assert self.runner.wait_idle(BOUND, 0.0)
        self.runner.stop()
        self._thread.join(BOUND)
        assert not self._thread.is_alive()


class Clients:
    """Clients that ask again and again, each time on a new connection."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), BOUND) as client:
                    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = client.recv(100)
                assert answer[8:12] == b" 200", answer
                self.answered += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def wait_for_more(self) -> None:
        seen = self.answered
        until(lambda: self.answered > seen + 20)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("server", RUNNERS)
@pytest.mark.parametrize("who", ["older", "newer"])
def test_one_of_two_leaves(
    server: str, who: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of two leaves under load loses nobody, with no capability: the other gets what comes."""
    monkeypatch.setattr(_closing, "attach_syn_filter", lambda sock: False)
    caplog.set_level("INFO", "flask_lifecycle")
    servers = [Serving(server, 0)]
    clients = Clients(servers[0].port)
    servers.append(Serving(server, servers[0].port))
    clients.wait_for_more()
    leaving = servers.pop(0 if who == "older" else 1)
    leaving.stop()
    clients.wait_for_more()
    clients.end()
    assert clients.failures == []
    assert "listener closed (reuse port)" in caplog.messages
    servers[0].stop()
