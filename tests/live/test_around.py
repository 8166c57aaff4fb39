"""Requests that something around the application answers, which no ledger has."""

from __future__ import annotations

import signal
import sys

import pytest

from ._client import Connection, free_port, get, refuses
from ._process import APPS, ROOT, Starter

AROUND = """
from live_app import app, event, pass_gate
from werkzeug.middleware.dispatcher import DispatcherMiddleware

def outside(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    event(f"begin {name}")
    pass_gate(name)
    start_response("200 OK", [("Content-Length", "7")])
    return [b"outside"]

around = DispatcherMiddleware(app, {"/outside": outside})
"""
_RUN = "import sys, around; port = int(sys.argv[1]); "
COMMANDS = {
    "waitress": ("-m", "waitress", "--listen", "127.0.0.1:{port}", "around:around"),
    "werkzeug": ("-c", f"{_RUN}from werkzeug import run_simple; run_simple('127.0.0.1', port, around.around,"
                 " threaded=True)", "{port}"),
    "cheroot": ("-c", f"{_RUN}from cheroot.wsgi import Server; Server(('127.0.0.1', port), around.around).start()",
                "{port}"),
    "gevent": ("-c", f"from gevent import monkey; monkey.patch_all(); {_RUN}from gevent.pywsgi import WSGIServer;"
               " WSGIServer(('127.0.0.1', port), around.around).serve_forever()", "{port}"),
    "gunicorn": ("-m", "gunicorn", "-c", "python:flask_lifecycle.gunicorn", "-k", "gthread", "--threads", "4",
                 "-b", "127.0.0.1:{port}", "around:around"),
    "uvicorn": ("-m", "uvicorn", "--interface", "wsgi", "--port", "{port}", "around:around"),
    "hypercorn": ("-m", "hypercorn", "--workers", "0", "--bind", "127.0.0.1:{port}", "wsgi:around:around"),
    "granian": ("-m", "granian", "--interface", "wsgi", "--port", "{port}", "around:around"),
}  # fmt: skip


@pytest.mark.parametrize("server", COMMANDS)
def test_what_stands_around_the_application(live: Starter, server: str) -> None:
    """A shutdown waits for such requests to its deadline, not to the middle of its drain; one that has not ended by
    then is abandoned, and a warning says how to have them counted.
    """
    (live.home / "around.py").write_text(AROUND)
    address = ("127.0.0.1", free_port())
    command = [sys.executable, *(word.format(port=address[1]) for word in COMMANDS[server])]
    settings = {"LIFECYCLE_GRACE_PERIOD": 4.0, "LIFECYCLE_SIGNALS": ["SIGTERM"]}
    paths = f"{ROOT}:{APPS}:{live.home}"
    running = live.start(*command, settings=settings, plan={"logging": True}, env={"PYTHONPATH": paths})
    running.wait_for(lambda: not refuses(address), "its listener")
    running.wait_for(lambda: get(address, "/readyz").status == 200, "readiness")
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
    if server != "gunicorn":  # it does not show which of its requests run
        assert log.count("(uncounted)") == 3
        assert "app.wsgi_app = Dispatcher(app.wsgi_app, ...)" in log
