"""What the kernel knows of a socket, and how a listener is closed without losing a connection.

Closing a listener resets every connection in its accept queue, and whoever completes a handshake between the last
accept and the close is reset as well, with its request already sent. Accepting until the queue is empty and then
closing therefore still loses some (a third of the stops under clients that connect in a loop). What loses none:

1. Attach a classic BPF filter to the listener that drops every SYN which is not a SYN-ACK's answer. Handshakes that
   are under way go on, nobody can begin a new one. A client whose SYN was dropped sends it again a second later and
   is then refused cleanly: nothing of its request has left it.
2. Go on accepting until no handshake is under way. The kernel lists them in ``/proc/net/tcp`` (state SYN_RECV), so
   an idle listener need not wait for any; the bound is for peers that never complete theirs.
3. Accept until the queue is empty, and close.

The filter needs CAP_NET_ADMIN on recent kernels (EPERM without it on Linux 6.18). Without it the next best is a quiet
period: close once nobody has connected for 100 ms, or when a second has passed. That is best effort.

A Unix socket has no handshake: ``shutdown(SHUT_RD)`` refuses whoever connects from then on and leaves the queue as it
is, so accepting until empty and closing has no race.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import select
import socket
import stat
import struct
import termios
import time
from collections.abc import Callable

logger = logging.getLogger("flask_lifecycle")

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

_SYN_RECV = "03"  # in /proc/net/tcp; net/tcp_states.h

QUIET_PERIOD = 0.1
# A peer that has not completed its handshake after this long is not going to while we wait.
CLOSING_BOUND = 1.0


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


def handshakes(port: int) -> bool:
    """Whether somebody is in the middle of connecting to a local port; ``False`` where the kernel does not tell."""
    suffix = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as lines:
                for line in lines:
                    fields = line.split(None, 4)
                    if fields[3] == _SYN_RECV and fields[1].endswith(suffix):
                        return True
        except OSError:
            continue
    return False


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
    """

    def __init__(
        self,
        sock: socket.socket,
        accept: Callable[[], bool],
        close: Callable[[], None],
        last_accept: Callable[[], float],
        path: str | None = None,
        identity: tuple[int, int] | None = None,
    ) -> None:
        self._sock = sock
        self._accept = accept
        self._close = close
        self._last_accept = last_accept
        self._began = time.monotonic()
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
        self._accept_waiting()
        age = time.monotonic() - self._began
        if age < CLOSING_BOUND and not self._settled(age):
            return False
        self._accept_waiting()
        self._close()
        log_closed(self.method)
        return True

    def _settled(self, age: float) -> bool:
        if self.method == "unix":
            return True
        if self.method == "quiet period":
            return time.monotonic() - self._last_accept() >= QUIET_PERIOD
        # A SYN that passed the filter on another processor just before it was attached shows in the table a moment
        # later: look again after a step, and believe the second look.
        busy = handshakes(self._sock.getsockname()[1])
        checked, self._checked = self._checked, not busy
        return checked and not busy and age >= 0.002

    def _accept_waiting(self) -> None:
        """Accept until the queue is empty, or until accepting fails over and over (no descriptors left)."""
        failures = 0
        while failures < 16 and has_input(self._sock):
            failures = 0 if self._accept() else failures + 1
