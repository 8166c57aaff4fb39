"""The listeners of a server that ``run`` starts: options, addresses to bind, and sockets that are passed on.

systemd (socket activation, sd_listen_fds(3)) and similar programs pass listeners on as descriptors from 3 on.
Environment variables have their number, their names, and the process that they are for. We always remove these
variables, so that no child uses them, and no child inherits the descriptors.
"""

from __future__ import annotations

import difflib
import errno
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any

from .._core.log import logger
from . import sockets
from .listener import Listener

UNIX = "unix://"
OPTIONS = ("listen", "unix_socket", "sockets")  # for listeners; the same names for every server that we run
FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_DIGITS = 4  # more descriptors than a process may have
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def split_options(
    server: str, options: Mapping[str, Any], known: Mapping[str, Callable[[Any], Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the options for listeners from the server's own, whose values are converted.

    :param known: the function that converts the value, for each of the server's own options.
    :raises ValueError: an option is unknown, or its value cannot be converted.
    """
    where = {name: value for name, value in options.items() if name in OPTIONS}
    own = {name: _converted(server, name, options[name], known) for name in options.keys() - where.keys()}
    return where, own


def _converted(server: str, name: str, value: Any, known: Mapping[str, Callable[[Any], Any]]) -> Any:
    if name not in known:
        names = [*known, *OPTIONS]
        near = difflib.get_close_matches(name, names, n=1)
        cure = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(names)}."
        raise ValueError(f"{server} has no option '{name}'; {cure}")
    try:
        converted = known[name](value)
    except (TypeError, ValueError):
        raise ValueError(f"{server}'s option '{name}' must be a number, not {value!r}.") from None
    if name in ("threads", "backlog", "timeout") and converted <= 0:
        raise ValueError(f"{server}'s option '{name}' must be more than 0, not {value!r}.")
    return converted


def bind(host: str | None, port: int | None, options: Mapping[str, Any], backlog: int) -> list[Listener]:
    """Listen on the addresses and sockets of the options.

    :raises ValueError: the options conflict, or an address is not valid.
    :raises OSError: an address cannot be listened on; the others are closed again.
    """
    addresses, given = where(host, port, options)
    bound = []
    for sock in given:
        sock.listen(backlog)
        bound.append(Listener(sock.dup(), given=sock))
    for address in addresses:
        try:
            bound.append(Listener(_listen(address, addresses, backlog)))
        except (OSError, ValueError) as error:
            for each in bound:
                each.close_unserved()
            raise (sockets.bind_error(error, address) if isinstance(error, OSError) else error) from None
    for each in bound:
        each.socket.setblocking(False)
    return bound


def where(host: str | None, port: int | None, options: Mapping[str, Any]) -> tuple[list[str], list[socket.socket]]:
    """The addresses to listen on, or the sockets that are given.

    :raises ValueError: it is said twice.
    """
    listen, unix, given = (options.get(name) or () for name in OPTIONS)
    addresses = listen.split() if isinstance(listen, str) else [a for entry in listen for a in entry.split()]
    if (addresses or unix or given) and (host is not None or port is not None):
        raise ValueError(
            "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them."
        )
    if given and (addresses or unix):
        raise ValueError("'sockets' cannot be combined with 'listen' or 'unix_socket'; give one of them.")
    if unix:
        addresses.append(f"{UNIX}{os.path.abspath(unix)}")
    if not given and not addresses:
        addresses.append(join(host or "127.0.0.1", 5000 if port is None else port))
    return addresses, list(given)


def join(host: str, port: int) -> str:
    """An address as an option would name it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """The host and the port of an address.

    :raises ValueError: it has none.
    """
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"'{address}' is no address to listen on; write it as 127.0.0.1:5000 or [::1]:5000.")
    return host.strip("[]") or "127.0.0.1", int(port)


def has_wildcard(host: str | None, port: int | None, options: Mapping[str, Any]) -> bool:
    """Whether one of the addresses is ``*`` or ``::``, and none is a path.

    :raises ValueError: see :func:`where`.
    """
    addresses, _given = where(host, port, options)
    has_path = any(address.startswith(UNIX) for address in addresses)
    return not has_path and any(address.startswith(("*:", "[::]:")) for address in addresses)


def _listen(address: str, addresses: Collection[str], backlog: int) -> socket.socket:
    """A socket that listens on one of the addresses; ``*`` and ``::`` are all addresses, of IPv6 and of IPv4."""
    if address.startswith(UNIX):
        path = address.removeprefix(UNIX)
        # Left behind by a process that was killed.
        sockets.unlink(path, sockets.socket_identity(path))
        return sockets.listen(socket.AF_UNIX, socket.SOCK_STREAM, path, backlog)
    host, port = split(address)
    v6only = host == "::" and f"0.0.0.0:{port}" in addresses  # which has all of IPv4
    return sockets.listen(*sockets.resolve(host, port), backlog, v6only=v6only)


# -- sockets that another program has opened --------------------------------------------------------------------------


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
    return {**options, "sockets": [listener(number, name) for number, name in enumerate(names, FIRST_DESCRIPTOR)]}


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
    except OSError as error:
        what = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise ValueError(f"{called} {what}; pass on a listening socket.") from None
    wrong = _wrong(sock)
    if wrong:
        sock.detach()  # another program owns it
        raise ValueError(f"{called} {wrong}; pass on a listening socket.")
    sock.set_inheritable(False)
    return sock


def _wrong(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "is neither an Internet nor a Unix socket"
    if sock.type != socket.SOCK_STREAM:
        return "is no stream socket (ListenStream= in a socket unit)"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen (a connection itself: Accept=no in a socket unit)"
    return ""
