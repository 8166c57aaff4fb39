"""Every scenario of ``flask lifecycle verify`` on every server of the table of guarantees."""

from __future__ import annotations

import pytest

from flask_lifecycle._verify.runner import BROKEN, HOLDS
from flask_lifecycle._verify.scenarios import CATALOGUE

from .servers import COMMANDS, ROOT, environment, outcomes, results

pytestmark = pytest.mark.catalogue


@pytest.mark.parametrize("scenario", CATALOGUE)
@pytest.mark.parametrize("server", COMMANDS)
def test_the_result_is_the_documented_one(monkeypatch: pytest.MonkeyPatch, server: str, scenario: str) -> None:
    """What ``docs/verified.json`` says of a server is true. What is broken there may hold now and then: a race of the
    server's own.
    """
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT / "examples")
    (outcome,) = outcomes(server, [CATALOGUE[scenario]])
    expected = results()[server][scenario]
    assert outcome.result in (expected, HOLDS if expected == BROKEN else expected), f"{outcome.seen}\n{outcome.log}"
