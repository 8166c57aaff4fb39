"""Clients in all the states that a stop has to do with."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ._client import Address, Connection, request_head
from ._process import BIG, Running, wait_until

ADDRESS = r"(?:[Rr]unning on http://|Listening at: http://|bound to TCP address )127\.0\.0\.1:(\d+)"


class Kind(NamedTuple):
    """What a server does with connections."""

    slots: int = 8
    """How many requests run at once, of those that a test sends."""
    keeps: bool = True
    """Whether it keeps a connection after an answer."""
    pipelines: bool = True
    """Whether it answers all requests that come in one piece, or the first one and closes."""
    slow_readers: bool = True
    """Whether a client that reads slowly gets a whole response also when the signal comes meanwhile."""
    chunks: bool = True
    """Whether an application of WSGI gets a body that comes in chunks."""


def address_of(running: Running) -> tuple[str, int]:
    """Where it listens, as its log tells."""
    return "127.0.0.1", int(running.wait_log(ADDRESS)[1])


def wait_guarantee(running: Running, name: str, guarantee: str, workers: int = 1) -> None:
    """Wait until the one line of each worker is there that names the server and its guarantee."""
    words = {"full": "every accepted", "accepted": "accepted requests", "started": "requests that the application"}
    line = rf"server {name} \([^)]+\): a shutdown answers {words[guarantee]}"
    running.wait_for(lambda: len(re.findall(line, running.log)) == workers, f"{workers} lines {line!r}")


def fill_accept_queue(running: Running, addresses: list[Address]) -> list[Connection]:
    """Stop the process, put requests into its accept queues, send SIGTERM and let the process go on."""
    running.send(signal.SIGSTOP)
    wait_until(lambda: running.process_state() == "T", "the process is stopped")
    connections = [Connection(address) for address in addresses]
    for connection in connections:
        connection.ask("/fast")
    running.send(signal.SIGTERM)
    running.send(signal.SIGCONT)
    return connections


def is_accepted(connection: Connection) -> bool:
    """Whether a process has accepted this connection: until then its socket has no inode in the kernel's table."""
    ports = [f":{connection.sock.getpeername()[1]:04X}", f":{connection.sock.getsockname()[1]:04X}"]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any([row[1][8:], row[2][8:]] == ports and row[9] != "0" for row in rows)


@contextlib.contextmanager
def hung_request(running: Running, gate: str = "never", *, address: Address | None = None) -> Iterator[Connection]:
    """A request that runs until its gate is opened."""
    with Connection(address or running.address) as connection:
        connection.ask(f"/gate/{gate}")
        running.wait_event(f"begin live {gate}")
        yield connection


@contextlib.contextmanager
def in_flight(running: Running, gate: str = "a", *, address: Address | None = None) -> Iterator[None]:
    """A request that runs until the end of the block, and is then answered."""
    with hung_request(running, gate, address=address) as connection:
        yield
        running.open_gate(gate)
        assert connection.answer().body == f"passed {gate}".encode()


class Traffic:
    """Requests that run, that the server has, and that the kernel has, on connections of their own."""

    def __init__(
        self, running: Running, stack: contextlib.ExitStack, kind: Kind, *, address: Address | None = None
    ) -> None:
        self.running, self.kind = running, kind
        self.address: Address = address or address_of(running)
        self._stack = stack
        self.idle = self.connect()
        assert self.idle.get("/fast").body == b"fast"
        self.stream = self.connect()
        self.stream.ask("/stream?gate=work")
        running.wait_event("begin stream")
        self.started = [self.connect() for _ in range(kind.slots - 2)]
        for number, each in enumerate(self.started, 1):
            each.ask("/gate/work")
            running.wait_event("begin live work", number)
        self.slow = self.connect(slow=True)
        self.slow.ask("/big")
        self.slow_head = self.slow.head()
        self.kernel: list[Connection] = []

    def connect(self, **options: Any) -> Connection:
        return self._stack.enter_context(Connection(self.address, **options))

    def hold(self, queued: int = 3) -> None:
        """Half a head, half a body by length and in chunks, and requests that wait, some of them on one connection."""
        self.head, self.body, self.chunks, self.piped = (self.connect() for _ in range(4))
        self.head.send(b"GET /fast HTTP/1.1\r\nHo")
        self.body.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf-")
        if self.kind.chunks:
            self.chunks.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf-")
        self.piped.send(request_head("/gate/work") + request_head("/fast"))
        self.queued = [self.connect() for _ in range(queued)]
        for each in self.queued:
            each.ask("/gate/work")

    def wait_accepted(self) -> None:
        """Wait until the server has accepted what :meth:`hold` has made."""
        mine = [self.head, self.body, self.chunks, self.piped, *self.queued]
        wait_until(lambda: all(map(is_accepted, mine)), f"accepted {[is_accepted(m) for m in mine]}")

    def queue_in_kernel(self, number: int) -> None:
        """Have clients come while the process is stopped, and send SIGTERM."""
        self.wait_accepted()
        self.kernel = fill_accept_queue(self.running, [self.address] * number)
        for connection in self.kernel:
            self._stack.enter_context(connection)

    def finish(self) -> None:
        """Complete what is half sent, and let everything go on."""
        self.head.send(b"st: a\r\n\r\n")
        self.body.send(b"other")
        if self.kind.chunks:
            self.chunks.send(b"\r\n5\r\nother\r\n0\r\n\r\n")
        else:
            self.chunks.sock.close()
        if self.kind.keeps:
            self.idle.ask("/fast")
        self.running.open_gate("work")

    def check_started(self) -> None:
        """What the application had begun is answered to its last byte."""
        assert [each.answer().body for each in self.started] == [b"passed work"] * len(self.started)
        assert self.stream.answer().body == b"".join(b"chunk %02d\n" % number for number in range(12))
        if self.kind.slow_readers:
            assert self.slow.body(self.slow_head[1]) == BIG
        else:
            assert BIG.startswith(self.slow.rest())

    def check_accepted(self) -> None:
        """So is what the server had."""
        assert [each.answer().body for each in self.queued] == [b"passed work"] * len(self.queued)
        assert (self.head.answer().body, self.body.answer().body) == (b"fast", b"10 bytes")
        if self.kind.chunks:
            assert self.chunks.answer().body == b"10 bytes"
        answers = [self.piped.answer() for _ in range(2 if self.kind.pipelines else 1)]
        assert [answer.body for answer in answers] == [b"passed work", b"fast"][: len(answers)]
        if self.kind.keeps:
            assert answers[-1].says_close
            assert self.idle.answer().body == b"fast"

    def check_kernel(self) -> None:
        """So is what only the kernel had."""
        assert [each.answer().body for each in self.kernel] == [b"fast"] * len(self.kernel)

    def check_hooks(self, times: int = 1) -> None:
        """The process ends with 0, and the hooks have run in each worker, after its last request."""
        self._stack.close()
        assert self.running.wait_gone() == 0, self.running.log_tail
        assert sorted(self.running.hooks()) == ["first"] * times + ["last"] * times
        if times == 1:
            assert self.running.hooks() == ["last", "first"]
            assert max(self.running.told("end live work")) < self.running.told("shutdown last")[0]
