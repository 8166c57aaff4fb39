"""An HTTP/1.1 client on raw sockets, which knows a lost request from a refused connection.

*Refused*: no connection was made, so nothing was sent; a client may safely try elsewhere. *Lost*: the connection was
made and ended, by a reset or an end of file, before the whole response had arrived.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

Tcp = tuple[str, int]  # host and port
Address = Tcp | str  # or the path of a Unix socket


class LostError(Exception):
    """The connection ended before the whole response had arrived."""


@dataclass(frozen=True)
class Response:
    """One whole response; the names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def says_close(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


def shown(address: Address) -> str:
    return address if isinstance(address, str) else f"{address[0]}:{address[1]}"


def request_head(path: str, method: str = "GET", length: int = 0, /, *, version: str = "1.1", **headers: str) -> bytes:
    """The head of a request; ``_`` in the name of a header stands for ``-``."""
    fields = {"Host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if (length or method == "POST") and "Transfer-Encoding" not in fields:
        fields["Content-Length"] = str(length)
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# Seconds; a server closes a connection on which nothing was sent for its linger, 0.25 s by default, in a shutdown.
_HELD_UP = 0.1


class Connection:
    """One connection of a client; at the end of a ``with`` block it is closed.

    :ivar held_up: whether a busy machine has kept the client from sending its last request at once, after the connect
        or the last response. The server may have hung up meanwhile, and has lost nothing.

    :param patience: seconds that each wait for the server may take; then :exc:`TimeoutError`.
    :param slow: receive into a small buffer, so that a large response stays with the server.
    :param sock: an already connected socket.
    """

    def __init__(
        self, address: Address, patience: float, *, slow: bool = False, sock: socket.socket | None = None
    ) -> None:
        self._unread = bytearray()
        self.held_up = False
        self.ready_at = time.monotonic()  # since when it can send
        self.sock = sock or _new_socket(address)
        try:
            self.sock.settimeout(patience)
            if slow:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            if sock is None:
                self._connect(address)
        except BaseException:
            self.sock.close()
            raise

    def _connect(self, address: Address) -> None:
        try:
            self.sock.connect(address)
        except ConnectionResetError:  # the listener was closed after the handshake, and nothing was sent
            raise ConnectionRefusedError(errno.ECONNREFUSED, "reset by a listener that was closed") from None
        if _is_its_own_peer(self.sock):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except ConnectionError as error:
            raise LostError(f"{type(error).__name__} while sending") from error

    def ask(self, path: str, method: str = "GET", body: bytes = b"", /, **headers: str) -> None:
        """Send one request and do not wait for the response."""
        try:
            self.send(request_head(path, method, len(body), **headers) + body)
        finally:
            self.held_up = time.monotonic() - self.ready_at > _HELD_UP

    def get(self, path: str) -> Response:
        self.ask(path)
        return self.response()

    def receive(self, size: int = 65536, where: str = "what was read") -> bytes:
        """Read what the kernel has, ``b""`` at the end of file; ``where`` is for the text of a loss."""
        try:
            return self.sock.recv(size)
        except ConnectionError as error:
            raise LostError(f"{type(error).__name__} in {where}") from error

    def _read_more(self, where: str) -> None:
        received = self.receive(where=where)
        if not received:
            raise LostError(f"end of file in {where}")
        self._unread += received

    def _take(self, size: int) -> bytes:
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def until(self, end: bytes, where: str) -> bytes:
        """Read until these bytes; return those before them."""
        while end not in self._unread:
            self._read_more(where)
        return self._take(self._unread.index(end) + len(end)).removesuffix(end)

    def exactly(self, size: int) -> bytes:
        while (missing := size - len(self._unread)) > 0:
            self._read_more(f"the body, {missing} of {size} bytes missing")
        return self._take(size)

    def rest(self) -> bytes:
        """Read until the server closes the connection."""
        while received := self.receive(where="the body"):
            self._unread += received
        return self._take(len(self._unread))

    def _line(self, where: str) -> bytes:
        return self.until(b"\r\n", where)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._line("the size of a chunk"), 16):
            parts.append(self.exactly(size))
            self._line("the end of a chunk")
        self._line("the last chunk")
        return b"".join(parts)

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of a response, interim responses (100) left out, but not 101."""
        while True:
            status = int(self._line("the status line").split(b" ", 2)[1])
            headers = {}
            while line := self._line("the head"):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            if status >= 200 or status == 101:
                return status, headers

    def body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks()
        if "content-length" in headers:
            return self.exactly(int(headers["content-length"]))
        return self.rest()

    def response(self) -> Response:
        status, headers = self.head()
        response = Response(status, headers, self.body(headers))
        self.ready_at = time.monotonic()
        return response


def _new_socket(address: Address) -> socket.socket:
    if isinstance(address, str):
        return socket.socket(socket.AF_UNIX)
    return socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)


def _is_its_own_peer(sock: socket.socket) -> bool:
    """Whether a socket has connected to itself, as may happen on the loopback to a port without a listener."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # connected and reset meanwhile, so a request on it is lost
        return False


def is_refused(address: Address, patience: float) -> bool:
    try:
        Connection(address, patience).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError | FileNotFoundError)
    return False


def connect_unless_gone(address: Tcp, gone: threading.Event, patience: float) -> Connection | None:
    """Connect; ``None`` if it is refused, or not accepted before the process has gone.

    The kernel drops the SYN of a client that comes while the listener refuses or is full, and the client repeats it a
    second later. If there is no process then, nothing was sent, so nothing is lost.
    """
    began = time.monotonic()
    sock = _new_socket(address)
    sock.setblocking(False)
    error = sock.connect_ex(address)
    end = began + patience
    while error == errno.EINPROGRESS and time.monotonic() < end:
        if select.select([], [sock], [], 0.02)[1]:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif gone.is_set():
            break
    if error or _is_its_own_peer(sock):
        sock.close()
        return None
    connection = Connection(address, patience, sock=sock)
    connection.ready_at = began
    return connection


class Storm:
    """Clients that ask again and again without a pause, until a connection is refused. A ``with`` block waits for them.

    :param gone: set when the process has gone.
    :param keep: use a connection until a response closes it; otherwise a new one for each request.
    :param body: of each response, if it is known.
    """

    def __init__(
        self,
        address: Tcp,
        path: str,
        gone: threading.Event,
        patience: float,
        *,
        clients: int,
        keep: bool,
        body: bytes | None = None,
    ) -> None:
        self._address, self._path, self._gone, self._patience = address, path, gone, patience
        self._keep, self._body = keep, body
        self._enough = threading.Event()
        self.answered_by = [0] * clients  # each client writes its own number
        self.lost: list[str] = []  # how each lost request was lost
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in range(clients)]
        for thread in self._threads:
            thread.start()
        self.wait_answers(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        if kind is None:
            self.end()

    def _run(self, client: int) -> None:
        headers = {} if self._keep else {"Connection": "close"}
        while not self._enough.is_set():
            connection = connect_unless_gone(self._address, self._gone, self._patience)
            if connection is None:
                break
            with connection:
                try:
                    while self._ask(connection, headers, client) and not self._enough.is_set():
                        pass
                except (LostError, OSError) as error:
                    if not connection.held_up:
                        self.lost.append(f"after {self.answered_by[client]} responses: {error}")

    def _ask(self, connection: Connection, headers: dict[str, str], client: int) -> bool:
        """Send one request; return whether the connection can take another."""
        connection.ask(self._path, **headers)
        response = connection.response()
        if response.status != 200 or self._body not in (None, response.body):
            raise LostError(f"status {response.status}, {response.body[:80]!r}")
        self.answered_by[client] += 1
        return self._keep and not response.says_close

    def wait_answers(self, number: int) -> bool:
        """Wait until each client has had this many more responses; return whether it has."""
        goals = [answered + number for answered in self.answered_by]
        end = time.monotonic() + self._patience
        while any(answered < goal for answered, goal in zip(self.answered_by, goals, strict=True)):
            if time.monotonic() > end or not all(thread.is_alive() for thread in self._threads):
                return False
            time.sleep(0.01)
        return True

    def leave(self) -> None:
        """Have each client end with its next response, and wait for them."""
        self._enough.set()
        self.end()

    def end(self) -> None:
        """Wait for the clients; one that still waits for its response has lost it."""
        for thread in self._threads:
            thread.join(self._patience)
            if thread.is_alive():
                self.lost.append("it still waits for a response")

    @property
    def answered(self) -> int:
        return sum(self.answered_by)
