"""A server that answers as a test wants it to: byte by byte, wrongly, without end or not at all."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable

from tests._fakes import BOUND

Script = Callable[["RawServer", socket.socket], None]


class RawServer:
    """Takes one connection after the other, in a thread, and leaves each to a script; ``over`` tells scripts to end."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None, *, reads: bool = True) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.over = threading.Event()
        self._script, self._tls, self._reads = script, tls, reads
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            sock, _address = self._listener.accept()
            if self.over.is_set():
                sock.close()
                return
            self.connections += 1
            with sock, contextlib.suppress(OSError):
                sock.settimeout(BOUND)
                self._talk(sock)

    def _talk(self, sock: socket.socket) -> None:
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True)
        with sock:
            if self._reads:
                self.requests.append(b"")
                while b"\r\n\r\n" not in self.requests[-1] and (data := sock.recv(65536)):
                    self.requests[-1] += data
            self._script(self, sock)

    def close(self) -> None:
        """End the thread, also one whose script waits for ``over``."""
        self.over.set()
        socket.create_connection(("127.0.0.1", self.port), BOUND).close()
        self._thread.join(BOUND)
        self._listener.close()


def saying(data: bytes) -> Script:
    """Send these bytes and close."""
    return lambda _server, sock: sock.sendall(data)


def answer(body: bytes = b"ok", status: str = "200 OK", **headers: str) -> Script:
    """A whole answer."""
    fields = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return saying(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


def repeating(begin: bytes, again: bytes, pause: float = 0.0) -> Script:
    """Send the beginning and then something for ever, with a pause between or as fast as it goes."""

    def talk(server: RawServer, sock: socket.socket) -> None:
        sock.sendall(begin)
        while not server.over.wait(pause) if pause else not server.over.is_set():
            sock.sendall(again)

    return talk


def silent(server: RawServer, _sock: socket.socket) -> None:
    """Say nothing until the test is over."""
    server.over.wait(BOUND)


def resetting(_server: RawServer, sock: socket.socket) -> None:
    """End the connection by a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
