"""A real HAProxy in front of processes under test, which sends each request to one that its checks say is up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

from tests._needs import program
from tests.live._client import LostError, get
from tests.live._process import Running, Starter

# A connection to each request, and no second try: whatever is lost shows.
CONFIGURATION = """
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    retries 0
    option httpclose
listen web
    bind fd@{descriptor}
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter {inter} fall 3 rise 2
"""


def start_haproxy(live: Starter, listener: socket.socket, servers: Sequence[tuple[str, int]], inter: str) -> Running:
    """Start it on a bound socket; ``inter`` is between two of its checks."""
    lines = [f"    server s{n} {host}:{port}" for n, (host, port) in enumerate(servers)]
    configuration = live.home / "haproxy.cfg"
    configuration.write_text(CONFIGURATION.format(descriptor=listener.fileno(), inter=inter) + "\n".join(lines) + "\n")
    # -db: in the foreground, one process.
    running = live.start(program("haproxy"), "-db", "-f", str(configuration), fds=[listener.fileno()])
    running.wait_for(lambda: _answers(listener.getsockname()), "HAProxy's first answer")
    return running


def _answers(address: tuple[str, int]) -> bool:
    try:
        return get(address, "/fast").status == 200
    except (OSError, LostError):
        return False


class Clients:
    """Clients that ask for ``/fast`` all the time, each on a new connection, and note what was not answered."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self.address = address
        self.answered = 0
        self.lost: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._over.wait(0.01):
            try:
                answer = get(self.address, "/fast")
                if (answer.status, answer.body) != (200, b"fast"):
                    self.lost.append(f"answer {answer.status} {answer.body!r}")
                self.answered += 1
            except (OSError, LostError) as error:
                self.lost.append(repr(error))
