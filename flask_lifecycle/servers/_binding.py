"""What a server of ours listens on: addresses, bound before it serves, or sockets that are given."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from typing import Any

from .. import _sockets

UNIX = "unix://"
# What a user may say of it, under the names that every server of ours knows.
OPTIONS = ("listen", "unix_socket", "sockets")


class Bound:
    """One listener.

    :param given: whose it is otherwise; what is served is a duplicate.
    """

    def __init__(self, sock: socket.socket, given: socket.socket | None = None) -> None:
        self.socket = sock
        self.given = given
        name = sock.getsockname()
        self.path = os.path.abspath(name) if sock.family == socket.AF_UNIX and isinstance(name, str) else None
        self.identity = _sockets.socket_identity(self.path) if self.path is not None else None
        sock.setblocking(False)

    @property
    def own(self) -> socket.socket:
        """The socket by which others know it."""
        return self.given or self.socket

    def take_over(self, ours: Collection[socket.socket]) -> None:
        """It is ours to close at the end, if it is one of these."""
        if self.given is not None and self.given in ours:
            self.given.close()  # its duplicate goes on
            self.given = None

    def close_unserved(self, held_back: bool) -> None:
        """Let go of it; of a path only if nobody else serves it."""
        self.socket.close()
        if self.given is None and not held_back:
            _sockets.unlink(self.path, self.identity)


def bind(host: str | None, port: int | None, options: Mapping[str, Any], backlog: int) -> list[Bound]:
    """Listen on what the options say.

    :raises ValueError: it is said twice, or is no address.
    :raises OSError: it cannot be listened on; then nothing is left bound.
    """
    addresses, given = where(host, port, options)
    found = [Bound(_again(sock, backlog), given=sock) for sock in given]
    for address in addresses:
        try:
            found.append(Bound(bind_one(address, backlog)))
        except (OSError, ValueError) as error:
            for bound in found:
                bound.close_unserved(held_back=False)
            raise (_sockets.bind_error(error, address) if isinstance(error, OSError) else error) from None
    return found


def where(host: str | None, port: int | None, options: Mapping[str, Any]) -> tuple[list[str], list[socket.socket]]:
    """The addresses to listen on, or the sockets that are given.

    :raises ValueError: it is said twice.
    """
    listen, unix, given = (options.get(name) or () for name in OPTIONS)
    addresses = listen.split() if isinstance(listen, str) else [a for entry in listen for a in entry.split()]
    if (addresses or unix or given) and (host is not None or port is not None):
        raise ValueError(
            "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them."
        )
    if given and (addresses or unix):
        raise ValueError("'sockets' cannot be combined with 'listen' or 'unix_socket'; give one of them.")
    if unix:
        addresses.append(f"{UNIX}{os.path.abspath(unix)}")
    if not given and not addresses:
        addresses.append(join(host or "127.0.0.1", 5000 if port is None else port))
    return addresses, list(given)


def _again(sock: socket.socket, backlog: int) -> socket.socket:
    sock.listen(backlog)
    return sock.dup()


def join(host: str, port: int) -> str:
    """An address as an option would name it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """The host and the port of an address.

    :raises ValueError: it has none.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"'{address}' is no address to listen on; write it as 127.0.0.1:5000 or [::1]:5000.")
    return host.strip("[]") or "127.0.0.1", int(port)


def bind_one(address: str, backlog: int, *, shared: bool = False) -> socket.socket:
    """A socket that listens on an address.

    :param shared: whether others of this user may listen there as well (``SO_REUSEPORT``).
    :raises OSError: it cannot be listened on.
    """
    place: Any
    if address.startswith(UNIX):
        place = address.removeprefix(UNIX)
        # Left behind by a process that was killed.
        _sockets.unlink(place, _sockets.socket_identity(place))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        family, kind, place = _sockets.resolve(*split(address))
        sock = socket.socket(family, kind)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(place)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
