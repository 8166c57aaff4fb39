"""Listening sockets that somebody else has opened: what systemd passes on, and what is named by its descriptor.

systemd (socket activation, sd_listen_fds(3)) and whoever speaks as it does put listeners at the descriptors from 3 on,
and say so in variables: how many, for which process, by which names. They are taken out of the environment whatever
they say, so that no child takes them for its own, and none inherits the descriptors.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from ._state import logger

_FIRST = 3  # SD_LISTEN_FDS_START
_DIGITS = 4  # more descriptors than a process may have
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def with_passed_on(
    host: str | None, port: int | None, options: Mapping[str, Any], environ: MutableMapping[str, str] = os.environ
) -> dict[str, Any]:
    """The options of a server with the listeners that this process was started with, if it was started with any.

    Whoever names descriptors means the same ones by their numbers. Any other address would leave the listeners that
    were passed on without anybody who accepts from them, so that their clients would wait for ever.

    :raises ValueError: an address is given as well, or what was passed on is not as it should be.
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
    return {**options, "sockets": [listener(number, name) for number, name in enumerate(names, _FIRST)]}


def _passed_on(environ: MutableMapping[str, str]) -> list[str]:
    """The names of the sockets that this process was started with, one for each."""
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
        raise ValueError(f"LISTEN_FDS is '{count}', which is no number of sockets; let systemd set it.")
    known = names.split(":")[: int(count)]
    return known + [""] * (int(count) - len(known))


def listeners(descriptors: Iterable[int]) -> list[socket.socket]:
    """The listeners that have these descriptors.

    :raises ValueError: one of them is none, or is named twice.
    """
    numbers = list(descriptors)
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"The descriptor {number} is named twice; name each once.")
    return [listener(number) for number in numbers]


def listener(descriptor: int, name: str = "") -> socket.socket:
    """The listening socket that has a descriptor, no child of which inherits it.

    :param name: what its giver calls it.
    :raises ValueError: it is none.
    """
    called = f"The descriptor {descriptor}{f' ({name!a})' if name else ''}"
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        what = "is not open" if not _is_open(descriptor) else "is no socket"
        raise ValueError(f"{called} {what}; pass on a listening socket.") from None
    wrong = _wrong(sock)
    if wrong:
        sock.detach()  # it is not ours to close
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
