"""Listening sockets that another program has opened: passed on by systemd, or given by descriptor.

systemd (socket activation, sd_listen_fds(3)) and similar programs pass listeners on as descriptors from 3 on.
Environment variables have their number, their names, and the process that they are for. We always remove these
variables, so that no child uses them, and no child inherits the descriptors.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from .._core.state import logger

FIRST = 3  # SD_LISTEN_FDS_START
_DIGITS = 4  # more descriptors than a process may have
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def with_passed_on(
    host: str | None, port: int | None, options: Mapping[str, Any], environ: MutableMapping[str, str] = os.environ
) -> dict[str, Any]:
    """The options of a server, with the listeners that were passed on to this process.

    An address in addition is an error: the server would accept from the address only, and clients of the listeners that
    were passed on would wait forever.

    :raises ValueError: an address is given as well, or the variables or sockets are not valid.
    """
    if options.get("sockets"):
        for name in VARIABLES:
            environ.pop(name, None)
        return dict(options)
    names = _passed_on(environ)
    if not names:
        return dict(options)
    if host is not None or port is not None or options.keys() & {"listen", "unix_socket"}:
        raise ValueError(
            f"LISTEN_FDS is {len(names)}, so there are listening sockets already, and an address is given as well;"
            " leave the address out, or the socket unit."
        )
    return {**options, "sockets": [listener(number, name) for number, name in enumerate(names, FIRST)]}


def _passed_on(environ: MutableMapping[str, str]) -> list[str]:
    """The names of the sockets that were passed on, one for each."""
    pid, count, names, _ = (environ.pop(name, "") for name in VARIABLES)
    if not count:
        return []
    if pid != str(os.getpid()):
        logger.warning(
            "LISTEN_FDS is meant for process %s, and this is %d: its sockets are not used;"
            " let systemd start this process itself, or a shell by 'exec'.",
            pid or "(none)", os.getpid(), extra={"lifecycle_pid": pid},
        )  # fmt: skip
        return []
    if not count.isdecimal() or len(count) > _DIGITS:
        raise ValueError(f"LISTEN_FDS is '{count}', which is not a number of sockets; let systemd set it.")
    known = names.split(":")[: int(count)]
    return known + [""] * (int(count) - len(known))


def listeners(descriptors: Iterable[int]) -> list[socket.socket]:
    """The listeners with these descriptors.

    :raises ValueError: a descriptor is not a listening socket, or is given twice.
    """
    numbers = list(descriptors)
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"The descriptor {number} is named twice; name each once.")
    return [listener(number) for number in numbers]


def listener(descriptor: int, name: str = "") -> socket.socket:
    """The listening socket with this descriptor; children will not inherit it.

    :param name: its name in ``LISTEN_FDNAMES``, for errors.
    :raises ValueError: it is not a listening socket.
    """
    called = f"The descriptor {descriptor}{f' ({name!a})' if name else ''}"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        what = "is not open" if not _is_open(descriptor) else "is not a socket"
        raise ValueError(f"{called} {what}; pass on a listening socket.") from None
    wrong = _wrong(sock)
    if wrong:
        sock.detach()  # another program owns it
        raise ValueError(f"{called} {wrong}; pass on a listening socket.")
    sock.set_inheritable(False)
    return sock


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _wrong(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "is neither an Internet nor a Unix socket"
    if sock.type != socket.SOCK_STREAM:
        return "is no stream socket (ListenStream= in a socket unit)"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen (a connection itself: Accept=no in a socket unit)"
    return ""
