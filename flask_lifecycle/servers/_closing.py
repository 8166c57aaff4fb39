"""How a listener is closed without losing a connection.

Closing a listener resets every connection in its accept queue, and whoever completes a handshake between the last
accept and the close is reset as well, with its request already sent. Accepting until the queue is empty and then
closing therefore still loses some (a third of the stops under clients that connect in a loop). What loses none:

1. Bind the listener to a network device that does not exist. The kernel finds a listener by the device that a SYN comes
   from, so from then on whoever begins to connect is refused, cleanly: nothing of a request has left the client. A
   handshake that is under way has its own entry in the kernel, without the device, and goes on. Linux lets everybody do
   that since 5.7 (SO_BINDTOIFINDEX; not undo it, but the listener is on its way out).
   Where that is refused, attach a classic BPF filter that drops every SYN which is not a SYN-ACK's answer. A client
   whose SYN was dropped sends it again a second later and is then refused in the same way. The filter needs
   CAP_NET_ADMIN on recent kernels (EPERM without it on Linux 6.18).
2. Go on accepting until no handshake is under way. The kernel tells which are (sock_diag, state SYN_RECV), so an idle
   listener need not wait for any; the bound is for peers that never complete theirs. Where it does not tell, 50 ms.
3. Accept until the queue is empty, and close.

Without both the next best is a quiet period: close once nobody has connected for 100 ms, or when a second has passed.
That is best effort.

Out of descriptors nothing can be accepted: the listener stays until some come free, or the drain's deadline.

Beside another listener of the same address (SO_REUSEPORT) the kernel deals out to that one from now on; see
``_reuseport.py``. There too a moment's quiet shows that no handshake is under way, as the table has those of both.

A Unix socket has no handshake: ``shutdown(SHUT_RD)`` refuses whoever connects from then on and leaves the queue as it
is, so accepting until empty and closing has no race.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable

from .._sockets import has_input, unlink
from .._state import logger
from . import _bpf, _reuseport
from ._diag import in_state

# Not in the socket module: <asm-generic/socket.h>
_SO_ATTACH_FILTER = 26
_SO_BINDTOIFINDEX = 62
# The largest index there is; the kernel counts devices up from one and does not ask whether there is such a device.
_NO_DEVICE = 0x7FFFFFFF

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

QUIET_PERIOD = 0.1
# A peer that has not completed its handshake after this long is not going to while we wait.
CLOSING_BOUND = 1.0
# How often a server's loop calls step() meanwhile.
CLOSING_TICK = 0.001
_AT_ONCE = 64
# Accepting may fail for once because the client has gone again; so often in a row, because nothing can be accepted.
_FAILURES = 16
_STARVED_PAUSE = 0.01
_UNKNOWN_HANDSHAKES = 0.05
# Who is still dealt new connections after so long has named itself.
_DEALT = 0.2


def deafen(sock: socket.socket) -> str | None:
    """Make a TCP listener deaf to new connections but not to those under way.

    Returns by what; ``None`` where no way is permitted.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    # Among listeners of one address (SO_REUSEPORT) the kernel deals out by a hash, and looks at no device any more.
    if not _reuseport.is_shared(sock) and bind_to_no_device(sock):
        return "no device"
    return "socket filter" if attach_syn_filter(sock) else None


def bind_to_no_device(sock: socket.socket) -> bool:
    """Let no connection come in by any device; ``False`` where that is not permitted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _NO_DEVICE)
    except OSError:
        return False
    return True


def attach_syn_filter(sock: socket.socket) -> bool:
    """Drop what would begin a connection; ``False`` where that is not permitted."""
    return _bpf.attach(sock, _SO_ATTACH_FILTER, _SYN_FILTER)


def handshakes(listener: socket.socket) -> bool | None:
    """Whether somebody is in the middle of connecting to a listener; ``None`` where the kernel does not tell."""
    # An IPv6 one may take IPv4 as well.
    families = {socket.AF_INET, listener.family}
    try:
        return any(in_state(family, listener.getsockname()[1], _SYN_RECV) for family in families)
    except (OSError, AttributeError, struct.error):
        return None


def log_closed(method: str) -> None:
    """Say how a listener was closed: deaf, the promise is whole; after a quiet period it is best effort."""
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
        self._turned = False
        if sock.family == socket.AF_UNIX:
            self.method = "unix"
            # Somebody who took our path over in the meantime keeps it.
            unlink(path, identity)
            sock.shutdown(socket.SHUT_RD)
        elif _reuseport.has_one_sibling(sock) and _reuseport.deal_to(sock, 1):
            self.method = "reuse port"
        else:
            self.method = deafen(sock) or "quiet period"

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
        if self.method == "reuse port":
            return self._gone_to_the_other(age)
        if self.method == "quiet period":
            return time.monotonic() - self._last_accept() >= QUIET_PERIOD
        busy = handshakes(self._sock)
        if busy is None:
            return age >= _UNKNOWN_HANDSHAKES and not has_input(self._sock)
        # A SYN that passed on another processor just before the listener was deaf shows in the table a moment later:
        # look again after a step, and believe the second look.
        checked, self._checked = self._checked, not busy
        return checked and not busy and not has_input(self._sock)

    def _gone_to_the_other(self, age: float) -> bool:
        quiet = time.monotonic() - max(self._last_accept(), self._began)
        if not self._turned and age >= _DEALT and quiet < _UNKNOWN_HANDSHAKES:
            self._turned = _reuseport.deal_to(self._sock, 0)
        return quiet >= _UNKNOWN_HANDSHAKES and not has_input(self._sock)

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


class ClosingListeners:
    """The listeners of one server on their way to being closed. For its loop; any thread may wait for ``done``."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self._left: list[ClosingListener] = []

    @property
    def under_way(self) -> bool:
        """Whether :meth:`step` is to be called, each ``CLOSING_TICK``."""
        return bool(self._left)

    @property
    def begun(self) -> bool:
        """Whether they are being closed, or are closed or left to somebody else."""
        return self.under_way or self.done.is_set()

    def begin(self, listeners: Iterable[ClosingListener]) -> None:
        """Close these; if there are none, that is done."""
        self._left.extend(listeners)
        if not self._left:
            self.done.set()

    def step(self) -> None:
        """Take each a step further."""
        if self._left:
            self._left = [listener for listener in self._left if not listener.step()]
            if not self._left:
                self.done.set()
