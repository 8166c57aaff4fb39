"""Socket functions: the kernel's data about a socket, lingering close, addresses and errors."""

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
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from .._core.fork import renew_in_children

# Seconds that a lingering close reads from a client: between two reads, and in all. The total is nginx's
# lingering_time: a client that is still sending an upload which we refused then reads the reason.
LINGER = 2.0
LINGER_IN_ALL = 30.0
_LINGER_TICK = 0.01
ACK_TICK = 0.005  # between two checks whether the peer has acknowledged the last bytes; that wakes no thread
_TCP_CLOSE = 7  # the state of a closed connection, as the first byte of TCP_INFO; <netinet/tcp.h>
_BYTES_RECEIVED = 128  # in struct tcp_info, <linux/tcp.h>: tcpi_bytes_received, a number of 64 bits


def has_input(sock: socket.socket) -> bool:
    """Whether a read would not block: the kernel has bytes, an end of file or an error."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def has_bytes(sock: socket.socket) -> bool:
    """Whether there is at least one byte to read (an end of file does not count)."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False


def unread(sock: socket.socket) -> int:
    """The number of bytes to read. Takes any object with a socket's ``fileno()``."""
    return _count(sock, termios.FIONREAD)


def unsent(sock: socket.socket) -> int:
    """The number of bytes that the peer's kernel has not acknowledged (SIOCOUTQ); 0 if unknown, or the peer is gone.

    After a reset the kernel still counts the bytes that it cannot deliver. HAProxy resets a connection as soon as it
    has the last byte of a response with ``Connection: close``.
    """
    # SIOCOUTQ and TIOCOUTQ are the same number. On a Unix socket it counts the bytes that the peer has not read.
    left = _count(sock, termios.TIOCOUTQ)
    return 0 if left and is_dead(sock) else left


def is_dead(sock: socket.socket) -> bool:
    """Whether the connection was reset, so that nothing that is sent arrives; ``False`` on a Unix socket."""
    return tcp_info(sock, "=B", 0) == _TCP_CLOSE


def _count(sock: socket.socket, request: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), request, b"\0\0\0\0"))[0])
    except (OSError, ValueError):
        return 0


def tcp_info(sock: Any, kind: str, offset: int) -> int | None:
    """A number from the kernel's ``struct tcp_info``; ``None`` if unknown: the socket is not TCP, or is closed."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, offset + struct.calcsize(kind))
        return int(struct.unpack_from(kind, info, offset)[0])
    except (OSError, ValueError, AttributeError, struct.error):
        return None


def bytes_received(sock: Any) -> int | None:
    """The number of bytes that a connection has received in all; ``None`` if unknown."""
    return tcp_info(sock, "=Q", _BYTES_RECEIVED)


def hang_up(sock: socket.socket) -> None:
    """End a connection for the peer. Closing alone would not, if a forked child has a copy of the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def end_input(sock: socket.socket) -> None:
    """End the input of a connection for the thread that reads it. Output still reaches the peer."""
    # Not SSLSocket.shutdown(), which would remove the TLS state that the other thread uses.
    with contextlib.suppress(OSError, TypeError):
        socket.socket.shutdown(sock, socket.SHUT_RD)


def half_close(sock: socket.socket) -> bool:
    """Shut a connection down for writing; ``False`` if the peer has gone."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return False
    return True


def at_request(sock: socket.socket, file: Any) -> bool:
    """Whether the client has sent a byte of a further request. Does not block.

    :param file: reads from the socket, with a buffer.
    """
    timeout = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        return skip_empty_lines(file)
    except OSError:  # TLS has no whole record, or the client has reset the connection
        return False
    finally:
        sock.settimeout(timeout)


def skip_empty_lines(file: Any) -> bool:
    """Skip the empty lines that some clients send between requests; ``False`` at the end of the input."""
    while data := file.peek(1):
        empty = len(data) - len(data.lstrip(b"\r\n"))
        file.read(empty)
        if empty < len(data):
            return True
    return False


def linger(sock: Any, patience: Callable[[], float], pause: Callable[[float], object]) -> None:
    """Shut a connection down for writing, and read until the client closes it too. Blocks.

    A close with unread input would reset the connection, and the client would lose the end of the response.

    :param patience: the number of seconds that the client may be silent after its kernel has acknowledged the response.
    :param pause: sleeps for a number of seconds.
    """
    since = time.monotonic()
    until = since + LINGER_IN_ALL
    if not half_close(sock):
        return
    sock.settimeout(_LINGER_TICK)
    while time.monotonic() < min(until, since + patience()):
        try:
            if not sock.recv(65536):
                break
            since = time.monotonic()
        except TimeoutError:
            since = time.monotonic() if unsent(sock) else since
        except OSError:
            break
    while unsent(sock) and time.monotonic() < until:
        pause(ACK_TICK)


def socket_identity(path: str) -> tuple[int, int] | None:
    """The device and inode of the Unix socket at a path, ``None`` if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def unlink(path: str | None, identity: tuple[int, int] | None) -> None:
    """Remove a Unix socket's path if it is still the bound file."""
    if path is not None and identity is not None and socket_identity(path) == identity:
        with contextlib.suppress(OSError):
            os.unlink(path)


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, socket.SocketKind, Any]:
    """Resolve the address to bind for a host and a port; ``*`` means all addresses of this machine.

    :raises OSError: the host does not exist, or its name is not valid (a label of 64 characters).
    """
    if host == "*":
        host = "::" if _has_ipv6() else "0.0.0.0"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
    family, kind, _proto, _name, address = found[0]
    return family, kind, address


def _has_ipv6() -> bool:
    """Whether this machine can listen on IPv6; Python may support it while the kernel does not."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True


def listen(
    family: int, kind: int, address: Any, backlog: int, *, shared: bool = False, v6only: bool = False
) -> socket.socket:
    """A socket that listens.

    :param shared: other processes of this user may listen at the same address (``SO_REUSEPORT``).
    :param v6only: ``::`` stands for IPv6 addresses only; otherwise for IPv4 too.
    :raises OSError: the address cannot be listened on.
    """
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # has no effect on a Unix socket
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        sock.bind(address)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def common_host(listeners: Iterable[socket.socket]) -> tuple[str, bool]:
    """The host that all of these listeners share, and whether it is for IPv6 only; 127.0.0.1 if they share none."""
    hosts = set()
    for sock in listeners:
        v6 = sock.family == socket.AF_INET6
        if v6 or sock.family == socket.AF_INET:
            v6only = v6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
            hosts.add((sock.getsockname()[0], v6only))
    if {name for name, _ in hosts} == {"0.0.0.0", "::"}:
        return "::", False  # all addresses, by one listener for each family
    return hosts.pop() if len(hosts) == 1 else ("127.0.0.1", False)


# The listeners of probes, as opposed to those of the application.
probe_listeners: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def describe(sock: socket.socket) -> str:
    """A listener's address as a user would type it."""
    name = sock.getsockname()
    if sock.family == socket.AF_INET6:
        return f"http://[{name[0]}]:{name[1]}"
    if sock.family == socket.AF_INET:
        return f"http://{name[0]}:{name[1]}"
    return f"unix:{name}"


def bind_error(error: OSError, where: str) -> OSError:
    """The error for an address that cannot be listened on."""
    cause, cure = os.strerror(error.errno or 0), "choose another address"
    if error.errno == errno.EADDRINUSE:
        cause, cure = "it is in use by another program", "stop that program or choose another port"
    elif error.errno in (errno.EACCES, errno.EPERM):
        cause, cure = "permission is denied", "choose a port above 1023 or a path that may be written"
    elif error.errno is None or isinstance(error, socket.gaierror):
        cause = error.strerror or str(error)
    return OSError(error.errno, f"Cannot listen on {where}: {cause}; {cure}.")


def has_other_owners(sock: socket.socket) -> bool:
    """Whether another process has a copy of a listener: systemd, a parent or a child."""
    if "LISTEN_PID" in os.environ or "LISTEN_FDS" in os.environ:
        return True
    link = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    mine = str(os.getpid())
    return any(link in _links(pid) for pid in listed("/proc") if pid.isdecimal() and pid != mine)


def _links(pid: str) -> Iterator[str]:
    for name in listed(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/fd/{name}")


def listed(directory: str) -> list[str]:
    """The names in a directory; none if it cannot be read."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


class _Owner(Protocol):
    def sockets(self) -> Iterable[socket.socket]: ...


_owners: weakref.WeakSet[_Owner] = weakref.WeakSet()


def close_in_children(owner: _Owner) -> None:
    """Close a server's sockets in every child that is forked from this process.

    A child that outlives us would keep the listener and unanswered connections open, without accepting or answering.
    """
    _owners.add(owner)


def _after_fork() -> None:
    for owner in list(_owners):
        for sock in list(owner.sockets()):
            # Not sock.close(), which waits for the files that Werkzeug has made from it; nothing closes those here.
            if (descriptor := sock.detach()) >= 0:
                os.close(descriptor)
    _owners.clear()


renew_in_children(_after_fork)
