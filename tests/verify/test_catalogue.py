"""Each scenario of the catalogue can fail, and says so."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from flask_lifecycle._verify.runner import BROKEN, HOLDS, Outcome, Plan, Runner
from flask_lifecycle._verify.scenarios import CATALOGUE
from flask_lifecycle._verify.scenarios.probes import _probe
from flask_lifecycle._verify.subject import Subject
from flask_lifecycle._verify.trial import Trial

SERVER = str(Path(__file__).with_name("breaking_server.py"))


def outcome(name: str, *breaks: str) -> Outcome:
    """What a scenario says of the server that breaks this promise, or none."""
    command = [sys.executable, SERVER, "{port}", *breaks]
    plan = Plan(command, None, {}, signal.SIGTERM, grace=None, patience=20.0, reload_on=signal.SIGHUP)
    (found,) = Runner(plan).run([CATALOGUE[name]])
    return found


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_server_that_breaks_nothing_passes(name: str) -> None:
    """So what the next test sees is what its server breaks."""
    found = outcome(name)
    assert found.result == HOLDS, f"{found.seen}\n{found.log}"


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_broken_promise_is_seen(name: str) -> None:
    """The scenario of the promise that a server breaks says that it is broken."""
    found = outcome(name, name)
    assert found.result == BROKEN, f"{found.seen}\n{found.log}"


class Listening:
    """As much of a process under test as a probe needs."""

    address = ("127.0.0.1", 1)
    patience = 1.0
    settings: ClassVar[dict[str, Any]] = {}


def test_a_probe_that_is_reset_while_it_connects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that is closed between the handshake and the return of ``connect`` is seen as gone.

    No server can be made to do this at a moment of the test's choice, so the probe is called by its private name.
    """

    def reset(*_args: object) -> None:
        raise ConnectionResetError

    monkeypatch.setattr(socket.socket, "connect", reset)
    trial = Trial(cast("Subject", Listening()), {"ready": "/"}, number=signal.SIGTERM, grace=1.0)
    assert _probe(trial, "ready") == 0
