"""Every scenario of ``flask lifecycle verify`` on every server of the table of guarantees."""

from __future__ import annotations

import pytest

from flask_lifecycle._verify import runner, scenarios
from tests.guarantees import SERVERS, included

from .servers import COMMANDS, ROOT, environment, outcomes, results

pytestmark = pytest.mark.catalogue

# Races of a server that it loses without this package as well, see docs/servers.md.
RACES = {("granian", "exit/during-start")}


@pytest.mark.parametrize("scenario", scenarios.CATALOGUE)
@pytest.mark.parametrize("server", COMMANDS)
def test_the_result_is_the_documented_one(monkeypatch: pytest.MonkeyPatch, server: str, scenario: str) -> None:
    """What ``docs/verified.json`` says of a server is true. What it does not guarantee may hold one time and not the
    next: a race of the server's own.
    """
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT / "examples")
    (outcome,) = outcomes(server, [scenarios.CATALOGUE[scenario]])
    expected = {results()[server][scenario]}
    either = {runner.HOLDS, runner.BROKEN}
    guaranteed = scenarios.CATALOGUE[scenario].level in included(SERVERS[server])
    if expected <= either and (not guaranteed or (server, scenario) in RACES):
        expected = either
    assert outcome.result in expected, f"{outcome.seen}\n{outcome.log}"
