"""What the kernel knows of a socket, and how a listener is closed without losing a connection.

Closing a listener resets every connection in its accept queue, and whoever completes a handshake between the last
accept and the close is reset as well, with its request already sent. Accepting until the queue is empty and then
closing therefore still loses some (a third of the stops under clients that connect in a loop). What loses none:

1. Attach a classic BPF filter to the listener that drops every SYN which is not a SYN-ACK's answer. Handshakes that
   are under way go on, nobody can begin a new one. A client whose SYN was dropped sends it again a second later and
   is then refused cleanly: nothing of its request has left it.
2. Go on accepting until no handshake is under way. The kernel tells which are (sock_diag, state SYN_RECV), so an idle
   listener need not wait for any; the bound is for peers that never complete theirs. Where it does not tell, 50 ms.
3. Accept until the queue is empty, and close.

The filter needs CAP_NET_ADMIN on recent kernels (EPERM without it on Linux 6.18). Without it the next best is a quiet
period: close once nobody has connected for 100 ms, or when a second has passed. That is best effort.

Out of descriptors nothing can be accepted: the listener stays until some come free, or the drain's deadline.

A Unix socket has no handshake: ``shutdown(SHUT_RD)`` refuses whoever connects from then on and leaves the queue as it
is, so accepting until empty and closing has no race.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import termios
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from .._state import logger

# Not in the socket module: <asm-generic/socket.h>
_SO_ATTACH_FILTER = 26

# Load byte 13 of the TCP header (the flags), mask SYN and ACK, drop what is SYN alone. A filter on a listener sees the
# packet from its TCP header on. <linux/filter.h>: struct sock_filter is (code, jt, jf, k).
_SYN_FILTER = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN, next, skip one
    (0x06, 0, 0, 0),  # ret #0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1: keep
)

_SYN_RECV = 1 << 3 | 1 << 12  # TCPF_SYN_RECV and TCPF_NEW_SYN_RECV; net/tcp_states.h
_NETLINK_TIMEOUT = 0.1

QUIET_PERIOD = 0.1
# A peer that has not completed its handshake after this long is not going to while we wait.
CLOSING_BOUND = 1.0
_AT_ONCE = 64
# Accepting may fail for once because the client has gone again; so often in a row, because nothing can be accepted.
_FAILURES = 16
_STARVED_PAUSE = 0.01
_UNKNOWN_HANDSHAKES = 0.05


def attach_syn_filter(sock: socket.socket) -> bool:
    """Make a TCP listener deaf to new connections but not to those under way; ``False`` where that is not permitted."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _SYN_FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_SYN_FILTER), ctypes.addressof(buffer))  # struct sock_fprog
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True


def handshakes(port: int) -> bool | None:
    """Whether somebody is in the middle of connecting to a local port; ``None`` where the kernel does not tell."""
    try:
        return any(_in_state(family, port, _SYN_RECV) for family in (socket.AF_INET, socket.AF_INET6))
    except (OSError, AttributeError, struct.error):
        return None


def _in_state(family: int, port: int, states: int) -> bool:
    """Ask the kernel (netlink, sock_diag(7)) for TCP sockets of a local port; ten times quicker than /proc/net/tcp."""
    question = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states)  # inet_diag_req_v2
    question += struct.pack(">HH", port, 0) + bytes(44)
    header = struct.pack("=IHHII", 16 + len(question), 20, 0x301, 1, 0)  # SOCK_DIAG_BY_FAMILY; REQUEST | DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as netlink:  # NETLINK_SOCK_DIAG
        netlink.settimeout(_NETLINK_TIMEOUT)
        netlink.send(header + question)
        _length, kind = struct.unpack_from("=IH", netlink.recv(65536))
    if kind == 2:  # NLMSG_ERROR
        raise OSError("the kernel does not tell")
    return bool(kind != 3)  # NLMSG_DONE: there is none


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


def unsent(sock: socket.socket) -> int:
    """How many bytes the peer's kernel has not acknowledged (SIOCOUTQ); 0 where nobody tells or the peer is gone."""
    try:
        # SIOCOUTQ and TIOCOUTQ are one number. On a Unix socket it counts what the peer has not read.
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0


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


def log_closed(method: str) -> None:
    """Say how a listener was closed: with the filter the promise is whole, after a quiet period it is best effort."""
    logger.info("listener closed (%s)", method, extra={"lifecycle_method": method})


class ClosingListener:
    """One listener on its way to being closed. The server's loop calls :meth:`step` until it says that it is done.

    :param sock: the listener.
    :param accept: accepts one waiting connection and hands it to the server; says whether it got one.
    :param close: closes the listener in the server's own manner.
    :param last_accept: when the listener last accepted, on the monotonic clock.
    :param path: of a Unix socket, with the identity of the file that was bound.
    :param patience: seconds to wait for descriptors if there are none left.
    :param hold: called before the last pass over the queue, where threads answer while the loop accepts: who is not
        answered before the listener is closed does not come again, so the queue runs empty.
    """

    def __init__(
        self,
        sock: socket.socket,
        accept: Callable[[], bool],
        close: Callable[[], None],
        last_accept: Callable[[], float],
        path: str | None = None,
        identity: tuple[int, int] | None = None,
        patience: float = 0.0,
        hold: Callable[[], None] = lambda: None,
    ) -> None:
        self._sock = sock
        self._accept = accept
        self._close = close
        self._last_accept = last_accept
        self._began = time.monotonic()
        self._patience = patience
        self._hold = hold
        self._tried = 0.0
        self._starved = False
        self._checked = False
        if sock.family == socket.AF_UNIX:
            self.method = "unix"
            # Somebody who took our path over in the meantime keeps it.
            unlink(path, identity)
            sock.shutdown(socket.SHUT_RD)
        else:
            self.method = "socket filter" if attach_syn_filter(sock) else "quiet period"

    def step(self) -> bool:
        """Accept what waits; close once nothing more can come. ``True`` when closed."""
        age = time.monotonic() - self._began
        if self._starved and age < self._patience:
            if time.monotonic() - self._tried < _STARVED_PAUSE:
                return False
            self._accept_waiting()
            return False
        self._accept_waiting()
        if self._starved or (age < CLOSING_BOUND and not self._settled(age)):
            return False
        # Once more, and this time to the end; but not for ever, which is how long a storm would hold the listener open.
        self._hold()
        until = time.monotonic() + CLOSING_BOUND / 2
        while self._accept_waiting() and time.monotonic() < until:
            pass
        self._close()
        log_closed(self.method)
        return True

    def _settled(self, age: float) -> bool:
        if self.method == "unix":
            return True
        if self.method == "quiet period":
            return time.monotonic() - self._last_accept() >= QUIET_PERIOD
        busy = handshakes(self._sock.getsockname()[1])
        if busy is None:
            return age >= _UNKNOWN_HANDSHAKES and not has_input(self._sock)
        # A SYN that passed the filter on another processor just before it was attached shows in the table a moment
        # later: look again after a step, and believe the second look.
        checked, self._checked = self._checked, not busy
        return checked and not busy and not has_input(self._sock)

    def _accept_waiting(self) -> bool:
        """Accept some of what is in the queue, and say whether there may be more.

        It is *starved* if accepting fails over and over although there is (no descriptors left). A Unix listener that
        has been shut down is always readable, so there the first failure says that the queue is empty.

        Not until it is empty: threads that answer meanwhile let their clients come again, for ever.
        """
        self._tried = time.monotonic()
        self._starved = False
        failures = 0
        for _ in range(_AT_ONCE):
            if not has_input(self._sock):
                return False
            failures = 0 if self._accept() else failures + 1
            if failures and self.method == "unix":
                return False
            if failures == _FAILURES:
                self._starved = self._tried - self._began < self._patience
                return False
        return True


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
            sock.close()
    _owners.clear()


os.register_at_fork(after_in_child=_after_fork)
