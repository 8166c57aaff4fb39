"""Shows the package's log where the application has not set logging up.

Only ``run()`` and ``flask lifecycle run`` do so: they are the program. Elsewhere the package is a library, whose log is
the application's to show.
"""

from __future__ import annotations

import logging


def show_log() -> None:
    """Give our logger a handler that writes to standard error, unless a handler takes its records; as Werkzeug does."""
    logger = logging.getLogger("flask_lifecycle")
    if _is_handled(logger):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _is_handled(logger: logging.Logger) -> bool:
    level = logger.getEffectiveLevel()
    current: logging.Logger | None = logger
    while current is not None:
        if any(handler.level <= level for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False
