"""The catalogue: what is tried, and what it promises. A module has some families of scenarios.

Where the application has the routes of ``verify``, a scenario orders things by what they record, not by the clock.
"""

from __future__ import annotations

from ..trial import Scenario
from . import exits, probes, requests

CATALOGUE = {
    each.name: each for module in (requests, probes, exits) for each in vars(module).values()
    if isinstance(each, Scenario)
}  # fmt: skip
