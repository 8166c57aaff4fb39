"""The client of ``flask lifecycle verify`` as the tests use it: each wait is bounded by PATIENCE."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from flask_lifecycle._verify import client, subject

Address = client.Address
LostError = client.LostError
Response = client.Response
Storm = client.Storm
request_head = client.request_head
free_port = subject.free_port
PATIENCE = 20.0  # seconds: the bound of every wait for the other side


class Connection(client.Connection):
    """One connection of a client."""

    def __init__(self, address: Address, *, slow: bool = False, sock: socket.socket | None = None) -> None:
        super().__init__(address, PATIENCE, slow=slow, sock=sock)

    answer = client.Connection.response

    def wait_for(self, data: bytes) -> None:
        """Read until these bytes have come; they stay to be read."""
        self._unread[:0] = self.until(data, f"an answer without {data!r}") + data

    def reset(self) -> None:
        """Leave as a client does that is killed: the server meets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def get(address: Address, path: str) -> Response:
    """Get a path over a connection of its own."""
    with Connection(address) as connection:
        return connection.get(path)


def answers(address: Address, path: str, status: int = 200) -> bool:
    """Whether a path is answered, and with this status."""
    with contextlib.suppress(OSError, LostError):
        return get(address, path).status == status
    return False


def refuses(address: Address) -> bool:
    """Whether a new connection is refused."""
    return client.is_refused(address, PATIENCE)


def storm(address: tuple[str, int], gone: threading.Event, *, clients: int, keep_alive: bool) -> Storm:
    """Clients that ask for ``/fast`` without a pause until the server has gone; each has had some answers."""
    return Storm(address, "/fast", gone, PATIENCE, clients=clients, keep=keep_alive, body=b"fast")
