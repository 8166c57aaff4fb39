"""One process after the other on one listener that somebody passes on, or each with its own at one address."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence

import pytest

from ._client import Address, Connection
from ._process import Running, Starter
from ._traffic import in_flight

# What systemd does between the fork and the exec.
SYSTEMD = """
import fcntl, os, sys
given = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split()]
for number, descriptor in enumerate(given, 3):
    os.dup2(descriptor, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": "web:web:web"}
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def given() -> Iterator[list[socket.socket]]:
    """An IPv4, an IPv6 and a Unix listener, which somebody opened before any process that serves."""
    with (
        tempfile.TemporaryDirectory() as home,  # pytest's own may be longer than a socket's name
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        unix.bind(f"{home}/s")
        unix.listen()
        yield [four, six, unix]


def address_of(sock: socket.socket) -> Address:
    name = sock.getsockname()
    return name if isinstance(name, str) else (name[0], name[1])


def activated(live: Starter, server: str, given: Sequence[socket.socket], *options: str) -> Running:
    """Serve as a service with a socket unit."""
    descriptors = [sock.fileno() for sock in given]
    prefix = (sys.executable, "-c", SYSTEMD, " ".join(map(str, descriptors)))
    command = (sys.executable, "-m", "flask", "--app", "live_app.py", "lifecycle", "run", "--server", server, *options)
    return live.start(*prefix, *command, fds=descriptors)


def test_socket_activation(live: Starter, server: str, given: list[socket.socket]) -> None:
    """A process that is started with listeners serves all of them, also requests from before its start."""
    early = [Connection(address_of(sock)) for sock in given]
    for connection in early:
        connection.ask("/fast")
    first = activated(live, server, given)
    for connection in early:
        with connection:
            assert connection.answer().body == b"fast"
    with in_flight(first, address=address_of(given[0])):
        first.begin_stop()
        first.wait_log(r"(?s)(\(left to the process that opened it\).*){3}")
        late = [Connection(address_of(sock)) for sock in given]
        for each in late:
            each.ask("/fast")
    assert first.wait_gone() == 0
    second = activated(live, server, given)
    for each in late:
        with each:
            assert each.answer().body == b"fast"
    assert second.stop() == 0
