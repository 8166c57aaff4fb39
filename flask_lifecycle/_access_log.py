"""Probes stay out of the access logs: a filter on the loggers of the servers that write one."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote

# Werkzeug and our gevent give the request line, with colours and as the client quoted it; gunicorn gives its fields, of
# which U is the path without the query.
_LOGGERS = ("werkzeug", "gunicorn.access", "gevent.pywsgi")
_REQUEST_LINE = r"(?:\x1b\[[\d;]*m)*[A-Z]+ ([^ ?]+)[^ ]* HTTP/"


class Probes(Protocol):
    def is_probe(self, path: str) -> bool:
        """Whether a request path asks for a probe."""


class _ProbeFilter(logging.Filter):
    """Drops the records of requests that were probes. Holds the applications weakly, which it may outlive."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: weakref.WeakSet[Probes] = weakref.WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        path: object = None
        if isinstance(record.args, Mapping):
            path = record.args.get("U")
        elif record.args and isinstance(line := record.args[0], str) and (found := re.match(_REQUEST_LINE, line)):
            path = unquote(found[1]).encode("utf-8", "replace").decode("latin-1")  # as PATH_INFO has it
        return not (isinstance(path, str) and any(probes.is_probe(path) for probes in self.silent))


_filter = _ProbeFilter()


def silence(probes: Probes) -> None:
    """Keep an application's probes out of the access logs, also of a server that is not in use yet."""
    # A new set in one assignment: a request that is being logged goes on with the old one.
    _filter.silent = weakref.WeakSet([*_filter.silent, probes])
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_filter)
