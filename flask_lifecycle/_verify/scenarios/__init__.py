"""The catalogue: what is tried, what it promises, and why that matters. Each module has a family of scenarios.

Where the application has the routes of ``verify``, a scenario orders things by what they record, not by the clock.
"""

from __future__ import annotations

from . import accept, connections, deploy, exits, hooks, in_flight, probes
from .catalogue import Scenario

_FAMILIES = (accept, in_flight, connections, probes, hooks, exits, deploy)

CATALOGUE = {
    each.name: each for family in _FAMILIES for each in vars(family).values() if isinstance(each, Scenario)
}  # fmt: skip
