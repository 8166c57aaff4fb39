"""A server that answers as a test wants it to: byte by byte, wrongly, without end or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests._fakes import BOUND, until

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


class Child:
    """An HTTP server in a process of its own, which can be stopped, let go on, killed and started again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had before if it had one."""
        command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", str(self.port)]
        self._popen = subprocess.Popen(
            command, cwd=self._home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._popen.stdout is not None
        match = re.search(r"port (\d+)", self._popen.stdout.readline())
        assert match, "it does not say where it listens"
        self.port = int(match[1])

    def stop(self) -> None:
        """Stop it as SIGSTOP does, and wait until it is."""
        os.kill(self._popen.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self._popen.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self._popen.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it, in whatever state it is."""
        self._popen.kill()
        self._popen.wait(BOUND)
        assert self._popen.stdout is not None
        self._popen.stdout.close()
