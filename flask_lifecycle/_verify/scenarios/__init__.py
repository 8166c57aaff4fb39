"""The catalogue: what is tried, what it promises, and why that matters. A module has one or two families of scenarios.

Where the application has the routes of ``verify``, a scenario orders things by what they record, not by the clock.
"""

from __future__ import annotations

from ..trial import Scenario
from . import connections, exits, hooks, in_flight, probes

_MODULES = (connections, in_flight, probes, hooks, exits)

CATALOGUE = {
    each.name: each for module in _MODULES for each in vars(module).values() if isinstance(each, Scenario)
}  # fmt: skip
