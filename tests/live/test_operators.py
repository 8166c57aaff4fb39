"""What operators ask of real processes: cordons that end by themselves, and drains that lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests._fakes import ROOT

from ._client import Address, Connection, Response, get, refuses
from ._process import Starter, wait_until
from ._traffic import in_flight
from .test_probes import PROBE_LISTENER, probe_address

TOKEN = "0123456789abcdef"
SETTINGS = {**PROBE_LISTENER, "LIFECYCLE_TOKEN": TOKEN}


def post(address: Address, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Response:
    """Ask for something as an operator does."""
    told = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
    with Connection(address) as connection:
        connection.ask(path, "POST", body, **told)
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


def readiness(address: Address) -> int:
    return get(address, "/readyz").status


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A control directory."""
    made = tmp_path / "control"
    made.mkdir(mode=0o755)
    return made


def test_a_cordon(live: Starter) -> None:
    """A cordon takes the process out of rotation, and work is served all the same; it ends when it is asked to, or when
    its lease is over. A request that a proxy sends twice gets the same answer.
    """
    running = live.serve("waitress", settings=SETTINGS)
    probes = probe_address(running)
    for _ in range(2):
        answer = post(probes, "/lifecycle/cordon?for=10m&by=alice")
        assert (answer.status, answer.body) == (200, b"cordoned by alice for 10m\n")
        assert [readiness(probes), readiness(running.address)] == [503, 503]
    assert get(probes, "/livez").status == 200
    assert get(running.address, "/fast").body == b"fast"
    for _ in range(2):
        answer = post(probes, "/lifecycle/uncordon?by=alice")
        assert (answer.status, answer.body) == (200, b"uncordoned\n")
        assert readiness(probes) == 200
    assert post(probes, "/lifecycle/cordon?for=1s&by=alice").status == 200
    running.wait_log("READY -> NOT_READY(?s:.*)READY -> NOT_READY")
    wait_until(lambda: readiness(probes) == 200, "the end of the lease")
    assert "cordon for 1s requested by alice (HTTP from 127.0.0.1)" in running.log
    assert running.stop() == 0


def test_a_drain_by_http(live: Starter) -> None:
    """A drain that is asked for answers what is in flight, runs the hooks and ends the process with 0; the signal that
    a supervisor sends behind it joins it.
    """
    running = live.serve("werkzeug", settings=SETTINGS)
    probes = probe_address(running)
    with in_flight(running):
        answer = post(probes, "/lifecycle/drain?by=alice")
        assert (answer.status, answer.body) == (202, b"draining\n")
        running.wait_log("-> DRAINING")
        assert readiness(probes) == 503
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


def test_a_drain_by_file(live: Starter, directory: Path) -> None:
    """A file that is touched drains the process, which answers what is in flight and leaves the file."""
    running = live.serve("waitress-serve", settings={"LIFECYCLE_CONTROL_DIR": str(directory)})
    with in_flight(running):
        (directory / "drain").touch()
        running.wait_log("-> DRAINING")
    assert running.wait_gone() == 0
    assert (directory / "drain").exists()


def test_a_cordon_file_survives_a_restart(live: Starter, directory: Path) -> None:
    """A cordon by file holds for the next process as well, until the file is removed."""
    settings = {"LIFECYCLE_CONTROL_DIR": str(directory)}
    first = live.serve("waitress", settings=settings)
    (directory / "cordon").write_text("10m by alice\n")
    wait_until(lambda: readiness(first.address) == 503, "the cordon")
    assert first.stop() == 0
    second = live.serve("waitress", settings=settings, listeners=0)
    second.wait_log("STARTING -> NOT_READY")
    assert readiness(second.address) == 503
    (directory / "cordon").unlink()
    wait_until(lambda: readiness(second.address) == 200, "the end of the cordon")
    assert second.stop() == 0


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


def test_watching_a_drain(live: Starter) -> None:
    """Who watches on a terminal sees the drain come and go, and Ctrl-C ends it with the last exit code."""
    running = live.serve("waitress", settings={**SETTINGS, "LIFECYCLE_DETAILS": "always"})
    url = url_of(probe_address(running))
    watcher = live.start(
        sys.executable, "-m", "flask", "lifecycle", "status", url, "--watch", "0.1",
        terminal=True, env={"TERM": "xterm"},
    )  # fmt: skip
    watcher.wait_log("READY")
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        watcher.wait_log(r"oldest: GET /gate/a")
        running.begin_stop()
        watcher.wait_log("DRAINING")
        watcher.wait_log(r"finishing requests and work, [0-9.]+ s left")
        running.open_gate("a")
        connection.answer()
    assert running.wait_gone() == 0
    watcher.wait_log("the connection is refused")
    watcher.type(b"\x03")
    assert watcher.wait_gone() == 2
    assert watcher.log.count("\x1b[?7l") == watcher.log.count("\x1b[?7h")
