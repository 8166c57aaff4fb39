"""``flask lifecycle manifest``: the doctor accepts its output, and balancers can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flask_lifecycle import Lifecycle
from flask_lifecycle._cli import group
from flask_lifecycle._doctor.examine import Application, examine
from flask_lifecycle._doctor.manifest import KINDS, plan_for, render
from tests._fakes import make_app, state_of

SETTINGS: list[dict[str, Any]] = [
    {},
    {"LIFECYCLE_GRACE_PERIOD": 90.5, "LIFECYCLE_SHUTDOWN_DELAY": 4, "LIFECYCLE_PROBE_TIMEOUT": 2.5},
    {"LIFECYCLE_GRACE_PERIOD": 30, "LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_PROBE_PORT": 9000},
    {"LIFECYCLE_URL_PREFIX": "/p", "LIFECYCLE_PATHS": {"readyz": "/r", "livez": "/l"}, "LIFECYCLE_SIGNALS": ["SIGINT"]},
    {"LIFECYCLE_STATUS_CODES": {"warn": 207}, "LIFECYCLE_SHUTDOWN_DELAY": 0.1},
]
IDS = ["plain", "long", "auto", "moved", "codes"]


def made(kind: str, config: dict[str, Any], name: str = "My shop_1") -> tuple[str, Application]:
    """The output for an application with these settings."""
    app = make_app(**config)
    Lifecycle(app)
    state = state_of(app)
    application = Application(state.settings, app.config, state.probes.worker)
    return render(kind, plan_for(kind, application, name, "shop", 8000)), application


@pytest.mark.parametrize("config", SETTINGS, ids=IDS)
@pytest.mark.parametrize("kind", ["kubernetes", "compose", "systemd"])
def test_the_doctor_accepts_it(
    kind: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor has no finding for any settings, except that there is no delay."""
    monkeypatch.chdir(tmp_path)
    text, application = made(kind, config)
    Path("file").write_text(text)
    rules = [(finding.rule, finding.severity) for finding in examine("file", application)]
    no_delay = kind == "kubernetes" and not application.settings.longest_delay
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
    text, _ = made("envoy", config)
    (cluster,) = yaml.safe_load(text)["clusters"]
    (check,) = cluster["health_checks"]
    fall, interval, reason = expected
    assert (check["unhealthy_threshold"], check["interval"], reason in text) == (fall, interval, True)
    assert f"inter {interval[:-1]}000ms fall {fall} rise 2 port 8000" in made("haproxy", config)[0]


def test_envoy() -> None:
    """Envoy asks readiness at its path and port and accepts its statuses.

    Neither Envoy's interval without traffic (60 s) nor its merging of changes (1 s) makes the delay too short, and it
    closes an idle connection before the server does.
    """
    (cluster,) = yaml.safe_load(made("envoy", {"LIFECYCLE_SHUTDOWN_DELAY": 1})[0])["clusters"]
    (check,) = cluster["health_checks"]
    assert check["no_traffic_interval"] == check["interval"] == "0.2s"
    assert cluster["common_lb_config"]["update_merge_window"] == "0s"
    [options] = cluster["typed_extension_protocol_options"].values()
    assert options["common_http_protocol_options"] == {"idle_timeout": "60s"}
    text, _ = made("envoy", {"LIFECYCLE_PROBE_PORT": 9000, "LIFECYCLE_STATUS_CODES": {"warn": 207}})
    (cluster,) = yaml.safe_load(text)["clusters"]
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["health_check_config"] == {"port_value": 9000}
    asked = cluster["health_checks"][0]["http_health_check"]
    assert asked["path"] == "/readyz"
    assert asked["expected_statuses"] == [{"start": 200, "end": 201}, {"start": 207, "end": 208}]


@pytest.mark.parametrize(("name", "label"), [("a.b", "a-b"), ("---", "app"), ("x" * 80, "x" * 50)])
def test_a_name_is_one_that_objects_may_have(name: str, label: str) -> None:
    """Any name of an application becomes a valid name of an object."""
    assert f"\nbackend {label}\n" in f"\n{made('haproxy', {}, name)[0]}"


def invoke(*arguments: str, **config: Any) -> Any:
    """Run the command as ``flask`` does."""
    app = make_app(**config)
    Lifecycle(app)
    app.cli.add_command(group)
    return app.test_cli_runner().invoke(args=["lifecycle", "manifest", *arguments])


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_command_prints_the_block(kind: str) -> None:
    """Each kind has its command, with the port."""
    result = invoke(kind, "-p", "8123")
    assert (result.exit_code, "8123" in result.output) == (0, True)


def test_settings_that_do_not_fit_the_cluster_are_one_sentence() -> None:
    """A grace period without room for the default delay is an error of one sentence."""
    app = make_app(LIFECYCLE_GRACE_PERIOD=4)
    del app.config["LIFECYCLE_SHUTDOWN_DELAY"]
    Lifecycle(app)
    app.cli.add_command(group)
    result = app.test_cli_runner().invoke(args=["lifecycle", "manifest", "kubernetes"])
    assert result.exit_code == 2
    assert "Error: In a cluster the application does not start: 'LIFECYCLE_SHUTDOWN_DELAY' (5 s)" in result.output
