"""An HTTP/1.1 client on raw sockets, which knows a lost request from a refused connection.

*Refused*: no connection was made, so nothing was sent; a client may safely try elsewhere. *Lost*: the connection was
made and ended, by a reset or an end of file, before the whole response had arrived.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from dataclasses import dataclass, field

Address = tuple[str, int]


class LostError(Exception):
    """The connection ended before the whole response had arrived."""


@dataclass(frozen=True)
class Response:
    """One whole response; the names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether it says that the connection ends here."""
        return self.headers.get("connection", "").lower() == "close"


def request_head(path: str, method: str = "GET", **headers: str) -> bytes:
    """The head of a request; ``_`` in the name of a header stands for ``-``."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Connection:
    """One connection of a client.

    :param patience: seconds that each wait for the server may take; then :exc:`TimeoutError`.
    :param slow: receive into a small buffer, so that a large response stays with the server.
    """

    def __init__(self, address: Address, patience: float, *, slow: bool = False) -> None:
        self._unread = b""
        self.sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        try:
            self.sock.settimeout(patience)
            if slow:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.sock.connect(address)
            if self.sock.getsockname() == self.sock.getpeername():  # as happens on the loopback without a listener
                raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            self.sock.sendall(data)
        except ConnectionError as error:
            raise LostError(f"{type(error).__name__} while sending") from error

    def get(self, path: str) -> Response:
        """Send one request and read its response."""
        self.send(request_head(path))
        return self.response()

    def _receive(self, where: str) -> bytes:
        try:
            data = self.sock.recv(65536)
        except ConnectionError as error:
            raise LostError(f"{type(error).__name__} in {where}") from error
        if not data:
            raise LostError(f"end of file in {where}")
        return data

    def _line(self, where: str) -> bytes:
        while b"\r\n" not in self._unread:
            self._unread += self._receive(where)
        line, self._unread = self._unread.split(b"\r\n", 1)
        return line

    def _exactly(self, size: int) -> bytes:
        parts = [self._unread[:size]]
        missing = size - len(parts[0])
        self._unread = self._unread[size:]
        while missing > 0:
            data = self._receive(f"the body, {missing} of {size} bytes missing")
            self._unread = data[missing:]
            parts.append(data[:missing])
            missing -= len(parts[-1])
        return b"".join(parts)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._line("the size of a chunk"), 16):
            parts.append(self._exactly(size))
            self._line("the end of a chunk")
        self._line("the last chunk")
        return b"".join(parts)

    def _to_the_end(self) -> bytes:
        parts, self._unread = [self._unread], b""
        with contextlib.suppress(LostError):  # the end of file; a reset is one of the body's lengths
            while True:
                parts.append(self._receive("the body"))
        return b"".join(parts)

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of a response, interim responses (100) left out."""
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
            return self._exactly(int(headers["content-length"]))
        return self._to_the_end()

    def response(self) -> Response:
        """Read one whole response."""
        status, headers = self.head()
        return Response(status, headers, self.body(headers))


def is_refused(address: Address, patience: float) -> bool:
    """Whether a new connection is refused."""
    try:
        Connection(address, patience).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _connect(address: Address, gone: threading.Event, patience: float) -> Connection | None:
    """Connect; ``None`` if it is refused, or not accepted before the process has gone.

    The kernel drops the SYN of a client that comes while the listener refuses or is full, and the client repeats it a
    second later. If there is no process then, nothing was sent, so nothing is lost.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    sock.setblocking(False)
    error = sock.connect_ex(address)
    end = time.monotonic() + patience
    while error == errno.EINPROGRESS and time.monotonic() < end:
        if select.select([], [sock], [], 0.02)[1]:
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        elif gone.is_set():
            break
    with contextlib.suppress(OSError):
        if not error and sock.getsockname() != sock.getpeername():
            connection = Connection.__new__(Connection)
            connection._unread, connection.sock = b"", sock
            sock.settimeout(patience)
            return connection
    sock.close()
    return None


@dataclass
class _Client:
    answered: int = 0
    lost: list[str] = field(default_factory=list)


class Storm:
    """Clients that ask again and again without a pause, until a connection is refused.

    :param keep: use a connection until a response closes it; otherwise a new one for each request.
    """

    def __init__(
        self, address: Address, path: str, gone: threading.Event, patience: float, *, clients: int, keep: bool
    ) -> None:
        self._address, self._path, self._gone, self._patience, self._keep = address, path, gone, patience, keep
        self._clients = [_Client() for _ in range(clients)]
        self._threads = [threading.Thread(target=self._run, args=(each,), daemon=True) for each in self._clients]
        for thread in self._threads:
            thread.start()
        end = time.monotonic() + patience
        while min(each.answered for each in self._clients) < 10 and time.monotonic() < end:
            time.sleep(0.01)

    def _run(self, client: _Client) -> None:
        headers = {} if self._keep else {"Connection": "close"}
        while (connection := _connect(self._address, self._gone, self._patience)) is not None:
            with contextlib.closing(connection):
                try:
                    while True:
                        connection.send(request_head(self._path, **headers))
                        response = connection.response()
                        if response.status != 200:
                            raise LostError(f"status {response.status}")
                        client.answered += 1
                        if not self._keep or response.closes:
                            break
                except (LostError, OSError) as error:
                    client.lost.append(str(error))

    def end(self) -> tuple[int, list[str]]:
        """Wait for the clients; return how many requests were answered, and how each other one was lost."""
        for thread in self._threads:
            thread.join(self._patience)
        if any(thread.is_alive() for thread in self._threads):
            return sum(each.answered for each in self._clients), ["a client still waits for its response"]
        return sum(each.answered for each in self._clients), [loss for each in self._clients for loss in each.lost]
