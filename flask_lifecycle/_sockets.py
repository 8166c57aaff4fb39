"""What the kernel knows of a socket, and how a connection is ended without harm to the answer that is on it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

# How long a client whose answer is out is read from before its connection is closed (a close with unread input resets
# it): between two reads, and in all as nginx' lingering_time. Who still sends an upload that was refused reads why.
FAREWELL = 2.0
FAREWELL_IN_ALL = 30.0
# How often is looked for what wakes nobody: the acknowledgement of the last bytes.
ACK_TICK = 0.005
# The state of a connection that is over, as the first byte of TCP_INFO; <netinet/tcp.h>.
_TCP_CLOSE = b"\x07"
# In struct tcp_info, <linux/tcp.h>: tcpi_bytes_received, a number of 64 bits.
_BYTES_RECEIVED = 128


def has_input(sock: socket.socket) -> bool:
    """Whether a read would not block: bytes, an end of file or an error wait in the kernel."""
    return _ready(sock, select.POLLIN)


def _ready(sock: socket.socket, event: int) -> bool:
    poll = select.poll()
    poll.register(sock, event)
    return bool(poll.poll(0))


def has_bytes(sock: socket.socket) -> bool:
    """Whether at least one byte waits to be read (an end of file is none)."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def unread(sock: socket.socket) -> int:
    """How many bytes wait to be read (an end of file is none), also of what only has the descriptor of a socket."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0


def unsent(sock: socket.socket) -> int:
    """How many bytes the peer's kernel has not acknowledged (SIOCOUTQ); 0 where nobody tells or the peer is gone."""
    try:
        # SIOCOUTQ and TIOCOUTQ are one number. On a Unix socket it counts what the peer has not read.
        left = int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0
    return 0 if left and _was_reset(sock) else left


def _was_reset(sock: socket.socket) -> bool:
    """Whether the peer has reset the connection: the kernel goes on counting what it cannot deliver any more.

    HAProxy ends its connections so, at the moment when it has the last byte of an answer that says close.
    """
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _TCP_CLOSE
    except (OSError, AttributeError):  # a Unix socket; a system that does not tell
        return False


def tcp_info(sock: Any, kind: str, offset: int) -> int | None:
    """A number out of the kernel's ``struct tcp_info``; ``None`` where nobody tells: no TCP, or closed."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, offset + struct.calcsize(kind))
        return int(struct.unpack_from(kind, info, offset)[0])
    except (OSError, ValueError, AttributeError, struct.error):
        return None


def bytes_received(sock: Any) -> int | None:
    """How many bytes have ever come on a connection; ``None`` where nobody tells."""
    return tcp_info(sock, "=Q", _BYTES_RECEIVED)


def hang_up(sock: socket.socket) -> None:
    """End a connection for the peer as well where a forked child holds a copy of it: closing ours alone would not."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def half_close(sock: socket.socket) -> bool:
    """Tell the peer that nothing more will come, while still reading; ``False`` if it has gone."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def socket_identity(path: str) -> tuple[int, int] | None:
    """Which file a Unix socket's path stands for now, ``None`` if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def unlink(path: str | None, identity: tuple[int, int] | None) -> None:
    """Remove a Unix socket's path if it still is the one that was bound."""
    if path is not None and identity is not None and socket_identity(path) == identity:
        with contextlib.suppress(OSError):
            os.unlink(path)


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, socket.SocketKind, Any]:
    """What to bind for a host and a port.

    :raises OSError: there is no such host, also where the name could not be one (a label of 64 characters).
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    family, kind, _proto, _name, address = found[0]
    return family, kind, address


def describe(sock: socket.socket) -> str:
    """A listener's address as a user would type it."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET6:
        return f"http://[{name[0]}]:{name[1]}"
    if sock.family == socket.AF_INET:
        return f"http://{name[0]}:{name[1]}"
    return f"unix:{name}"


def bind_error(error: OSError, where: str) -> OSError:
    """The one sentence for an address that cannot be listened on."""
    cause, cure = os.strerror(error.errno or 0), "choose another address"
    if error.errno == errno.EADDRINUSE:
        cause, cure = "it is in use by another program", "stop that program or choose another port"
    elif error.errno in (errno.EACCES, errno.EPERM):
        cause, cure = "permission is denied", "choose a port above 1023 or a path that may be written"
    elif error.errno is None or isinstance(error, socket.gaierror):
        cause = error.strerror or str(error)
    return OSError(error.errno, f"Cannot listen on {where}: {cause}; {cure}.")


class _Owner(Protocol):
    def sockets(self) -> Iterable[socket.socket]: ...


_owners: weakref.WeakSet[_Owner] = weakref.WeakSet()


def close_in_children(owner: _Owner) -> None:
    """Close a server's sockets in every child that is forked from this process.

    A child that outlives us would keep a listener open that nobody accepts from, and connections that nobody answers.
    """
    _owners.add(owner)


def _after_fork() -> None:
    for owner in list(_owners):
        for sock in list(owner.sockets()):
            # Not sock.close(), which waits for the files that Werkzeug has made of it, and here nobody closes those.
            if (descriptor := sock.detach()) >= 0:
                os.close(descriptor)
    _owners.clear()


os.register_at_fork(after_in_child=_after_fork)
