"""``flask lifecycle manifest``: the doctor accepts its output, and balancers can read it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from flask_lifecycle import Lifecycle
from tests._fakes import make_app
from tests._needs import nginx_http, program

SETTINGS: list[dict[str, Any]] = [
    {},
    {"LIFECYCLE_GRACE_PERIOD": 90.5, "LIFECYCLE_SHUTDOWN_DELAY": 4, "LIFECYCLE_PROBE_TIMEOUT": 2.5},
    {"LIFECYCLE_GRACE_PERIOD": 30, "LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_PROBE_PORT": 9000},
    {"LIFECYCLE_URL_PREFIX": "/p", "LIFECYCLE_PATHS": {"readyz": "/r", "livez": "/l"}, "LIFECYCLE_SIGNALS": ["SIGINT"]},
    {"LIFECYCLE_STATUS_CODES": {"warn": 207}, "LIFECYCLE_SHUTDOWN_DELAY": 0.1},
]
IDS = ["plain", "long", "auto", "moved", "codes"]


def invoke(*arguments: str, name: str = "My shop_1", **config: Any) -> Result:
    """Run a command as ``flask`` does, for an application with these settings; ``None`` leaves one out."""
    app = make_app(**config)
    app.name = name
    for key in [key for key, value in config.items() if value is None]:
        del app.config[key]
    Lifecycle(app)
    return app.test_cli_runner().invoke(args=["lifecycle", *arguments])


def made(kind: str, config: dict[str, Any], name: str = "My shop_1") -> str:
    """The output for an application with these settings."""
    return invoke("manifest", kind, name=name, **config).stdout


@pytest.mark.parametrize("config", SETTINGS, ids=IDS)
@pytest.mark.parametrize("kind", ["kubernetes", "compose", "systemd"])
def test_the_doctor_accepts_it(
    kind: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor has no finding for any settings, except that there is no delay."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text(made(kind, config))
    found = json.loads(invoke("doctor", "--json", "file", **config).stdout)["findings"]
    rules = [(finding["rule"], finding["severity"]) for finding in found]
    no_delay = kind == "kubernetes" and "LIFECYCLE_SHUTDOWN_DELAY" not in config
    assert rules == [("grace-period", "ok"), *([("no-delay", "warning")] if no_delay else [])]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (3, "2s", "a delay of 0 s is too short for 3 answers: refused connections are retried")),
        ({"LIFECYCLE_SHUTDOWN_DELAY": 4}, (3, "1s", "3 answers come within 4 s, of 4 s of the delay")),
        (
            {"LIFECYCLE_GRACE_PERIOD": 30, "LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_DELAY_PROBES": 2},
            (2, "2s", "2 answers come within 6 s, of 14 s of the delay"),
        ),
    ],
)
def test_balancers_know_within_the_delay(config: dict[str, Any], expected: tuple[int, str, str]) -> None:
    """A balancer notices within the delay; Envoy and HAProxy have the same numbers."""
    text = made("envoy", config)
    (cluster,) = yaml.safe_load(text)["clusters"]
    (check,) = cluster["health_checks"]
    fall, interval, reason = expected
    assert (check["unhealthy_threshold"], check["interval"], reason in text) == (fall, interval, True)
    assert f"inter {interval[:-1]}000ms fall {fall} rise 2 port 8000" in made("haproxy", config)


def test_envoy() -> None:
    """Envoy asks readiness at its path and port and accepts its statuses."""
    # Neither Envoy's interval without traffic (60 s) nor its merging of changes (1 s) makes the delay too short, and it
    # closes an idle connection before the server does.
    (cluster,) = yaml.safe_load(made("envoy", {"LIFECYCLE_SHUTDOWN_DELAY": 1}))["clusters"]
    (check,) = cluster["health_checks"]
    assert check["no_traffic_interval"] == check["interval"] == "0.2s"
    assert cluster["common_lb_config"]["update_merge_window"] == "0s"
    [options] = cluster["typed_extension_protocol_options"].values()
    assert options["common_http_protocol_options"] == {"idle_timeout": "60s"}
    text = made("envoy", {"LIFECYCLE_PROBE_PORT": 9000, "LIFECYCLE_STATUS_CODES": {"warn": 207}})
    (cluster,) = yaml.safe_load(text)["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["health_check_config"] == {"port_value": 9000}
    asked = cluster["health_checks"][0]["http_health_check"]
    assert asked["path"] == "/readyz"
    assert asked["expected_statuses"] == [{"start": 200, "end": 201}, {"start": 207, "end": 208}]


@pytest.mark.parametrize(("name", "label"), [("a.b", "a-b"), ("---", "app"), ("x" * 80, "x" * 50)])
def test_a_name_is_one_that_objects_may_have(name: str, label: str) -> None:
    """Any name of an application becomes a valid name of an object."""
    assert f"\nbackend {label}\n" in f"\n{made('haproxy', {}, name)}"


def test_the_command() -> None:
    """Each kind has its command, with the port; a grace period without room for the default delay is one sentence."""
    for kind in ("kubernetes", "compose", "systemd", "envoy", "haproxy", "nginx"):
        result = invoke("manifest", kind, "-p", "8123")
        assert (result.exit_code, "8123" in result.output) == (0, True)
    result = invoke("manifest", "kubernetes", LIFECYCLE_GRACE_PERIOD=4, LIFECYCLE_SHUTDOWN_DELAY=None)
    assert result.exit_code == 2
    assert "Error: In a cluster the application does not start: 'LIFECYCLE_SHUTDOWN_DELAY' (5 s)" in result.output


@pytest.mark.services
@pytest.mark.parametrize("config", SETTINGS, ids=IDS)
@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_the_balancer_accepts_it(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    """With what is around it, the block is a configuration; for HAProxy one without a warning."""
    text, file = made(kind, config), tmp_path / kind
    if kind == "haproxy":
        around = "defaults\n    mode http\n    timeout client 5s\nfrontend f\n    bind 127.0.0.1:1\n"
        file.write_text(f"{around}    use_backend my-shop-1\n{text}")
        command = [program("haproxy"), "-c", "-dW", "-f", str(file)]
    else:
        file.write_text(f"events {{}}\n{nginx_http(tmp_path)}{text}}}\n")
        command = [program("nginx"), "-t", "-p", str(tmp_path), "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert kind == "nginx" or done.stderr == ""
