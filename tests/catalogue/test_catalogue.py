"""Every scenario of ``flask lifecycle verify`` on every server of the table of guarantees."""

from __future__ import annotations

import pytest

from tests.guarantees import LEVELS, SERVERS

from .servers import COMMANDS, ROOT, environment, outcomes, results

pytestmark = pytest.mark.catalogue

# Races of a server that it loses without this package as well, see docs/servers.md.
RACES = {("granian", "exit/during-start")}


@pytest.mark.parametrize("scenario", next(iter(results().values())))
@pytest.mark.parametrize("server", COMMANDS)
def test_the_result_is_the_documented_one(monkeypatch: pytest.MonkeyPatch, server: str, scenario: str) -> None:
    """What ``docs/verified.json`` says is true; what is not guaranteed may hold one time and not the next."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT / "examples")
    (outcome,) = outcomes(server, scenario)
    expected = {results()[server][scenario]}
    either = {"holds", "broken"}
    guaranteed = outcome.level in LEVELS[SERVERS[server].guarantee]
    if expected <= either and (not guaranteed or (server, scenario) in RACES):
        expected = either
    assert outcome.result in expected, f"{outcome.seen}\n{outcome.log}"
