"""Hostile clients: ambiguous heads, bodies that claim to be requests, connections that hold resources."""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ._client import PATIENCE, Address, Connection, LostError, get, request_head
from ._process import BIG, Running, Starter
from .test_probes import PROBE_LISTENER, probe_address

FAST = request_head("/fast")
SMUGGLED = request_head("/sleep/0.0")  # tells an event when it is run

REFUSED_HEADS = {
    "version": (400, b"GET / HTTP/x.y\r\nHost: localhost\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a b\r\n\r\n"),
    "long URI": (414, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "many headers": (431, request_head("/fast", **{f"X-{n}": "y" for n in range(200)})),
}


def test_heads_that_http_server_refuses(live: Starter) -> None:
    """A head that Werkzeug's base class refuses before there are headers: the client reads why, without a traceback."""
    running = live.serve("werkzeug")
    for name, (status, head) in REFUSED_HEADS.items():
        with Connection(running.address) as connection:
            connection.send(head)
            # To a version that it does not understand http.server answers as to HTTP/0.9, without a head.
            assert b"Error code: %d" % status in connection.rest(), name
    assert get(running.address, "/fast").status == 200
    assert running.stop() == 0


def post(*fields: str) -> bytes:
    """Write a POST with fields as they are, a smuggled request for its body."""
    lines = ["POST /refuse HTTP/1.1", "Host: localhost", *fields, "", ""]
    return "\r\n".join(lines).encode() + SMUGGLED


LENGTH = len(SMUGGLED)
SMUGGLERS = {
    "two lengths": post("Content-Length: 0", f"Content-Length: {LENGTH}"),
    "two lengths of a GET": post("Content-Length: 0", f"Content-Length: {LENGTH}").replace(b"POST", b"GET", 1),
    "list of lengths": post(f"Content-Length: 0, {LENGTH}"),
    "signed length": post(f"Content-Length: +{LENGTH}"),
    "blank before the colon": post(f"Content-Length : {LENGTH}"),
    "line without a colon": post("Foo", f"Content-Length: {LENGTH}"),
    "empty encoding": post("Transfer-Encoding: ", "Transfer-Encoding: chunked"),
    "blank before the encoding's colon": post("Transfer-Encoding : chunked"),
    "length and encoding": post(f"Content-Length: {LENGTH}", "Transfer-Encoding: chunked"),
    "unknown encoding": post("Transfer-Encoding: xchunked"),
}


def test_body_is_never_run_as_a_request(live: Starter, server: str) -> None:
    """A head with two readings ends the connection: no body runs as a second request; empty lines are skipped."""
    running = live.serve(server)
    for empty in (b"\r\n", b"\r\n\r\n"):
        with Connection(running.address) as connection:
            connection.send(empty + FAST + empty + FAST)
            answered = 1 if server == "werkzeug" else 2
            assert [connection.answer().body for _ in range(answered)] == [b"fast"] * answered
    for name, request in SMUGGLERS.items():
        with Connection(running.address) as connection:
            connection.send(request)
            assert connection.rest().count(b"HTTP/1.") <= 1, name
            assert running.told("begin /sleep/0.0") == [], name
    assert running.stop() == 0
    assert running.told("begin /sleep/0.0") == []


def test_answers_of_another_length_than_they_said(live: Starter, server: str) -> None:
    """What follows on a connection is never taken for a part of an answer that is shorter or longer than it says."""
    running = live.serve(server, excuse="raised in the body")
    for path in ("/misframed/50", "/misframed/50?raise"):
        with Connection(running.address) as connection:
            connection.send(request_head(path) + FAST)
            status, headers = connection.head()
            assert (status, headers["content-length"]) == (200, "100")
            assert connection.rest() == b"x" * 50
    with Connection(running.address) as connection:
        connection.send(request_head("/raise-in-body") + FAST)
        connection.head()
        assert connection.rest().lower() == b"a\r\none chunk\n\r\n"
    with Connection(running.address) as connection:
        connection.send(request_head("/misframed/150") + request_head("/fast", Connection="close"))
        assert connection.answer().body == b"x" * 100
        behind = connection.rest()
    assert behind == b"x" * 50 or behind.startswith(b"HTTP/1.1 200 OK\r\n")
    assert running.stop() == 0


def test_dribbling_clients_of_the_probe_listener(live: Starter) -> None:
    """Connections that send a byte now and then do not block a prober; each is hung up after five seconds."""
    running = live.serve("waitress", settings=PROBE_LISTENER)
    probes = probe_address(running)
    with contextlib.ExitStack() as stack:
        dribblers = [stack.enter_context(Connection(probes)) for _ in range(64)]
        for piece in (b"GET /livez HTTP/1.1\r\nX-A: ", b"a", b"a", b"a"):
            for connection in dribblers:
                with contextlib.suppress(LostError):  # those that had to make room
                    connection.send(piece)
            assert get(probes, "/livez").status == 200
        last = dribblers[-1]
        end = time.monotonic() + PATIENCE
        while not select.select([last.sock], [], [], 0.5)[0] and time.monotonic() < end:
            last.send(b"a")
        with contextlib.suppress(LostError):  # a reset, for bytes that were not read any more
            assert last.receive() == b""
        assert time.monotonic() < end
        assert running.stop() == 0


EXPENSIVE: dict[str, tuple[str, dict[str, str]]] = {
    "Accept": ("/livez", {"Accept": f"a/b{' ' * 30_000}x"}),
    "types": ("/readyz", {"Accept": "a/b," * 10_000}),
    "sign-in": ("/healthcheck?login", {"Accept": f"a/b{' ' * 30_000}x"}),
    "query": (f"/livez?{'a&' * 20_000}", {}),
    "exclude": (f"/readyz?{'exclude=db&' * 4_000}", {}),
    "cookies": ("/livez", {"Cookie": "a=b; " * 8_000}),
    "connection": ("/livez", {"Connection": "x," * 15_000}),
}


def test_heads_that_are_made_to_be_expensive(live: Starter, server: str) -> None:
    """No header and no query of a probe keeps a processor busy: forty cost less than one parsed in n² steps."""
    running = live.serve(server, settings=PROBE_LISTENER)
    for address in (running.address, probe_address(running)):
        get(address, "/healthcheck")
        before = running.processor_time()
        for path, headers in EXPENSIVE.values():
            for _ in range(3):
                with Connection(address) as connection:
                    connection.send(request_head(path, **headers))
                    connection.answer()
        assert running.processor_time() - before < 2.0
        assert get(address, "/livez").status == 200
    assert running.stop() == 0


def connect_many(stack: contextlib.ExitStack, address: Address, count: int, said: bytes) -> list[Connection]:
    """Make connections that send the same; those that are hung up meanwhile are as good as the others."""
    connections = [stack.enter_context(Connection(address)) for _ in range(count)]
    for connection in connections:
        with contextlib.suppress(LostError):
            connection.send(said)
    return connections


@contextlib.contextmanager
def drip(connections: list[Connection]) -> Iterator[None]:
    """Send a byte on each connection every half second."""
    enough = threading.Event()

    def send() -> None:
        while not enough.wait(0.5):
            for connection in connections:
                with contextlib.suppress(LostError):
                    connection.send(b"x")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join(PATIENCE)


def test_probe_listener_under_attack(live: Starter) -> None:
    """Beside slow, half-open and silent clients each prober is answered; memory, descriptors and threads return."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("a process may not have that many connections here")
    running = live.serve("waitress", settings=PROBE_LISTENER)
    probes = probe_address(running)
    get(probes, "/livez")
    before = running.resources()
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    try:
        with contextlib.ExitStack() as stack:
            request = request_head("/livez")
            stack.enter_context(drip(connect_many(stack, probes, 100, request + b"x" * 9_000)))
            connect_many(stack, probes, 600, request[:20])
            connect_many(stack, probes, 200, b"")
            for _ in range(20):
                assert get(probes, "/livez").status == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    running.wait_for(lambda: running.resources().descriptors <= before.descriptors, "no descriptor more than before")
    running.wait_for(lambda: running.resources().threads <= before.threads, "no thread more than before")
    assert running.resources().peak - before.peak < 30_000
    assert running.stop() == 0


def test_uploads_do_not_fill_the_memory(live: Starter) -> None:
    """What clients send to the probe listener behind their requests is neither kept nor read to its end."""
    running = live.serve("waitress", settings=PROBE_LISTENER)
    probes = probe_address(running)
    get(probes, "/livez")
    before = running.resources()
    with contextlib.ExitStack() as stack:
        request = request_head("/livez", "POST", 9_000_000)
        for connection in connect_many(stack, probes, 60, request):
            connection.sock.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    connection.sock.send(b"x" * 100_000)
        assert get(probes, "/livez").status == 200
        assert running.resources().peak - before.peak < 30_000
    assert running.stop() == 0


DESCRIPTORS = 64


def take_all_descriptors(live: Starter, server: str, stack: contextlib.ExitStack) -> tuple[Running, list[Connection]]:
    """Start a process with few descriptors, and take what is left for connections with half a head."""
    prefix = ("sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh")
    running = live.serve(server, prefix=prefix, excuse="Too many open files|During handling of the above exception")
    opened = Path(f"/proc/{running.target}/fd")
    free = DESCRIPTORS - len(list(opened.iterdir()))
    half = [stack.enter_context(Connection(running.address)) for _ in range(free)]
    for connection in half:
        connection.send(FAST[:20])
    running.wait_for(lambda: len(list(opened.iterdir())) == DESCRIPTORS, "no descriptor left")
    return running, half


def test_no_descriptors_left_at_the_signal(live: Starter, server: str) -> None:
    """Connections for which there are no descriptors when the signal comes are answered when some come free."""
    with contextlib.ExitStack() as stack:
        running, half = take_all_descriptors(live, server, stack)
        queued = [stack.enter_context(Connection(running.address)) for _ in range(12)]
        for connection in queued:
            connection.send(FAST)
        running.begin_stop()
        # Longer than a stop waits for handshakes, so that it is the descriptors that it waits for.
        assert not running.gone.wait(1.5)
        for connection in half:
            with connection:
                connection.send(FAST[20:])
                assert connection.answer().body == b"fast"
        for connection in queued:
            with connection:
                assert connection.answer().body == b"fast"
        assert running.wait_gone() == 0


def test_answered_without_descriptors_is_not_in_flight(live: Starter, server: str) -> None:
    """A request that is answered when no descriptor is left is over, and not in flight for ever."""
    with contextlib.ExitStack() as stack:
        running, half = take_all_descriptors(live, server, stack)
        for connection in half:
            with connection:
                connection.send(FAST[20:])
                assert connection.answer().body == b"fast"
        running.wait_for(lambda: get(running.address, "/in-flight").body == b"1", "only the asking request in flight")
        assert running.stop() == 0


def test_upload_that_is_refused_early(live: Starter, server: str) -> None:
    """A client whose upload is refused may send all of it, then reads why; also during the shutdown."""
    piece, pieces = b"x" * (1 << 19), 64
    options = ["--option", "max_request_body_size=1000"] if server == "waitress" else []
    running = live.serve(server, *options, settings={"LIFECYCLE_KEEPALIVE_LINGER": 15.0})
    for stopping in (False, True):
        with Connection(running.address) as connection:
            connection.send(request_head("/refuse", "POST", len(piece) * pieces))
            for number in range(pieces):
                connection.send(piece)
                if stopping and number == 0:
                    running.begin_stop()
                assert not running.gone.wait(0.01)
            assert connection.answer().status == 413
    assert running.wait_gone() == 0


def test_half_closed_slow_reader(live: Starter, server: str) -> None:
    """A client that has ended its input and reads slowly gets every byte across the stop, which waits for it."""
    running = live.serve(server)
    with Connection(running.address, slow=True) as connection:
        connection.ask("/big")
        connection.sock.shutdown(socket.SHUT_WR)
        status, headers = connection.head()
        running.begin_stop()
        running.wait_log("listener closed")
        # All but what the kernels have taken over: the application and the server are done with it.
        first = connection.exactly(len(BIG) - (1 << 17))
        assert not running.gone.wait(0.5)
        body = first + connection.rest()
    assert (status, int(headers["content-length"])) == (200, len(BIG))
    assert body == BIG
    assert running.wait_gone() == 0


@pytest.mark.parametrize("started_by", ["waitress", "waitress-serve"])
def test_names_of_checks_do_not_show_in_the_time(live: Starter, started_by: str) -> None:
    """While all workers are busy the URL of a check that the caller may not see waits, as one that does not exist."""
    settings = {"LIFECYCLE_DETAILS": "token", "LIFECYCLE_TOKEN": "x7Qm2pKdLw9vTr4n"}
    running = live.serve(started_by, threads=1, settings=settings, plan={"observed": True})
    with Connection(running.address) as busy, contextlib.ExitStack() as stack:
        busy.ask("/gate/all")
        running.wait_event("begin live all")
        asked = [stack.enter_context(Connection(running.address)) for _ in range(2)]
        for connection, name in zip(asked, ("observed", "missing"), strict=True):
            connection.ask(f"/healthcheck/{name}")
        assert get(running.address, "/livez").status == 200
        assert select.select([connection.sock for connection in asked], [], [], 0.5)[0] == []
        running.open_gate("all")
        assert [connection.answer().status for connection in asked] == [404, 404]
    assert running.stop() == 0


def test_work_does_not_get_into_the_lane_of_a_probe(live: Starter) -> None:
    """A path that is only like a probe's is work, and liveness is answered while it blocks."""
    running = live.serve("waitress", plan={"catch_all": True}, threads=2)
    with Connection(running.address) as one, Connection(running.address) as other:
        one.ask("/livez//")
        other.ask("/livez/%2F")
        running.wait_event("begin catch-all /livez//", 2)
        assert [get(running.address, path).status for path in ("/livez", "/livez/")] == [200, 200]
        running.open_gate("catch-all")
        assert [one.answer().status, other.answer().status] == [200, 200]
    assert running.stop() == 0
