"""The live application with what stops a server: a log that raises, a loop that hangs, a held lock."""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any


class Raising(logging.Handler):
    """A handler that does not catch what goes wrong in it."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("the log is full")


live_app = importlib.import_module("live_app")
app, lifecycle = live_app.app, live_app.lifecycle
logging.getLogger("waitress").addHandler(Raising(logging.ERROR))


def server() -> Any:
    """The runner that serves this process."""
    return app.extensions["lifecycle"].process.shutdown.server


@app.get("/hang-loop")  # type: ignore[untyped-decorator]
def hang_loop() -> str:
    post = server()._servers[0].trigger.pull_trigger if server().name == "waitress" else server().ping
    post(lambda: live_app.pass_gate("all"))
    return "it hangs"


def hold_lock_of_pool() -> None:
    with server()._servers[0].task_dispatcher.lock:
        live_app.event("locked")
        live_app.pass_gate("all")


@app.get("/hold-lock")  # type: ignore[untyped-decorator]
def hold_lock() -> str:
    threading.Thread(target=hold_lock_of_pool, daemon=True).start()
    return "it is held"
