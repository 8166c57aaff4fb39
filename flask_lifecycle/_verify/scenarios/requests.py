"""Connections and requests in every stage at the moment of the shutdown."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from ..client import Connection, LostError, Response, request_head
from ..trial import ACCEPTED, ALL, STARTED, BrokenError, NotCheckedError, Trial, check_storms, scenario


@scenario("accept/queue", ALL, "fast")
def accept_queue(trial: Trial) -> str:
    """Connections that are in the kernel's accept queue when the signal arrives are answered."""
    with trial.subject.stopped():
        clients = [trial.connect() for _ in range(4)]  # the smallest default of a server's backlog is 5
        for client in clients:
            client.ask(trial.path("fast"))
        trial.stop()
    for client in clients:
        trial.expect(client, "fast")
    return f"{len(clients)} of {len(clients)} answered"


@scenario("accept/flood", ALL, "fast")
def accept_flood(trial: Trial) -> str:
    """Many connections arrive at once, just before and after the signal. Each is answered or refused."""
    clients = []
    for number in range(200):
        if number == 100:
            trial.stop()
        if (client := trial.connect_unless_gone()) is not None:
            client.ask(trial.path("fast"))
            clients.append(client)
    answered = 0
    for client in clients:
        try:
            trial.expect(client, "fast")
            answered += 1
        except LostError:
            if not client.held_up:
                raise
    return f"{answered} answered, {200 - len(clients)} refused"


def _storm(trial: Trial, keep: bool) -> str:
    with trial.storm(clients=6, keep=keep) as storm:
        trial.stop_and_wait()
    return f"{check_storms(storm)} answered, none lost"


@scenario("accept/storm", ALL, "fast")
def accept_storm(trial: Trial) -> str:
    """Clients that open a connection for each request, without a pause, lose none."""
    return _storm(trial, keep=False)


@scenario("accept/storm-kept", ALL, "fast")
def accept_storm_kept(trial: Trial) -> str:
    """Clients that send one request after another on keep-alive connections lose none."""
    return _storm(trial, keep=True)


def _hold_connections(trial: Trial, count: int, *, asked: bool) -> str:
    clients = [trial.connect() for _ in range(count)]
    if asked:
        for client in clients:
            client.get(trial.path("fast"))
    trial.stop()
    trial.exit(trial.grace / 2)
    return f"gone after {trial.subject.lasted:.1f} s"


@scenario("connections/idle", ACCEPTED, "fast")
def idle_connection(trial: Trial) -> str:
    """An idle keep-alive connection does not use up the grace period."""
    return _hold_connections(trial, 1, asked=True)


@scenario("connections/silent", ACCEPTED, "fast")
def silent_connection(trial: Trial) -> str:
    """A connection that never sends anything does not use up the grace period."""
    return _hold_connections(trial, 1, asked=False)


@scenario("connections/many-idle", ACCEPTED, "fast")
def many_idle(trial: Trial) -> str:
    """Fifty connections without a request do not use up the grace period."""
    return _hold_connections(trial, 50, asked=False)


@scenario("connections/close", ACCEPTED, "slow")
def says_close(trial: Trial) -> str:
    """A response that ends during the shutdown has Connection: close."""
    client = trial.begin("slow", 1.5)
    trial.stop()
    response = client.response()
    if response.status != 200 or not response.says_close:
        raise BrokenError(f"status {response.status}, Connection: {response.headers.get('connection', '(none)')}")
    return "Connection: close"


def _answered(trial: Trial, version: str) -> str:
    client = trial.begin("slow", 1.5, version=version)
    trial.stop()
    trial.expect(client, "slow")
    return "answered"


@scenario("in-flight/running", STARTED, "slow")
def running(trial: Trial) -> str:
    """A request that is running when the signal arrives is answered."""
    return _answered(trial, "1.1")


@scenario("in-flight/queued", ACCEPTED, "slow")
def queued(trial: Trial) -> str:
    """Requests that are waiting for a free worker when the signal arrives are answered."""
    trial.begin("slow", 1)
    clients = [trial.connect() for _ in range(12)]
    for client in clients:
        client.ask(trial.path("slow", 0.5))
    trial.settle()
    trial.stop()
    for client in clients:
        trial.expect(client, "slow")
    return f"{len(clients)} of {len(clients)} answered"


def _in_parts(trial: Trial, kind: str, *parts: bytes, pause: float = 0.0) -> str:
    """Send a first part, stop in the middle, send the others, and expect the response."""
    client = trial.connect()
    client.send(parts[0])
    hold = trial.begin("slow", 1.5) if trial.records("slow") else None  # the shutdown waits for it
    trial.settle()
    trial.stop()
    trial.settle()
    for part in parts[1:]:
        client.send(part)
        time.sleep(pause)
    trial.expect(client, kind)
    if hold is not None:
        trial.expect(hold, "slow")
    return "answered"


@scenario("in-flight/half-head", ACCEPTED, "fast", "slow")
def half_head(trial: Trial) -> str:
    """A request whose head has only partly arrived when the signal does is answered."""
    head = request_head(trial.path("fast"))
    return _in_parts(trial, "fast", head[:20], head[20:])


@scenario("in-flight/half-body", ACCEPTED, "upload", "slow")
def half_body(trial: Trial) -> str:
    """A request whose body has only partly arrived when the signal does is answered."""
    head = request_head(trial.path("upload"), "POST", 10)
    return _in_parts(trial, "upload", head + b"half-", b"other")


@scenario("in-flight/trickled", ACCEPTED, "upload", "slow")
def trickled(trial: Trial) -> str:
    """A request that arrives byte by byte during the shutdown is answered."""
    head = request_head(trial.path("upload"), "POST", 10)
    return _in_parts(trial, "upload", head, *(b"%d" % number for number in range(10)), pause=0.05)


def _must_work(trial: Trial, what: str, act: Callable[[Connection], int]) -> None:
    """Whether the server does this at all, before the shutdown."""
    with Connection(trial.subject.address, min(5.0, trial.subject.patience)) as client:
        try:
            status = act(client)
        except (LostError, OSError, ValueError):
            status = 0
    if status != 200:
        raise NotCheckedError(f"the server does not answer {what} even without a shutdown")


@scenario("in-flight/chunked", ACCEPTED, "upload", "slow")
def chunked(trial: Trial) -> str:
    """A request whose chunked body has only partly arrived when the signal does is answered."""
    head = request_head(trial.path("upload"), "POST", Transfer_Encoding="chunked")
    parts = head + b"5\r\nhalf-\r\n", b"5\r\nother\r\n0\r\n\r\n"

    def act(client: Connection) -> int:
        client.send(parts[0] + parts[1])
        return client.response().status

    _must_work(trial, "a chunked request", act)
    return _in_parts(trial, "upload", *parts)


@scenario("in-flight/expect", ACCEPTED, "upload", "slow")
def expect_continue(trial: Trial) -> str:
    """A client that is waiting for 100 Continue when the signal arrives gets it, and its request is answered."""
    head = request_head(trial.path("upload"), "POST", 5, Expect="100-continue")

    def act(client: Connection) -> int:
        client.send(head)
        if not client.sock.recv(1024).startswith(b"HTTP/1.1 100"):
            return 0
        client.send(b"other")
        return client.response().status

    _must_work(trial, "Expect: 100-continue", act)
    return _in_parts(trial, "upload", head, b"other")


@scenario("in-flight/pipelined", ACCEPTED, "fast", "slow")
def pipelined(trial: Trial) -> str:
    """Each pipelined request is answered, unless an earlier response has Connection: close."""
    client = trial.begin("slow", 1)
    client.send(request_head(trial.path("fast")) * 2)
    trial.stop()
    answered = 0
    for _ in range(3):
        response = client.response()
        if response.status != 200:
            raise BrokenError(f"status {response.status} instead of 200")
        answered += 1
        if response.says_close:
            break
    return f"{answered} of 3 answered" + ("" if answered == 3 else ", then Connection: close")


@scenario("in-flight/streamed", STARTED, "stream")
def streamed(trial: Trial) -> str:
    """A response that is being streamed when the signal arrives reaches its end."""
    client = trial.begin("stream", 2)
    trial.stop()
    trial.expect(client, "stream")
    return "whole"


def _read_slowly(trial: Trial, kind: str) -> str:
    client = trial.connect(slow=True)
    client.ask(trial.path(kind))
    status, headers = client.head()
    trial.stop()
    trial.settle()
    response = Response(status, headers, client.body(headers))
    trial.check(response, kind)
    return f"{len(response.body)} bytes"


@scenario("in-flight/slow-reader", STARTED, "large")
def slow_reader(trial: Trial) -> str:
    """A client that reads a large response slowly gets all of it."""
    return _read_slowly(trial, "large")


@scenario("in-flight/sendfile", STARTED, "file")
def sendfile(trial: Trial) -> str:
    """A client that reads a file slowly gets all of it."""
    return _read_slowly(trial, "file")


_UPGRADE = {
    "Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip
_TEXT, _CLOSE = 0x81, 0x88  # the first byte of a frame


def _send_message(client: Connection, text: bytes) -> None:
    """Send a message of a websocket, masked with zeros."""
    client.send(bytes([_TEXT, 0x80 | len(text)]) + bytes(4) + text)


def _frame(client: Connection) -> tuple[int, bytes]:
    """The kind and the content of a server's frame, which has less than 126 bytes."""
    kind, size = client.exactly(2)
    return kind, client.exactly(size)


@scenario("in-flight/websocket", STARTED, "websocket")
def websocket(trial: Trial) -> str:
    """A websocket that is open when the signal arrives gets a close frame, or an answer to its next message."""
    client = trial.connect()
    client.send(request_head(trial.path("websocket"), **_UPGRADE))
    if (status := client.head()[0]) != 101:
        raise NotCheckedError(f"even without a shutdown, the server answers {status} to the request for a websocket")
    _send_message(client, b"before")
    if _frame(client) != (_TEXT, b"before"):
        raise NotCheckedError("even without a shutdown, the websocket does not echo")
    trial.stop()
    trial.settle()
    if not select.select([client.sock], [], [], 0)[0]:
        _send_message(client, b"after")
    kind, content = _frame(client)
    if kind == _CLOSE:
        return "a close frame"
    if (kind, content) != (_TEXT, b"after"):
        raise BrokenError(f"a frame {kind:#x} {content!r}")
    return "answered"


@scenario("in-flight/http-1.0", STARTED, "slow")
def http_10(trial: Trial) -> str:
    """An HTTP/1.0 request that is running when the signal arrives is answered."""
    return _answered(trial, "1.0")


@scenario("in-flight/half-closed", STARTED, "slow")
def half_closed(trial: Trial) -> str:
    """A client that has closed its sending side is answered."""

    def act(client: Connection) -> int:
        client.ask(trial.path("slow", 0.1))
        client.sock.shutdown(socket.SHUT_WR)
        return client.response().status

    _must_work(trial, "a half-closed client", act)
    client = trial.begin("slow", 1.5)
    client.sock.shutdown(socket.SHUT_WR)
    trial.stop()
    trial.expect(client, "slow")
    return "answered"
