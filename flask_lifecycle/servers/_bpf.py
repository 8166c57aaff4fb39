"""Classic BPF programs for sockets; <linux/filter.h>."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence


def attach(sock: socket.socket, option: int, instructions: Sequence[tuple[int, int, int, int]]) -> bool:
    """Give a socket a program by an option of ``SOL_SOCKET``; ``False`` where that is not permitted.

    :param instructions: each a ``struct sock_filter``: code, jt, jf, k.
    """
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))  # struct sock_fprog
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, program)
    except OSError:
        return False
    return True
