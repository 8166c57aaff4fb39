"""``flask lifecycle manifest KIND``: the part of a deployment that must fit the settings, with the reasons.

The doctor accepts the output for Kubernetes, compose and systemd.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re

from .._config import AUTO, DELAY_QUIET, Settings, parse_signal
from .examine import Application
from .rules import MARGIN

# Seconds between the checks of a balancer; the default of HAProxy.
_INTERVAL = 2.0
_FALL = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The values of all manifests; ``module`` is the value of ``flask --app``."""

    settings: Settings
    name: str
    module: str
    port: int

    @property
    def limit(self) -> int:
        """The smallest limit with room for the grace period and a margin."""
        return math.floor(self.settings.grace_period + MARGIN) + 1

    @property
    def budget(self) -> str:
        return f"more than {self.settings.grace_period:g} s of LIFECYCLE_GRACE_PERIOD and {MARGIN:g} s to spare"

    @property
    def patience(self) -> int:
        """The smallest timeout with room for the response of a probe."""
        return math.floor(self.settings.probe_timeout) + 1

    @property
    def longest_request(self) -> int:
        """Seconds that the grace period lets a request run."""
        return math.ceil(self.settings.grace_period)

    @property
    def probe_port(self) -> int:
        return self.settings.probe_port or self.port

    @property
    def statuses(self) -> list[int]:
        """The statuses of readiness that passes."""
        codes = self.settings.status_codes
        return sorted({codes.get("pass", 200), codes.get("warn", 200)})

    def command(self, host: str) -> list[str]:
        return ["flask", "--app", self.module, "lifecycle", "run", "-h", host, "-p", str(self.port)]

    @property
    def signal(self) -> str:
        """The stop signal, if SIGTERM does not stop the application; else empty."""
        taken = self.settings.signals
        return taken[0].name if taken and parse_signal("SIGTERM") not in taken else ""

    @property
    def checks(self) -> tuple[int, float, str]:
        """How many responses a balancer waits for and how often it asks, to notice within the delay; and why."""
        settings = self.settings
        fall = settings.delay_probes if settings.shutdown_delay == AUTO else _FALL
        room = settings.longest_delay - (DELAY_QUIET if settings.shutdown_delay == AUTO else 0.0)
        # One more, as the first probe comes up to an interval late.
        interval = math.floor(min(_INTERVAL, room / (fall + 1)) * 10) / 10
        if interval <= 0:
            why = f"a delay of {max(room, 0.0):g} s is too short for {fall} answers: refused connections are retried"
            return fall, _INTERVAL, why
        return fall, interval, f"{fall} answers come within {interval * (fall + 1):g} s, of {room:g} s of the delay"


# The templates, by kind.
KINDS = {
    "kubernetes": "kubernetes.yaml",
    "compose": "compose.yaml",
    "systemd": "systemd.service",
    "haproxy": "haproxy.cfg",
    "nginx": "nginx.conf",
    "envoy": "envoy.yaml",
}


def render(kind: str, plan: Plan) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["json"] = json.dumps
    settings = plan.settings
    return environment.get_template(KINDS[kind]).render(plan=plan, settings=settings, paths=settings.probe_paths())


def plan_for(kind: str, application: Application, name: str, module: str, port: int) -> Plan:
    """The values of a manifest; :exc:`ValueError` if the settings do not fit each other on this platform."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "app"
    return Plan(application.settings_on(kind), label, module, port)
