"""Each scenario of the catalogue can fail, and says so."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flask_lifecycle._verify.runner import BROKEN, HOLDS, Outcome, Plan, Runner
from flask_lifecycle._verify.scenarios import CATALOGUE

SERVER = str(Path(__file__).with_name("breaking_server.py"))


def outcome(name: str, *breaks: str) -> Outcome:
    """What a scenario says of the server that breaks this promise, or none."""
    command = [sys.executable, SERVER, "{port}", *breaks]
    plan = Plan(command, None, {}, signal.SIGTERM, grace=None, patience=20.0, reload_on=signal.SIGHUP)
    (found,) = Runner(plan).run([CATALOGUE[name]])
    return found


def test_a_server_that_breaks_nothing_passes() -> None:
    """So what the next test sees is what its servers break."""
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(outcome, CATALOGUE))
    assert [each for each in found if each.result != HOLDS] == []


def test_each_broken_promise_is_seen() -> None:
    """The scenario of the promise that a server breaks says that it is broken."""
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(outcome, CATALOGUE, CATALOGUE))
    assert [each for each in found if each.result != BROKEN] == []
