"""Closes a listener without losing a connection.

Closing a listener resets every connection in its accept queue, and every client that completes its handshake between
the last accept and the close, with its request already sent. Accepting until the queue is empty and then closing
therefore still loses some (a third of the stops under clients that connect in a loop). This way loses none:

1. Make the listener *not accepting*: bind it to a network device that does not exist (SO_BINDTOIFINDEX, Linux 5.7, open
   to every process; it cannot be undone, but the listener is about to be closed). The kernel finds a listener by the
   device that a SYN comes from, so from then on it refuses new connections cleanly: nothing of a request has left the
   client. A handshake under way has its own entry in the kernel, without the device, and completes.
   If that is not permitted, attach a classic BPF filter that drops every SYN without ACK. A client whose SYN was
   dropped sends it again a second later and is then refused in the same way. The filter needs CAP_NET_ADMIN on recent
   kernels (EPERM without it on Linux 6.18).
2. Wait until no handshake is under way and the server's own loop, which keeps running, has accepted all connections in
   the queue. The kernel lists handshakes (sock_diag, state SYN_RECV), so an idle listener waits for none; the bound is
   for peers that never complete theirs. If the kernel does not list them, wait for 50 ms.
3. Close.

If neither the device nor the filter is permitted, the listener closes after a quiet period: once the queue has been
empty for 100 ms, or after a second. That is best effort.

A server without free descriptors accepts nothing. Then the listener stays open until some are free, or until the
drain's deadline. Idle connections may use all descriptors, so the server hangs those up meanwhile, as in the drain.

Among several listeners of one address (SO_REUSEPORT) the kernel chooses by a hash and ignores devices: such a listener
is closed with the filter, or after a quiet period.

A Unix socket has no handshake: once its path is removed, no client finds it. One without a path has a quiet period.
"""

from __future__ import annotations

import ctypes
import functools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._core.log import logger
from .sockets import has_input, socket_identity, unlink

# Not in the socket module: <asm-generic/socket.h>
_SO_ATTACH_FILTER = 26
_SO_BINDTOIFINDEX = 62
_NO_DEVICE = 0x7FFFFFFF  # the largest index; the kernel numbers devices from one, and does not check that it exists

# Load byte 13 of the TCP header (the flags), mask SYN and ACK, drop packets with SYN alone. A filter on a listener
# gets the packet from its TCP header on. <linux/filter.h>: struct sock_filter is (code, jt, jf, k).
_SYN_FILTER = (
    (0x30, 0, 0, 13),  # ldb [13]
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN, next, skip one
    (0x06, 0, 0, 0),  # ret #0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1: keep
)

_LISTEN = 1 << 10  # TCPF_LISTEN; net/tcp_states.h
_SYN_RECV = 1 << 3 | 1 << 12  # TCPF_SYN_RECV and TCPF_NEW_SYN_RECV
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = 16  # struct nlmsghdr
_ADDRESS = slice(_HEADER + 8, _HEADER + 24)  # idiag_src, within struct inet_diag_msg
_NETLINK_TIMEOUT = 0.1

QUIET_PERIOD = 0.1
CLOSING_BOUND = 1.0  # the longest wait for peers to complete their handshakes
CLOSING_TICK = 0.001  # between two checks
_UNKNOWN_HANDSHAKES = 0.05
# If a connection waits for _STARVED_AFTER to be accepted, descriptors may have run out. Then connections that have been
# idle for STARVED_LINGER are hung up.
STARVED_LINGER = 0.25
_STARVED_AFTER = 0.05


class Listener:
    """A listening socket of a server.

    :param given: the socket, if another process has opened it and keeps using it; ``sock`` is the same or a duplicate.
    :param server: the object of the server that accepts from it.
    """

    def __init__(self, sock: socket.socket, given: socket.socket | None = None, server: Any = None) -> None:
        self.socket = sock
        self.given = given
        self.server = server
        name = sock.getsockname()
        has_path = sock.family == socket.AF_UNIX and isinstance(name, str) and name != ""
        self.path = os.path.abspath(name) if has_path else None
        self.identity = socket_identity(self.path) if self.path is not None else None

    def close_unserved(self) -> None:
        """Close the listener of a server that has not served."""
        self.socket.close()
        if self.given is None:
            unlink(self.path, self.identity)


class ClosingListener:
    """A listener that is not accepting. No method blocks or logs, because a signal handler of gunicorn calls it.

    :param refuse: whether the kernel refuses new connections; ``False`` if other processes keep accepting.
    """

    def __init__(self, listener: Listener, now: float, *, refuse: bool = True) -> None:
        self.sock = listener.socket
        self.empty_since = self._began = now
        self._settled = 0
        if not refuse:
            self.method = "quiet period"
        elif listener.path is not None:
            unlink(listener.path, listener.identity)  # unless another process has bound a new file there
            self.method = "unix"
        else:
            self.method = refuse_connections(self.sock) or "quiet period"

    def done(self, now: float) -> bool:
        """Whether the queue is empty and will stay empty."""
        age = now - self._began
        if self.sock.fileno() < 0:  # the program has closed it
            return True
        if has_input(self.sock):
            self.empty_since, self._settled = now, 0
            # The kernel still accepts, so an endless stream of clients would keep the listener open forever.
            return self.method == "quiet period" and age >= 2 * CLOSING_BOUND
        if self.method == "quiet period":
            return now - self.empty_since >= QUIET_PERIOD or age >= CLOSING_BOUND
        under_way = self.method != "unix" and handshakes(self.sock)
        if under_way is None:
            return age >= _UNKNOWN_HANDSHAKES
        # A SYN that another processor handled just before the listener stopped accepting appears in the kernel's table
        # a moment later, so only the second check counts.
        self._settled = 0 if under_way else self._settled + 1
        return self._settled > 1 or age >= CLOSING_BOUND


def close_listeners(
    listeners: Iterable[Listener],
    close: Callable[[Listener], object],
    timeout: float,
    make_room: Callable[[], object] = lambda: None,
    *,
    refuse: bool = True,
) -> None:
    """Close the listeners of a server whose loop keeps accepting. Blocks for ``timeout`` seconds at most.

    :param close: closes one listener; connections in its queue are lost.
    :param refuse: see :class:`ClosingListener`.
    :param make_room: hangs up idle connections; called repeatedly while connections wait to be accepted.
    """
    began = time.monotonic()
    closing = {ClosingListener(each, began, refuse=refuse): each for each in listeners}
    pause = threading.Event()
    while closing:
        now = time.monotonic()
        for each in [each for each in closing if each.done(now) or now - began >= timeout]:
            close(closing.pop(each))
            log_closed(each.method)
        if any(now == each.empty_since for each in closing) and now - began >= _STARVED_AFTER:
            make_room()
        if closing:
            pause.wait(CLOSING_TICK)


def silence(sock: socket.socket) -> None:
    """Close a listener; its loop keeps a descriptor with the same number, which never becomes readable."""
    if (descriptor := sock.fileno()) >= 0:
        os.dup2(silent_pipe()[0], descriptor, inheritable=False)


@functools.cache
def silent_pipe() -> tuple[int, int]:
    """The pipe that replaces closed listeners. Call this early: a shutdown may have no free descriptors."""
    return os.pipe()


def log_closed(method: str) -> None:
    """Log how a listener was closed; a quiet period is only best effort."""
    logger.info("listener closed (%s)", method, extra={"lifecycle_method": method})


def refuse_connections(sock: socket.socket) -> str | None:
    """Make the kernel refuse new connections to a TCP listener, but complete the handshakes under way.

    Returns the method; ``None`` if none is permitted.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if not _shares_address(sock) and _set_option(sock, _SO_BINDTOIFINDEX, _NO_DEVICE):
        return "device binding"
    return "socket filter" if attach_syn_filter(sock) else None


def attach_syn_filter(sock: socket.socket) -> bool:
    """Drop packets that begin a connection; ``False`` if that is not permitted."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _SYN_FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(_SYN_FILTER), ctypes.addressof(buffer))  # struct sock_fprog
    return _set_option(sock, _SO_ATTACH_FILTER, program)


def _set_option(sock: socket.socket, option: int, value: int | bytes) -> bool:
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError:
        return False
    return True


# -- the kernel's list of TCP sockets (netlink, sock_diag(7)): ten times quicker than /proc/net/tcp -------------------


def handshakes(listener: socket.socket) -> bool | None:
    """Whether a handshake with a listener is under way; ``None`` if the kernel does not list handshakes."""
    # A listener of IPv6 may accept IPv4 too.
    families = {socket.AF_INET, listener.family}
    port = listener.getsockname()[1]
    try:
        return any(True for family in families for _message in _sockets(family, port, _SYN_RECV))
    except (OSError, AttributeError, struct.error):
        return None


def _shares_address(sock: socket.socket) -> bool:
    """Whether other listeners have the same address; ``True`` if they may, and the kernel does not list them."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        return False
    host, port = sock.getsockname()[:2]
    wanted = socket.inet_pton(sock.family, host.partition("%")[0]).ljust(16, b"\0")
    try:
        return sum(message[_ADDRESS] == wanted for message in _sockets(sock.family, port, _LISTEN)) != 1
    except (OSError, AttributeError, struct.error):
        return True


def _sockets(family: int, port: int, states: int) -> Iterator[bytes]:
    """A message for each TCP socket of a local port in one of the states."""
    question = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states)  # inet_diag_req_v2
    question += struct.pack(">HH", port, 0) + bytes(44)
    header = struct.pack("=IHHII", _HEADER + len(question), 20, 0x301, 1, 0)  # SOCK_DIAG_BY_FAMILY; REQUEST | DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as netlink:  # NETLINK_SOCK_DIAG
        netlink.settimeout(_NETLINK_TIMEOUT)
        netlink.send(header + question)
        while data := netlink.recv(65536):
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel does not list its sockets")
                if kind == _NLMSG_DONE:
                    return
                yield data[:length]
                data = data[length + -length % 4 :]
    raise OSError("the kernel's list is not complete")
