"""Requests refused and lost while a service is restarted under load, with no balancer in front of it.

``flask lifecycle run`` on waitress is restarted over and over: in place by ``--reload-on SIGHUP``, and with
socket activation, where this script keeps the listener as systemd does. Clients ask without a rest, by GET and by POST
with bodies, for work that takes 50 ms: on a new connection each time, and on connections that they keep, with pauses of
up to 0.3 s.
They look whether a kept one has been closed before they use it again. It may be closed at the very moment at which they
ask, which HTTP/1.1 cannot prevent: such a request has got no byte of an answer, is counted apart (*closed*), and is
sent again on a new connection, as clients do (RFC 9110, 9.2.2). Takes about four minutes::

    python benchmarks/handover.py [--restarts N] [--clients N] [--way reload] [--way activation]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds: the bound of every wait
PAUSE = 0.3  # seconds between two restarts, and at most between two requests on a kept connection
BODY = b"x" * 20_000
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = (sys.executable, "-m", "flask", "--app", f"{Path(__file__).resolve()}:create_app", "lifecycle", "run")
OPTIONS = ("--threads", "16")
# What systemd does between the fork and the exec.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def create_app() -> Flask:
    """The application under load."""
    from flask import Flask, request

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    Lifecycle(app)

    @app.route("/work", methods=["GET", "POST"])
    def work() -> str:
        length = len(request.get_data())
        time.sleep(0.05)
        return f"done {length}"

    return app


def wait_until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            sys.exit(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.01)


class Load:
    """Clients that ask from their start to :meth:`end`."""

    def __init__(self, port: int, clients: int) -> None:
        self.answered = self.closed = 0
        self.refused: list[str] = []
        self.lost: list[str] = []
        self.slowest = 0.0  # seconds
        self._port = port
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards the figures
        self._threads = [threading.Thread(target=self._run, args=(kept,)) for kept in (True, False) * clients]
        for thread in self._threads:
            thread.start()

    def _run(self, kept: bool) -> None:
        connection = None
        while not self._over.is_set():
            method = random.choice(("GET", "POST"))
            since = time.monotonic()
            connection = self._ask(connection, method, kept)
            with self._lock:
                self.slowest = max(self.slowest, time.monotonic() - since)
            if kept:
                time.sleep(random.uniform(0, PAUSE))
        if connection is not None:
            connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection | None, method: str, kept: bool
    ) -> http.client.HTTPConnection | None:
        """Ask until there is an answer; return the connection if it goes on."""
        while True:
            if connection is not None and _has_ended(connection):
                connection.close()
                connection = None
            used = connection is not None
            connection = connection or self._connect()
            if connection is None:
                return None
            try:
                connection.request(method, "/work", BODY if method == "POST" else None)
                response = connection.getresponse()
                good = (response.status, response.read()) == (200, b"done %d" % (len(BODY) * (method == "POST")))
            except (http.client.RemoteDisconnected, ConnectionError) as error:
                connection.close()
                connection = None
                if used:
                    self._note("closed")
                    continue
                self._note("lost", f"{method}: {error!r}")
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._note("lost", f"{method}: {error!r}")
                return None
            else:
                self._note(*(("answered",) if good else ("lost", f"{method}: status {response.status}")))
                if kept and not response.will_close:
                    return connection
                connection.close()
            return None

    def _connect(self) -> http.client.HTTPConnection | None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.connect()
        except OSError as error:
            self._note("refused", repr(error))
            time.sleep(0.01)
            return None
        return connection

    def _note(self, what: str, why: str | None = None) -> None:
        with self._lock:
            if why is None:
                setattr(self, what, getattr(self, what) + 1)
            else:
                getattr(self, what).append(why)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the server has closed a connection, as clients look before they use one again."""
    return bool(select.select([connection.sock], [], [], 0)[0])


class Process:
    """One process that was started here, with its log in a file."""

    def __init__(self, home: Path, *command: str, fd: int | None = None) -> None:
        self._log = home / f"{time.monotonic_ns()}.log"
        with self._log.open("w") as log:
            self.popen = subprocess.Popen(command, env=ENVIRON, stderr=log, pass_fds=() if fd is None else (fd,))

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str, times: int = 1) -> str:
        def seen() -> bool:
            if self.popen.poll() is not None:
                sys.exit(f"the service left with {self.popen.returncode}:\n{self.log[-2000:]}")
            return len(re.findall(pattern, self.log)) >= times

        wait_until(seen, pattern)
        return str(re.findall(pattern, self.log)[-1])

    def stop(self) -> None:
        self.popen.send_signal(signal.SIGTERM)
        if code := self.popen.wait(PATIENCE):
            sys.exit(f"a process left with {code}, not with 0:\n{self.log[-2000:]}")

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()


class Reload:
    """``--reload-on SIGHUP``."""

    def __init__(self, home: Path) -> None:
        self._count = 0
        self._process = Process(home, *COMMAND, *OPTIONS, "-p", "0", "--reload-on", "SIGHUP")
        self._process.wait_for("-> READY")
        self.port = int(self._process.wait_for(r"listening on http://127.0.0.1:(\d+)"))

    def restart(self) -> None:
        self._count += 1
        self._process.popen.send_signal(signal.SIGHUP)
        self._process.wait_for(r"reload: process \d+ serves", self._count)

    def end(self) -> None:
        self._process.stop()


class Activation:
    """A socket unit: the listener stays here, and processes come and go."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port = int(self._listener.getsockname()[1])
        self._start()

    def _start(self) -> None:
        number = self._listener.fileno()
        self._process = Process(self._home, sys.executable, "-c", ACTIVATE, str(number), *COMMAND, *OPTIONS, fd=number)
        self._process.wait_for("-> READY")

    def restart(self) -> None:
        self._process.stop()
        self._start()

    def end(self) -> None:
        self._process.stop()
        self._listener.close()


WAYS: dict[str, tuple[str, type[Reload | Activation]]] = {
    "reload": ("--reload-on SIGHUP", Reload),
    "activation": ("socket activation", Activation),
}


@contextlib.contextmanager
def load(port: int, clients: int) -> Iterator[Load]:
    running = Load(port, clients)
    try:
        yield running
    finally:
        running.end()


def measure(way: str, restarts: int, clients: int) -> None:
    title, make = WAYS[way]
    with tempfile.TemporaryDirectory() as directory:
        service = make(Path(directory))
        with load(service.port, clients) as clients_of_it:
            for _ in range(restarts):
                time.sleep(PAUSE)
                service.restart()
        service.end()
    found = clients_of_it
    figures = (restarts, found.answered, len(found.refused), len(found.lost), found.closed)
    print(f"{title:24}{''.join(f'{figure:10}' for figure in figures)}{found.slowest:12.2f}", flush=True)
    for why in (*found.refused[:5], *found.lost[:5]):
        print(f"    {why}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8, help="on new connections, and as many on kept ones")
    parser.add_argument("--way", choices=WAYS, action="append")
    options = parser.parse_args()
    heads = ("restarts", "answered", "refused", "lost", "closed")
    print(f"{'way':24}{''.join(f'{head:>10}' for head in heads)}{'slowest, s':>12}")
    for way in options.way or WAYS:
        measure(way, options.restarts, options.clients)


if __name__ == "__main__":
    main()
