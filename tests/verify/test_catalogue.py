"""Each scenario of the catalogue can fail, and says so."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from flask_lifecycle._verify import runner

pytestmark = pytest.mark.catalogue

SERVER = str(Path(__file__).with_name("breaking_server.py"))
each_scenario = pytest.mark.parametrize("name", [each.name for each in runner.choose((), ())])


def outcome(name: str, *breaks: str) -> runner.Outcome:
    """What a scenario says of the server that breaks this promise, or none."""
    command = [sys.executable, SERVER, "{port}", *breaks]
    plan = runner.Plan(command, None, {}, signal.SIGTERM, grace=None, patience=20.0, reload_on=signal.SIGHUP)
    (found,) = runner.Runner(plan).run(runner.choose([name], ()))
    return found


@each_scenario
def test_a_server_that_breaks_nothing_passes(name: str) -> None:
    """So what the next test sees is what its server breaks."""
    found = outcome(name)
    assert found.result == "holds", f"{found.seen}\n{found.log}"


@each_scenario
def test_a_broken_promise_is_seen(name: str) -> None:
    """The scenario of the promise that a server breaks says that it is broken."""
    found = outcome(name, name)
    assert found.result == "broken", f"{found.seen}\n{found.log}"
