"""Keeps probes out of access logs: a filter on the loggers of the servers that write them."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from .endpoints import Probes

# Werkzeug and gevent log the request line, with colours and as the client quoted it; uvicorn logs its parts. The others
# log fields, with the path in the one that is named here; gunicorn's is in Latin-1, as WSGI has it.
_LOGGERS = {
    "werkzeug": "",
    "gevent.pywsgi": "",
    "uvicorn.access": "",
    "gunicorn.access": "U",
    "hypercorn.access": "U",
    "granian.access": "path",
}
_REQUEST_LINE = re.compile(r"(?:\x1b\[[\d;]*m)*[A-Z]+ ([^ ?]+)[^ ]* HTTP/")


class _ProbeFilter(logging.Filter):
    """Drops the records of probes. References the applications weakly, because it may outlive them."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: tuple[weakref.ref[Probes], ...] = ()  # a loop over a WeakSet costs each request six calls

    def filter(self, record: logging.LogRecord) -> bool:
        path = _path(record)
        for reference in self.silent:
            probes = reference()
            if probes is not None and probes.is_probe(path):
                return False
        return True


def _path(record: logging.LogRecord) -> str:
    """The path in a record of an access log, as PATH_INFO has it; empty if there is none."""
    args = record.args
    if isinstance(args, Mapping):
        path = args.get(_LOGGERS.get(record.name, ""))
        if not isinstance(path, str):
            return ""
        return path if record.name == "gunicorn.access" else _as_path_info(path)
    if record.name == "uvicorn.access" and args and len(args) == 5:
        return _unquoted(str(args[2]).partition("?")[0])
    line = args[0] if args else None
    found = _REQUEST_LINE.match(line) if isinstance(line, str) else None
    return _unquoted(found[1]) if found else ""


def _unquoted(path: str) -> str:
    return _as_path_info(unquote(path)) if "%" in path or not path.isascii() else path


def _as_path_info(path: str) -> str:
    """A path that was decoded from UTF-8, as WSGI has it."""
    return path.encode("utf-8", "replace").decode("latin-1")


_filter = _ProbeFilter()


def silence(probes: Probes) -> None:
    """Keep an application's probes out of the access logs, also of servers that start later."""
    # A new tuple in one assignment: a request that is being logged continues with the old one.
    _filter.silent = (*(each for each in _filter.silent if each() not in (None, probes)), weakref.ref(probes))
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
