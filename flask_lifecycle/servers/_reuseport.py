"""Two processes that listen at one address each for itself (``SO_REUSEPORT``), and how one of them leaves.

The kernel deals new connections out to all listeners of the address, by a hash, and a connection belongs to the
listener that its first packet came to: what waits in the queue of one that is closed is reset, although the other would
take it. (``net.ipv4.tcp_migrate_req=1`` lets it have them; it is off by default, and the administrator's to turn on.)
The filter that makes a listener deaf (``_closing.py``) loses nothing here either, but the half of the clients that the
hash sends to deaf ears come again only after a second.

So whoever leaves has the kernel deal out nothing more to it: a classic BPF program on the group of listeners says which
one is to have a new connection, by its index, and needs no capability. The listener that has been there longest has
index 0, and when one is closed the last takes its place; nobody tells an index. With one other listener ours is 0 as a
rule, because it is the older process that leaves; so the program says 1. If connections go on coming, ours was 1, and
it says 0. An index that is none, as when we have gone, means the hash; who comes to the group takes the program away.

Of more than one other listener none can be named that all of them would agree with, so there the listener is closed as
if it were alone.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

from .. import _sockets
from . import _binding, _bpf, _diag

_BACKLOG = 1024
# Not in the socket module: <asm-generic/socket.h>
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68
_RETURN = 0x06  # BPF_RET | BPF_K


def listen(host: str | None, port: int | None, options: dict[str, Any]) -> list[socket.socket]:
    """Listen where the options of a server say, beside others of this user.

    :raises ValueError: there is something else than hosts and ports.
    :raises OSError: an address cannot be listened on.
    """
    if options.keys() & {"unix_socket", "sockets"}:
        raise ValueError("'reuse_port' cannot be combined with 'unix_socket' or 'sockets'; it is for hosts and ports.")
    addresses = str(options.get("listen") or "").split()
    if addresses and (host is not None or port is not None):
        raise ValueError("A host or port cannot be combined with 'listen'; give one of them.")
    named = [(name.replace("*", "0.0.0.0"), number) for name, number in map(_binding.split, addresses)]
    opened: list[socket.socket] = []
    for name, number in named or [(host or "127.0.0.1", 5000 if port is None else port)]:
        try:
            opened.append(_binding.bind_one(_binding.join(name, number), _BACKLOG, shared=True))
        except OSError as error:
            for sock in opened:
                sock.close()
            raise _sockets.bind_error(error, f"{name}:{number}") from None
        with contextlib.suppress(OSError):  # there is none
            opened[-1].setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
    return opened


def has_one_sibling(sock: socket.socket) -> bool:
    """Whether another listener shares the address of this one, and no third."""
    return _listeners(sock) == 2


def is_shared(sock: socket.socket) -> bool:
    """Whether other listeners share the address of this one, or may."""
    return _listeners(sock) != 1


def _listeners(sock: socket.socket) -> int:
    """How many listen at the address of a listener; 0 where the kernel does not tell."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return 1
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        return 1
    try:
        return _diag.listeners_at(sock)
    except (OSError, AttributeError, struct.error):
        return 0


def deal_to(sock: socket.socket, index: int) -> bool:
    """Let new connections of the group go to the listener with an index; ``False`` where that cannot be done."""
    return _bpf.attach(sock, _SO_ATTACH_REUSEPORT_CBPF, [(_RETURN, 0, 0, index)])
