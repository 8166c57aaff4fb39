"""The live application with a log of its server that raises, which is how a worker of waitress dies."""

from __future__ import annotations

import importlib
import logging


class Raising(logging.Handler):
    """A handler that does not catch what goes wrong in it."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("the log is full")


live_app = importlib.import_module("live_app")
app, lifecycle = live_app.app, live_app.lifecycle
logging.getLogger("waitress").addHandler(Raising(logging.ERROR))
