"""The process under test, as ``flask lifecycle verify`` starts it."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

# Its child says after a moment that it is ready.
from flask_lifecycle._verify import subject, trial
from flask_lifecycle._verify.scenarios import probes

TWO_WORKERS = """
import http.server, os, sys, time
from flask_lifecycle._verify.routes import Record
record = Record(os.environ["LIFECYCLE_VERIFY"].split(":", 2)[2])
if os.fork() == 0:
    time.sleep(0.5)
    record.add("ready")
    time.sleep(60)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_all_workers_are_waited_for(tmp_path: Path) -> None:
    """A server whose first worker answers is not stopped before the others are ready."""
    server = subject.Subject([sys.executable, "-c", TWO_WORKERS, "{port}"], None, tmp_path, 20.0, "")
    try:
        assert server.wait_serving()
        assert [event.pid for event in server.recorded("ready")] == server.children()
    finally:
        server.end()


class Listening:
    """As much of a process under test as a probe needs."""

    address = ("127.0.0.1", 1)
    patience = 1.0
    settings: ClassVar[dict[str, Any]] = {}


def test_a_probe_that_is_reset_while_it_connects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that is closed between the handshake and the return of ``connect`` is seen as gone."""

    def reset(*_args: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(socket.socket, "connect", reset)
    asking = trial.Trial(cast("subject.Subject", Listening()), {"ready": "/"}, number=signal.SIGTERM, grace=1.0)
    assert probes.status_of(asking, "ready") == 0
