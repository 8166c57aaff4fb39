"""Requests that something around the application answers, which no ledger has."""

from __future__ import annotations

import signal
import sys

import pytest

from ._client import Connection, answers, free_port
from ._process import Starter

COMMANDS = {
    name: ("around_app.py", name, "{port}") for name in ("waitress", "make_server", "cheroot", "uvicorn", "hypercorn")
} | {
    "gevent": ("-m", "gevent.monkey", "around_app.py", "gevent", "{port}"),
    "gunicorn": ("-m", "gunicorn", "-c", "python:flask_lifecycle.gunicorn", "-k", "gthread", "--threads", "4",
                 "-b", "127.0.0.1:{port}", "around_app:app"),
    "gunicorn-alone": ("-m", "gunicorn", "-k", "gthread", "--threads", "4", "-b", "127.0.0.1:{port}", "around_app:app"),
    "gunicorn-gevent": ("-m", "gunicorn", "-k", "gevent", "-b", "127.0.0.1:{port}", "around_app:app"),
    "granian": ("-m", "granian", "--interface", "wsgi", "--port", "{port}", "around_app:app"),
}  # fmt: skip


@pytest.mark.parametrize("server", COMMANDS)
def test_what_stands_around_the_application(live: Starter, server: str) -> None:
    """A shutdown waits for them to its deadline; what is left is abandoned, and a warning says how to count them."""
    address = ("127.0.0.1", free_port())
    command = [sys.executable, *(word.format(port=address[1]) for word in COMMANDS[server])]
    settings = {"LIFECYCLE_GRACE_PERIOD": 4.0, "LIFECYCLE_SIGNALS": ["SIGTERM"]}
    running = live.start(*command, settings=settings, plan={"logging": True})
    running.wait_for(lambda: answers(address, "/readyz"), "readiness")
    with Connection(address) as ends, Connection(address) as hangs:
        for connection, name in ((ends, "ends"), (hangs, "hangs")):
            connection.ask(f"/outside/{name}")
            running.wait_event(f"begin {name}")
        running.send(signal.SIGTERM)
        running.wait_log("halfway through the drain, waiting for")
        running.open_gate("ends")
        assert ends.answer().body == b"outside"
        running.wait_gone()
    log = running.log
    assert "1 abandoned, exit 1" in log
    assert "clean" not in log
    assert log.count("(uncounted)") == 3
    assert "app.wsgi_app = Dispatcher(app.wsgi_app, ...)" in log
