"""What operators ask of real processes: cordons, and drains that lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

from tests._fakes import ROOT

from ._client import Address, Connection, Response, get, refuses
from ._process import Starter
from ._traffic import in_flight
from .test_probes import PROBE_LISTENER, probe_address

TOKEN = "0123456789abcdef"
SETTINGS = {**PROBE_LISTENER, "LIFECYCLE_TOKEN": TOKEN}


def post(address: Address, path: str, body: bytes = b"") -> Response:
    """Ask for something as an operator does."""
    with Connection(address) as connection:
        connection.ask(path, "POST", body, Authorization=f"Bearer {TOKEN}")
        return connection.answer()


def flask(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of operators in a process of its own, without an application."""
    return subprocess.run(
        [sys.executable, "-m", "flask", "lifecycle", *arguments],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLASK_LIFECYCLE_TOKEN": TOKEN},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def url_of(address: Address) -> str:
    assert not isinstance(address, str)
    return f"http://{address[0]}:{address[1]}"


def test_a_drain_by_http(live: Starter) -> None:
    """A drain by command answers what is in flight, runs the hooks and exits with 0; a later signal joins it."""
    running = live.serve("werkzeug", settings=SETTINGS)
    probes = probe_address(running)
    with in_flight(running):
        answer = post(probes, "/lifecycle/drain?by=alice")
        assert (answer.status, answer.body) == (202, b"draining\n")
        running.wait_log("-> DRAINING")
        assert get(probes, "/readyz").status == 503
        assert post(probes, "/lifecycle/drain").body == b"draining\n"
        assert post(probes, "/lifecycle/cordon?for=1m&by=bob").status == 409
        running.send(signal.SIGTERM)
        assert not running.gone.wait(0.3)
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert "shutdown begins: drain requested by alice" in running.log
    assert refuses(probes)


def test_a_drain_of_an_idle_process_is_answered(live: Starter) -> None:
    """Who asks a process that has nothing to complete is answered before it is gone, a body of any size included."""
    for body in (b"", b"x" * 60_000, b"x" * 3_000_000):
        running = live.serve("waitress", settings=SETTINGS)
        answer = post(probe_address(running), "/lifecycle/drain?by=alice", body=body)
        assert (answer.status, answer.body) == (202, b"draining\n")
        assert running.wait_gone() == 0


def test_the_commands(live: Starter) -> None:
    """The commands show, cordon and drain a process without its application, and tell it by their exit codes."""
    running = live.serve("waitress", settings={**SETTINGS, "LIFECYCLE_DETAILS": "token"})
    url = url_of(probe_address(running))
    shown = flask("status", url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"READY  pass  {url}/healthcheck\n")
    assert json.loads(flask("status", url, "--json").stdout)["application"]["pid"] == running.popen.pid
    assert flask("cordon", url, "--for", "1m", "--by", "alice").stdout == "cordoned by alice for 1m\n"
    assert flask("status", url).returncode == 1
    assert flask("uncordon", url).stdout == "uncordoned\n"
    drained = flask("drain", url, "--by", "bob", "--wait")
    assert (drained.returncode, drained.stdout, drained.stderr) == (0, "draining\n", "")
    assert running.wait_gone() == 0
    gone = flask("status", url)
    assert (gone.returncode, gone.stderr) == (2, f"{url}/healthcheck does not answer: the connection is refused.\n")
