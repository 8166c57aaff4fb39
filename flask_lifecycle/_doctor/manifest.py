"""``flask lifecycle manifest KIND``: the part of a deployment that must fit the settings, with the reasons.

The doctor accepts the output for Kubernetes, compose and systemd.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any

import click

from .._config import AUTO, DELAY_QUIET, Settings, parse_signal
from .command import Application
from .rules import MARGIN

# The default of Kubernetes, which only costs time if a process hangs.
_GRACE = 30
# Seconds for the start-up, with a probe each second.
_START = 60
# Seconds between the checks of a balancer; the default of HAProxy.
_INTERVAL = 2.0
_FALL = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The values of all manifests.

    :param module: the value of ``flask --app``.
    """

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
    def probe_port(self) -> int:
        return self.settings.probe_port or self.port

    @property
    def statuses(self) -> list[int]:
        """The statuses of readiness that passes."""
        codes = self.settings.status_codes
        return sorted({codes.get("pass", 200), codes.get("warn", 200)})

    def path(self, probe: str) -> str:
        return self.settings.probe_paths()[probe]

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


def kubernetes(plan: Plan) -> str:
    probes, port = "", "http"
    if plan.settings.probe_port:
        # It answers also while every worker is busy, and until the end.
        probes, port = f"\n            - {{name: probes, containerPort: {plan.settings.probe_port}}}", "probes"
    signal = f"\n          lifecycle: {{stopSignal: {plan.signal}}}" if plan.signal else ""
    system = "\n      os: {name: linux}" if plan.signal else ""  # stopSignal requires it
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {plan.name}
spec:
  selector: {{matchLabels: {{app: {plan.name}}}}}
  template:
    metadata: {{labels: {{app: {plan.name}}}}}
    spec:
      # {plan.budget}; no preStop, because it includes the delay of {plan.settings.longest_delay:g} s
      terminationGracePeriodSeconds: {max(_GRACE, plan.limit)}{system}
      containers:
        - name: {plan.name}
          image: {plan.name}
          command: {json.dumps(plan.command("0.0.0.0"))}{signal}
          ports:
            - {{name: http, containerPort: {plan.port}}}{probes}
          startupProbe:
            httpGet: {{path: {plan.path("startupz")}, port: {port}}}
            periodSeconds: 1
            # the start may take {_START} x 1 s
            failureThreshold: {_START}
          readinessProbe:
            httpGet: {{path: {plan.path("readyz")}, port: {port}}}
            periodSeconds: 5
            # longer than the {plan.settings.probe_timeout:g} s of LIFECYCLE_PROBE_TIMEOUT
            timeoutSeconds: {plan.patience}
          livenessProbe:
            httpGet: {{path: {plan.path("livez")}, port: {port}}}
            periodSeconds: 10
            timeoutSeconds: {plan.patience}
            # restart only after {10 * _FALL} s of failure
            failureThreshold: {_FALL}
"""


def compose(plan: Plan) -> str:
    url = f"http://127.0.0.1:{plan.probe_port}{plan.path('healthcheck')}"
    test = ["CMD", "python", "-c", f"import urllib.request as r; r.urlopen('{url}')"]
    signal = f"\n    stop_signal: {plan.signal}" if plan.signal else ""
    return f"""\
services:
  {plan.name}:
    image: {plan.name}
    command: {json.dumps(plan.command("0.0.0.0"))}
    ports: ["{plan.port}:{plan.port}"]{signal}
    # {plan.budget}
    stop_grace_period: {plan.limit}s
    healthcheck:
      test: {json.dumps(test)}
      interval: 10s
      # longer than the {plan.settings.probe_timeout:g} s of LIFECYCLE_PROBE_TIMEOUT
      timeout: {plan.patience}s
      # a container is unhealthy after {_FALL} x 10 s, and not before the start has had {_START} s
      retries: {_FALL}
      start_period: {_START}s
"""


def systemd(plan: Plan) -> str:
    signal = f"\nKillSignal={plan.signal}" if plan.signal else ""
    return f"""\
[Unit]
Description={plan.name}
After=network-online.target

[Service]
Type=notify
ExecStart=/usr/bin/env {" ".join(plan.command("127.0.0.1"))}
# {plan.budget}; during a shutdown the process extends this limit itself
TimeoutStopSec={plan.limit}
# children get no signal while the application drains
KillMode=mixed{signal}
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


def haproxy(plan: Plan) -> str:
    fall, interval, reason = plan.checks
    return f"""\
backend {plan.name}
    option httpchk GET {plan.path("readyz")}
    http-check expect status {",".join(map(str, plan.statuses))}
    # longer than the {plan.settings.probe_timeout:g} s of LIFECYCLE_PROBE_TIMEOUT
    timeout check {plan.patience}s
    timeout connect 5s
    # the longest request that the grace period lets end
    timeout server {math.ceil(plan.settings.grace_period)}s
    # a refused connection goes to another server
    option redispatch 1
    retries 3
    # {reason}
    default-server check inter {round(interval * 1000)}ms fall {fall} rise 2 port {plan.probe_port}
    server {plan.name}1 127.0.0.1:{plan.port}
"""


def nginx(plan: Plan) -> str:
    """An upstream and a server of nginx, which has no probes and learns from failed requests."""
    return f"""\
upstream {plan.name} {{
    # one refused connection takes it out for 2 s, unless it is the only server
    server 127.0.0.1:{plan.port} max_fails=1 fail_timeout=2s;
    keepalive 16;
}}
server {{
    listen 8080;
    location / {{
        proxy_pass http://{plan.name};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        # a refused request goes to another server, a POST only if no byte of it was sent
        proxy_next_upstream error timeout http_503;
        # the longest request that the grace period lets end
        proxy_read_timeout {math.ceil(plan.settings.grace_period)}s;
    }}
}}
"""


def envoy(plan: Plan) -> str:
    """A cluster of Envoy."""
    fall, interval, reason = plan.checks
    ranges = "".join(f"\n          - {{start: {code}, end: {code + 1}}}" for code in plan.statuses)
    return f"""\
clusters:
  - name: {plan.name}
    type: STRICT_DNS
    connect_timeout: 5s
    common_lb_config:
      # an endpoint that fails its checks gets no requests, even if all fail
      healthy_panic_threshold: {{value: 0}}
      # a result counts at once; by default up to a second late, if another endpoint has just changed
      update_merge_window: 0s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        # less than the idle timeout of the server (waitress 120 s, gunicorn its keepalive); by default an hour
        common_http_protocol_options: {{idle_timeout: 60s}}
        explicit_http_config: {{http_protocol_options: {{}}}}
    health_checks:
      # longer than the {plan.settings.probe_timeout:g} s of LIFECYCLE_PROBE_TIMEOUT
      - timeout: {plan.patience}s
        # {reason}
        interval: {interval:g}s
        # by default 60 s, until the first request has come
        no_traffic_interval: {interval:g}s
        unhealthy_threshold: {fall}
        healthy_threshold: 2
        http_health_check:
          path: {plan.path("readyz")}
          expected_statuses:{ranges}
    load_assignment:
      cluster_name: {plan.name}
      endpoints:
        - lb_endpoints:
            - endpoint:
                address: {{socket_address: {{address: 127.0.0.1, port_value: {plan.port}}}}}
                health_check_config: {{port_value: {plan.probe_port}}}
"""


KINDS: dict[str, Callable[[Plan], str]] = {
    "kubernetes": kubernetes,
    "compose": compose,
    "systemd": systemd,
    "haproxy": haproxy,
    "nginx": nginx,
    "envoy": envoy,
}


def plan_for(kind: str, application: Application, name: str, module: str, port: int) -> Plan:
    """The values of a manifest.

    :param name: of the application; the names of objects are made from it.
    :raises ValueError: the settings do not fit each other on this platform.
    """
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "app"
    return Plan(application.settings_on(kind), label, module, port)


def commands(load: Callable[[Any], tuple[Any, Any]]) -> dict[str, click.Command]:
    @click.command("manifest")
    @click.argument("kind", type=click.Choice(list(KINDS)))
    @click.option("--port", "-p", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The main port.")
    @click.pass_obj
    def manifest(info: Any, kind: str, port: int) -> None:
        """Print a deployment file that fits the settings.

        Comments give the reason for each number. Names, images and addresses are placeholders.
        """
        app, state = load(info)
        application = Application(state.settings, app.config, state.probes.worker)
        try:
            plan = plan_for(kind, application, app.name, info.app_import_path or "app", port)
        except ValueError as error:
            raise click.UsageError(f"In a cluster the application does not start: {error}") from None
        click.echo(KINDS[kind](plan), nl=False)

    return {"manifest": manifest}
