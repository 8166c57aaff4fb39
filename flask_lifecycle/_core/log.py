"""The logger of the package, and a handler for it where the application has not set logging up.

Only ``run()`` and ``flask lifecycle run`` add the handler. Elsewhere the package is a library, whose log is the
application's to show.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from typing import Any

from .text import Lines, visible

# Leaves our own log() out when logging looks for the caller. Before Python 3.11 its own frames count as well.
_CALLER = 2 if sys.version_info >= (3, 11) else 3


class _Log(logging.LoggerAdapter):  # type: ignore[type-arg]  # subscriptable from Python 3.11 on
    """The logger of the package. A handler that raises must not change the course of a shutdown."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, stacklevel=_CALLER, **kwargs)


class _Visible(logging.Filter):
    """Escapes the arguments of every record (``text.py``), but no fields: formatters that write these encode them.

    The text of an exception is stored where :class:`logging.Formatter` looks before it makes its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        if record.exc_info and not record.exc_text:
            pieces = traceback.format_exception(*record.exc_info)
            record.exc_text = "\n".join(Lines.of(piece) for piece in pieces)
        return True


def _shown(argument: object) -> object:
    if isinstance(argument, (int, float, Lines)):
        return argument
    with contextlib.suppress(Exception):  # its __str__ fails; the handler reports that
        return visible(str(argument))
    return argument


_logger = logging.getLogger("flask_lifecycle")
_logger.addFilter(_Visible())
logger = _Log(_logger, {})


def show_log() -> None:
    """Give our logger a handler that writes to standard error, unless a handler takes its records; as Werkzeug does."""
    if _is_handled():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    _logger.addHandler(handler)
    if _logger.level == logging.NOTSET:
        _logger.setLevel(logging.INFO)


def _is_handled() -> bool:
    level = _logger.getEffectiveLevel()
    current: logging.Logger | None = _logger
    while current is not None:
        if any(handler.level <= level for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
