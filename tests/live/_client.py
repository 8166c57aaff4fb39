"""A small HTTP/1.1 client on raw sockets.

It tells a whole answer from a refused connection and from a lost request. *Refused*: the connection
was never made, so nothing of a request was sent; a client may safely try elsewhere. *Lost*: the
connection was made and ended, by a reset or an end of file, before the whole answer had come.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

Address = tuple[str, int] | str  # host and port, or the path of a Unix socket
PATIENCE = 20.0  # seconds: the bound of every wait for the other side


class LostError(Exception):
    """The connection ended before the whole answer had come."""


@dataclass(frozen=True)
class Answer:
    """One whole answer; the names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def says_close(self) -> bool:
        """Whether the answer tells the client that its connection ends here."""
        return self.headers.get("connection", "").lower() == "close"


def new_socket(address: Address) -> socket.socket:
    """Make a socket of the family that the address needs."""
    if isinstance(address, str):
        return socket.socket(socket.AF_UNIX)
    return socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)


def head_of(method: str, path: str, headers: dict[str, str], length: int) -> bytes:
    """Write the head of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if "Transfer-Encoding" not in headers and (length or method == "POST"):
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Connection:
    """One connection of a client; every wait is bounded by PATIENCE.

    :param small: ask for a small receive buffer, so that a large answer stays with the server.
    """

    def __init__(self, address: Address, *, small: bool = False, sock: socket.socket | None = None) -> None:
        self._left = b""
        self.sock = sock if sock is not None else new_socket(address)
        try:
            self.sock.settimeout(PATIENCE)
            if small:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            if sock is None:
                self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            self.sock.sendall(data)
        except ConnectionError as error:
            raise LostError(f"{type(error).__name__} while sending") from error

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> None:
        """Send one whole request and do not wait for the answer."""
        self.send(head_of(method, path, headers, len(body)) + body)

    def get(self, path: str) -> Answer:
        """Send one request and read its answer."""
        self.ask(path)
        return self.answer()

    def receive(self, size: int = 65536) -> bytes:
        """Read what there is, ``b""`` at the end of file."""
        try:
            return self.sock.recv(size)
        except ConnectionError as error:
            raise LostError(f"{type(error).__name__} while reading") from error

    def _more(self, where: str) -> None:
        data = self.receive()
        if not data:
            raise LostError(f"end of file in {where}")
        self._left += data

    def wait_for(self, data: bytes) -> None:
        """Read until these bytes have come; they stay to be read."""
        while data not in self._left:
            self._more(f"an answer without {data!r}")

    def _line(self, where: str) -> bytes:
        while b"\r\n" not in self._left:
            self._more(where)
        line, self._left = self._left.split(b"\r\n", 1)
        return line

    def exactly(self, size: int) -> bytes:
        """Read so many bytes."""
        parts, missing = [self._left[:size]], size - len(self._left[:size])
        self._left = self._left[size:]
        while missing:
            data = self.receive(min(missing, 65536))
            if not data:
                raise LostError(f"end of file in the body, {missing} of {size} bytes missing")
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._line("a chunk's size"), 16):
            parts.append(self.exactly(size))
            self._line("a chunk's end")
        self._line("the last chunk")
        return b"".join(parts)

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of an answer, interim answers (100) left out."""
        while True:
            status = int(self._line("the status line").split(b" ", 2)[1])
            headers = {}
            while line := self._line("the head"):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            if status >= 200:
                return status, headers

    def body(self, headers: dict[str, str]) -> bytes:
        """Read the body that belongs to a head."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        if "content-length" in headers:
            return self.exactly(int(headers["content-length"]))
        return self.rest()

    def answer(self) -> Answer:
        """Read one whole answer."""
        status, headers = self.head()
        return Answer(status, headers, self.body(headers))

    def rest(self) -> bytes:
        """Read until the server hangs up; a reset is a :exc:`LostError`."""
        parts, self._left = [self._left], b""
        while data := self.receive():
            parts.append(data)
        return b"".join(parts)

    def reset(self) -> None:
        """Leave as a client does that is killed: the server meets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def get(address: Address, path: str) -> Answer:
    """Get a path over a connection of its own."""
    with Connection(address) as connection:
        return connection.get(path)


def refuses(address: Address) -> bool:
    """Say whether a new connection is refused."""
    try:
        Connection(address).sock.close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


def connected_to_itself(sock: socket.socket) -> bool:
    """Say whether a port without a listener has connected to itself, as it may on the loopback."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # connected and reset meanwhile: a loss, which whoever asks over it will note
        return False


def connect_unless_gone(address: tuple[str, int], gone: threading.Event) -> socket.socket | None:
    """Connect, or return ``None`` when refused, or still unanswered when the server has gone.

    A client whose SYN was dropped tries again a second later; by then there is nobody, and nothing
    was sent.
    """
    sock = new_socket(address)
    sock.setblocking(False)
    error = sock.connect_ex(address)
    end = time.monotonic() + PATIENCE
    while error == errno.EINPROGRESS and time.monotonic() < end:
        if select.select([], [sock], [], 0.02)[1]:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif gone.is_set():
            break
    if error or connected_to_itself(sock):
        sock.close()
        return None
    return sock


@dataclass
class Tally:
    """What the clients of a storm have seen; each client adds to its own, so no lock is needed."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)


def storm_client(address: tuple[str, int], gone: threading.Event, tally: Tally, keep_alive: bool) -> None:
    """Ask for ``/fast`` again and again until a connection is refused; every answer and every loss is noted."""
    while (sock := connect_unless_gone(address, gone)) is not None:
        with Connection(address, sock=sock) as connection:
            try:
                while True:
                    answer = connection.get("/fast")
                    if (answer.status, answer.body) != (200, b"fast"):
                        raise LostError(f"answer {answer.status} {answer.body!r}")
                    tally.answered += 1
                    if not keep_alive or answer.says_close:
                        break
            except (LostError, TimeoutError) as error:
                tally.lost.append(f"after {tally.answered} answers: {error}")


@contextlib.contextmanager
def storm(address: tuple[str, int], gone: threading.Event, *, clients: int, keep_alive: bool) -> Iterator[list[Tally]]:
    """Run clients, from the moment each has had 20 answers until the server has gone."""
    tallies = [Tally() for _ in range(clients)]
    threads = [
        threading.Thread(target=storm_client, args=(address, gone, tally, keep_alive), daemon=True) for tally in tallies
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PATIENCE
    while any(tally.answered < 20 for tally in tallies) and time.monotonic() < end:
        time.sleep(0.01)
    yield tallies
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a client still waits for the server"
