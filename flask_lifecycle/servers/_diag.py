"""What the kernel tells of its TCP sockets (netlink, sock_diag(7)): ten times quicker than /proc/net/tcp."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

_TIMEOUT = 0.1
_LISTEN = 1 << 10  # TCPF_LISTEN; net/tcp_states.h
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_HEADER = 16  # struct nlmsghdr
_ADDRESS = slice(_HEADER + 8, _HEADER + 24)  # idiag_src, within struct inet_diag_msg


def in_state(family: int, port: int, states: int) -> bool:
    """Whether there are sockets of a local port in one of the states.

    :raises OSError: the kernel does not tell.
    """
    return next(_sockets(family, port, states), None) is not None


def listeners_at(sock: socket.socket) -> int:
    """How many listeners have the address of this one, itself among them.

    :raises OSError: the kernel does not tell.
    """
    host, port = sock.getsockname()[:2]
    wanted = socket.inet_pton(sock.family, host.partition("%")[0]).ljust(16, b"\0")
    return sum(message[_ADDRESS] == wanted for message in _sockets(sock.family, port, _LISTEN))


def _sockets(family: int, port: int, states: int) -> Iterator[bytes]:
    """A message for each socket."""
    question = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, states)  # inet_diag_req_v2
    question += struct.pack(">HH", port, 0) + bytes(44)
    header = struct.pack("=IHHII", _HEADER + len(question), 20, 0x301, 1, 0)  # SOCK_DIAG_BY_FAMILY; REQUEST | DUMP
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as netlink:  # NETLINK_SOCK_DIAG
        netlink.settimeout(_TIMEOUT)
        netlink.send(header + question)
        while data := netlink.recv(65536):
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _ERROR:
                    raise OSError("the kernel does not tell")
                if kind == _DONE:
                    return
                yield data[:length]
                data = data[length + -length % 4 :]
    raise OSError("the kernel does not tell all")
