"""``flask lifecycle doctor``: for each rule a file that is right and one that is not, and files that are no files."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._cli import group
from flask_lifecycle._doctor._command import Application, examine
from flask_lifecycle._doctor._source import DEEPEST, LIMIT, MOST_VALUES
from tests._fakes import ROOT, make_app, state_of

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: shop
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 30
      containers:
        - name: web
          command: ["flask", "--app", "shop", "lifecycle", "run", "-h", "0.0.0.0", "-p", "8000"]
          ports:
            - name: http
              containerPort: 8000
          startupProbe:
            httpGet: {path: /startupz, port: http}
            periodSeconds: 1
            failureThreshold: 60
          readinessProbe:
            httpGet: {path: /readyz, port: 8000}
            timeoutSeconds: 6
          livenessProbe:
            httpGet: {path: /livez/, port: http}
            failureThreshold: 3
"""
COMPOSE = """\
x-usual: &usual
  restart: always
services:
  db:
    image: postgres
  web:
    <<: *usual
    command: flask --app shop lifecycle run --host=0.0.0.0 -p8000
    ports: ["8000:8000"]
    stop_grace_period: 12s
    stop_signal: SIGINT
    healthcheck:
      test: ["CMD", "curl", "-f", "http://localhost:8000/healthcheck?verbose"]
      timeout: 6s
"""
UNIT = """\
# the shop
[Unit]
Description=The shop

[Service]
Type=notify
ExecStart=/srv/bin/flask --app shop lifecycle run \\
    # a comment within
    -p 8000
TimeoutStopSec=10
KillMode=mixed

[Install]
WantedBy=multi-user.target
"""
ROOM = "10 s of LIFECYCLE_GRACE_PERIOD + 1 s to spare = 11 s"
POD = "Deployment/shop 'web'"
PROVED = f"deploy.yaml:8: ok: {POD}: {ROOM}, less than the 30 s of terminationGracePeriodSeconds"
UNLIMITED = f"ok: unit 'a.conf': {ROOM}, and there is no limit"
SHELL = "a shell is started, which the signal goes to and which need not pass it on"
SHELL_CURE = "write 'exec' before the command, or start it without sh -c."


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the test's own, so that files have short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def application(**config: Any) -> Application:
    """An application as the command sees it."""
    app = make_app(LIFECYCLE_SHUTDOWN_DELAY=config.pop("LIFECYCLE_SHUTDOWN_DELAY", 2), **config)
    Lifecycle(app).group("own", path="/own")
    state = state_of(app)
    return Application(state.settings, app.config, state.probes.lane)


def said(text: str | bytes, file: str = "deploy.yaml", name: str | None = None, **config: Any) -> list[str]:
    """What is said of a file with this text."""
    Path(file).write_bytes(text.encode() if isinstance(text, str) else text)
    return [str(finding) for finding in examine(file, application(**config), name)]


def changed(text: str, old: str, new: str) -> str:
    """A text with one thing in it changed."""
    assert text.count(old) == 1
    return text.replace(old, new)


# -- what is right ------------------------------------------------------------------------------------------------


def test_a_deployment_that_fits_is_proved() -> None:
    """Where nothing is wrong the sum is shown."""
    assert said(DEPLOYMENT) == [PROVED]


def test_a_service_of_compose_that_fits_is_proved() -> None:
    """The database beside it is not judged."""
    assert said(COMPOSE, "compose.yaml") == [
        f"compose.yaml:10: ok: service 'web': {ROOM}, less than the 12 s of stop_grace_period"
    ]


def test_a_unit_that_tells_systemd_what_it_needs_is_proved() -> None:
    """Under Type=notify the limit is extended."""
    assert said(UNIT, "shop.service") == [
        f"shop.service:7: ok: unit 'shop.service': {ROOM}, and the process asks systemd for the time that it takes"
    ]


def test_the_example_of_the_readme_is_right() -> None:
    """What the README shows for Kubernetes is accepted with the defaults."""
    (block,) = re.findall(r"^```yaml\n(terminationGrace.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    pod = "apiVersion: v1\nkind: Pod\nspec:\n" + "".join(f"  {line}\n" for line in block.splitlines())
    assert said(pod, LIFECYCLE_GRACE_PERIOD=25, LIFECYCLE_SHUTDOWN_DELAY=5) == [
        "deploy.yaml:4: ok: Pod/? 'web': 25 s of LIFECYCLE_GRACE_PERIOD + 1 s to spare = 26 s, less than the 30 s of"
        " terminationGracePeriodSeconds"
    ]


def test_the_unit_of_the_documentation_is_right() -> None:
    """What docs/operations.md shows for systemd is accepted."""
    (block,) = re.findall(r"^```ini\n(.*?)^```$", (ROOT / "docs/operations.md").read_text(), re.S | re.M)
    assert [line.split(": ")[1] for line in said(block, "shop.service", LIFECYCLE_GRACE_PERIOD=60)] == ["ok"]


def test_every_rule_is_in_the_documentation() -> None:
    """The table of docs/deploy.md has the names that JSON shows."""
    code = "".join(path.read_text() for path in (ROOT / "flask_lifecycle/_doctor").glob("_*.py"))
    rules = set(re.findall(r"(?:error|warning|report)\(\s*\"([a-z-]+)\"", code))
    table = (ROOT / "docs/deploy.md").read_text().partition("| rule |")[2].partition("\n\n")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall("`(.*?)`", row)}
    assert rules | {"settings", "form"} == named


# -- Kubernetes ---------------------------------------------------------------------------------------------------

PRESTOP = "          startupProbe:\n"


def _with_stop(hook: str) -> tuple[str, str]:
    return PRESTOP, f"          lifecycle: {{preStop: {hook}}}\n{PRESTOP}"


KUBERNETES = [
    (
        ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 11"),
        [
            f"8: error: {POD}: terminationGracePeriodSeconds is 11 s, and a stop may take {ROOM}; set it to 12 or more,"
            " or LIFECYCLE_GRACE_PERIOD to less than 10."
        ],
    ),
    (
        ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 0"),
        [f"8: error: {POD}: terminationGracePeriodSeconds is 0 s, and a stop may take {ROOM}; set it to 12 or more."],
    ),
    (
        ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: soon"),
        [
            f"8: error: {POD}: terminationGracePeriodSeconds is 'soon'; give it a whole number of seconds or times.",
        ],
    ),
    (
        _with_stop("{exec: {command: [/bin/sh, -c, sleep 0.5m]}}"),
        [
            f"8: error: {POD}: terminationGracePeriodSeconds is 30 s, and a stop may take 10 s of"
            " LIFECYCLE_GRACE_PERIOD + 30 s of preStop + 1 s to spare = 41 s; set it to 42 or more.",
            f"15: warning: {POD}: a sleep of 30 s stands beside a LIFECYCLE_SHUTDOWN_DELAY of 2 s, which is for the"
            " same; remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0.",
        ],
    ),
    (
        _with_stop("{sleep: {seconds: 5}}"),
        [
            f"15: warning: {POD}: a sleep of 5 s stands beside a LIFECYCLE_SHUTDOWN_DELAY of 2 s, which is for the"
            " same; remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0.",
        ],
    ),
    (_with_stop("{exec: {command: [flask, lifecycle, drain, --wait]}}"), []),
    (
        _with_stop("{exec: {command: [/bin/bye]}}"),
        [
            f"15: warning: {POD}: how long the preStop hook takes cannot be told, and it uses up"
            " terminationGracePeriodSeconds; leave so much more room there, or use LIFECYCLE_SHUTDOWN_DELAY in its"
            " place."
        ],
    ),
    (
        _with_stop("{exec: {command: sleep 5}}"),
        [
            f"15: error: {POD}: command is no list of texts; write it as ['program', 'argument'].",
            f"15: warning: {POD}: how long the preStop hook takes cannot be told, and it uses up"
            " terminationGracePeriodSeconds; leave so much more room there, or use LIFECYCLE_SHUTDOWN_DELAY in its"
            " place.",
        ],
    ),
    (
        _with_stop("{httpGet: {path: /lifecycle/drain, port: 9000}}"),
        [
            f"15: error: {POD}: preStop sends GET '/lifecycle/drain' without a token, which is refused: what operators"
            " ask for is a POST; remove the hook, as SIGTERM does the same, or run 'flask lifecycle drain' by exec."
        ],
    ),
    (
        _with_stop("{httpGet: {path: /bye, port: 8000}}"),
        [
            f"15: warning: {POD}: preStop asks for '/bye', and how long that takes cannot be told; it uses up"
            " terminationGracePeriodSeconds; use an on_drain function in its place."
        ],
    ),
    (
        ("failureThreshold: 3", "terminationGracePeriodSeconds: 5"),
        [
            f"24: error: {POD}: livenessProbe has a terminationGracePeriodSeconds of its own of 5 s, and a stop may"
            " take 11 s; set it to 12 or more, or remove it."
        ],
    ),
    (
        ("/livez/", "/health"),
        [
            f"23: error: {POD}: livenessProbe asks for '/health', where this application has no probe; set its path to"
            " '/livez'."
        ],
    ),
    (
        ("path: /livez/, ", ""),
        [
            f"23: error: {POD}: livenessProbe asks for '/', where this application has no probe; set its path to"
            " '/livez'."
        ],
    ),
    (
        ("/livez/", "'/readyz?verbose'"),
        [
            f"23: error: {POD}: livenessProbe asks for '/readyz?verbose', which is readiness and fails whenever traffic"
            " should stay away: each time the container is restarted; set its path to '/livez'."
        ],
    ),
    (
        ("/livez/", "/healthcheck"),
        [
            f"23: error: {POD}: livenessProbe asks for '/healthcheck', which is all checks and fails whenever traffic"
            " should stay away: each time the container is restarted; set its path to '/livez'."
        ],
    ),
    (
        ("/livez/", "/startupz"),
        [
            f"23: error: {POD}: livenessProbe asks for '/startupz', which fails until the start is over: a slow start"
            " is restarted; set its path to '/livez'."
        ],
    ),
    (
        ("/readyz", "/livez"),
        [
            f"20: error: {POD}: readinessProbe asks for '/livez', which goes on succeeding while the process leaves;"
            " set its path to '/readyz'."
        ],
    ),
    (("/readyz", "/own"), []),
    (
        ("/startupz", "/livez"),
        [
            f"16: warning: {POD}: startupProbe asks for '/livez', which succeeds before the start is over; set its path"
            " to '/startupz'."
        ],
    ),
    (
        ("{path: /startupz, port: http}", "{path: /readyz, port: http}\n            timeoutSeconds: 6"),
        [
            f"16: warning: {POD}: startupProbe asks for '/readyz', by which a dependency that is down restarts what has"
            " started; set its path to '/startupz'."
        ],
    ),
    (
        ("{path: /livez/, port: http}", "{path: /livez/, port: web}"),
        [
            f"23: error: {POD}: livenessProbe names the port 'web', which the container does not have (it has 'http');"
            " name one under 'ports', or give the number."
        ],
    ),
    (
        ("port: 8000}", "port: 8080}"),
        [
            f"20: error: {POD}: readinessProbe asks port 8080, where nobody listens: the application is on port 8000;"
            " set its port to 8000."
        ],
    ),
    (
        ("timeoutSeconds: 6", "timeoutSeconds: 5"),
        [
            f"21: warning: {POD}: timeoutSeconds of readinessProbe is 5 s, and the answer may take the 5 s of"
            " LIFECYCLE_PROBE_TIMEOUT; set it to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."
        ],
    ),
    (
        ("            timeoutSeconds: 6\n", ""),
        [
            f"20: warning: {POD}: timeoutSeconds of readinessProbe is 1 s by default, and the answer may take the 5 s"
            " of LIFECYCLE_PROBE_TIMEOUT; set it to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."
        ],
    ),
    (
        ("httpGet: {path: /livez/, port: http}", "tcpSocket: {port: http}"),
        [
            f"22: warning: {POD}: livenessProbe only connects, which succeeds also when nobody answers; use httpGet"
            " with the path '/livez'."
        ],
    ),
    (("httpGet: {path: /livez/, port: http}", "exec: {command: [look]}"), []),
    (
        ("failureThreshold: 60", "failureThreshold: 20"),
        [
            f"18: warning: {POD}: startupProbe gives the start 20 s (0 + 20 x 1), then the container is restarted;"
            " set its failureThreshold to 30 or more."
        ],
    ),
    (
        ("failureThreshold: 3", "initialDelaySeconds: 9"),
        [
            f"24: warning: {POD}: livenessProbe waits 9 s more after the startupProbe, which has held it back already;"
            " remove its initialDelaySeconds."
        ],
    ),
    (
        ("failureThreshold: 3", "failureThreshold: 1"),
        [
            f"24: warning: {POD}: livenessProbe restarts the container for a single answer that is late; set its"
            " failureThreshold to 3."
        ],
    ),
    (
        ("readinessProbe", "otherProbe"),
        [
            f"10: warning: {POD}: there is no readinessProbe, so that traffic comes before the start is over and while"
            " checks fail; add one with the path '/readyz'."
        ],
    ),
    (
        ('"-h", "0.0.0.0", ', ""),
        [
            f"11: error: {POD}: the application listens on 127.0.0.1, which nothing outside the container reaches; add"
            " '-h 0.0.0.0' to the command."
        ],
    ),
    (
        ('["flask", "--app"', '["sh", "-ec", "cd /srv; flask lifecycle run -h 0.0.0.0 -p 8000", "--app"'),
        [f"11: error: {POD}: {SHELL}; {SHELL_CURE}"],
    ),
    (
        _with_stop("{exec: {command: [lifecycle/drain]}}, stopSignal: SIGQUIT"),
        [
            f"15: error: {POD}: SIGQUIT is sent to stop it, and the application takes SIGTERM; set stopSignal to"
            " SIGTERM."
        ],
    ),
    (
        (PRESTOP, f"          env: [{{name: FLASK_LIFECYCLE_GRACE_PERIOD, value: '8'}}]\n{PRESTOP}"),
        [
            f"15: warning: {POD}: FLASK_LIFECYCLE_GRACE_PERIOD is '8' here, and the application was loaded with 10.0,"
            " by which all is judged; run the doctor with FLASK_LIFECYCLE_GRACE_PERIOD in its environment."
        ],
    ),
]


@pytest.mark.parametrize(("change", "expected"), KUBERNETES, ids=range(len(KUBERNETES)))
def test_a_deployment_that_is_wrong_is_told(change: tuple[str, str], expected: list[str]) -> None:
    """Each rule finds its case, and only that, and names line, number and cure."""
    told = [line.removeprefix("deploy.yaml:") for line in said(changed(DEPLOYMENT, *change))]
    assert sorted(line for line in told if ": ok:" not in line) == sorted(expected)


def test_a_hook_counts_if_its_time_is_known() -> None:
    """A sleep is added, a drain is not, as it begins the grace period, and of what is unknown nothing is proved."""
    assert said(changed(DEPLOYMENT, *_with_stop("{sleep: {seconds: 5}}")))[0] == (
        f"deploy.yaml:8: ok: {POD}: 10 s of LIFECYCLE_GRACE_PERIOD + 5 s of preStop + 1 s to spare = 16 s, less than"
        " the 30 s of terminationGracePeriodSeconds"
    )
    assert said(changed(DEPLOYMENT, *_with_stop("{exec: {command: [flask, lifecycle, drain]}}"))) == [PROVED]
    assert len(said(changed(DEPLOYMENT, *_with_stop("{exec: {command: [/bin/bye]}}")))) == 1


@pytest.mark.parametrize(
    "command",
    [
        '["sh", "-c", "cd /srv && exec flask lifecycle run -h 0.0.0.0 -p 8000"]',
        '["sh", "-c", "if true; then\\n exec flask lifecycle run -h 0.0.0.0 \\\\\\n  -p 8000; fi\\n"]',
        '["bash", "-c", "trap bye TERM; flask lifecycle run -h 0.0.0.0 -p 8000 & wait"]',
        '["sh", "start.sh"]',
        '["flask", "run", "-h", "$(HOST)", "-p", "$(PORT)"]',
        '["flask", "lifecycle", "run", "--listen", "0.0.0.0:8000"]',
        '["gunicorn", "shop:app"]',
        '["/bin/serve", "it\'s"]',
    ],
)
def test_what_cannot_be_told_or_is_right_is_not_complained_of(command: str) -> None:
    """An exec, a trap, a script and a variable are no findings."""
    text = re.sub(r'\["flask".*\]', lambda _: command, DEPLOYMENT)
    assert said(text) == [PROVED]


@pytest.mark.parametrize("script", ["", "exec flask run | tee log", "exec flask run &", "flask run 'it"])
def test_a_shell_that_stays_is_found(script: str) -> None:
    """An exec within a pipe or in the background does not replace the shell."""
    text = re.sub(r'\["flask".*\]', lambda _: f'[/bin/sh, -c, "{script}"]', DEPLOYMENT)
    assert f"deploy.yaml:11: error: {POD}: {SHELL}; {SHELL_CURE}" in said(text)


def test_a_loopback_address_behind_a_neighbour_is_a_warning() -> None:
    """Where no probe asks the main port, a proxy in the same pod may."""
    text = changed(changed(DEPLOYMENT, '"-h", "0.0.0.0", ', ""), "port: 8000}", "port: 9000}")
    text = text.replace("port: http}", "port: 9000}")
    assert said(text, LIFECYCLE_PROBE_PORT=9000)[1:] == [
        f"deploy.yaml:11: warning: {POD}: the application listens on 127.0.0.1, which nothing outside the container"
        " reaches; add '-h 0.0.0.0' to the command."
    ]


def test_liveness_belongs_on_the_probe_listener() -> None:
    """With a probe port liveness is warned of on the main one, and readiness is not."""
    assert said(DEPLOYMENT, LIFECYCLE_PROBE_PORT=9000)[1:] == [
        f"deploy.yaml:23: warning: {POD}: livenessProbe asks port 8000, which is closed in a stop and busy under load;"
        " set its port to LIFECYCLE_PROBE_PORT, 9000."
    ]


def test_the_probe_listener_is_asked_where_it_is() -> None:
    """By HTTP, at an address that others reach, and a third port is nobody's."""
    text = changed(DEPLOYMENT, "{path: /livez/, port: http}", "{path: /livez, port: 9000, scheme: HTTPS}")
    text = changed(text, "port: 8000}", "port: 9001}")
    assert said(text, LIFECYCLE_PROBE_PORT=9000, LIFECYCLE_PROBE_HOST="127.0.0.1")[1:] == [
        f"deploy.yaml:20: error: {POD}: readinessProbe asks port 9001, where nobody listens: the application is on port"
        " 8000 and the probe listener on 9000; set its port to 9000.",
        f"deploy.yaml:23: error: {POD}: livenessProbe asks the probe listener by HTTPS, and it speaks HTTP; set its"
        " scheme to HTTP.",
        f"deploy.yaml:23: error: {POD}: LIFECYCLE_PROBE_HOST is 127.0.0.1, which livenessProbe does not reach; set it"
        " to '0.0.0.0'.",
    ]


def test_a_probe_port_that_is_any_cannot_be_asked() -> None:
    """Port 0 is another one at each start."""
    text = changed(DEPLOYMENT, "port: 8000}", "port: 9000}")
    assert said(text, LIFECYCLE_PROBE_PORT=0)[1:] == [
        f"deploy.yaml:20: error: {POD}: readinessProbe asks port 9000, and LIFECYCLE_PROBE_PORT is 0, which is another"
        " port at each start; set that to 9000."
    ]


def test_a_port_that_is_neither_name_nor_number_is_told() -> None:
    """Nothing that YAML can hold there breaks the doctor; without a port Kubernetes asks port 80."""
    text = changed(DEPLOYMENT, "port: 8000}", "port: [1]}")
    assert f"deploy.yaml:20: error: {POD}: readinessProbe names the port ''" in said(text)[1]
    assert "readinessProbe asks port 80, where" in said(changed(DEPLOYMENT, ", port: 8000}", "}"))[1]


def test_ports_from_the_environment_are_not_guessed() -> None:
    """Where variables may move the application nothing is said of ports and addresses."""
    text = changed(DEPLOYMENT, PRESTOP, f"          envFrom: [{{secretRef: {{name: s}}}}]\n{PRESTOP}")
    text = changed(changed(text, "port: 8000}", "port: 1}"), '"-h", "0.0.0.0", ', "")
    assert len(said(text)) == 1
    named = changed(text, "envFrom: [{secretRef: {name: s}}]", "env: [{name: FLASK_LIFECYCLE_RUN_PORT, value: '1'}]")
    assert len(said(named)) == 1


def test_a_delay_of_zero_in_a_cluster_is_warned_of() -> None:
    """Proxies need time to hear of the end; without a setting there is a delay in the cluster."""
    assert said(DEPLOYMENT, LIFECYCLE_SHUTDOWN_DELAY=0) == [
        PROVED,
        f"deploy.yaml:10: warning: {POD}: LIFECYCLE_SHUTDOWN_DELAY is 0 and there is no preStop, so the listener closes"
        " while proxies still send to the pod; set it to 5, or to 'auto'.",
    ]


def test_the_delay_that_a_cluster_brings_is_judged() -> None:
    """A grace period that has no room for the default delay there is found here."""
    app = application(LIFECYCLE_GRACE_PERIOD=4, LIFECYCLE_SHUTDOWN_DELAY=0)
    del app.config["LIFECYCLE_SHUTDOWN_DELAY"]  # type: ignore[attr-defined]  # it is a dict
    Path("deploy.yaml").write_text(DEPLOYMENT)
    assert [str(finding) for finding in examine("deploy.yaml", app)] == [
        f"deploy.yaml:10: error: {POD}: in the cluster the application does not start: 'LIFECYCLE_SHUTDOWN_DELAY' (5 s)"
        " and 'LIFECYCLE_HOOK_RESERVE' (0.8 s) leave nothing of 'LIFECYCLE_GRACE_PERIOD' (4 s) to drain in; raise the"
        " grace period or lower one of the two."
    ]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "ReplicaSet", "Rollout"])
def test_every_kind_with_a_template_is_read(kind: str) -> None:
    """Whatever has a template of pods is a workload."""
    assert said(changed(DEPLOYMENT, "Deployment", kind)) == [PROVED.replace("Deployment", kind)]


def test_a_cron_job_and_a_job_need_no_readiness() -> None:
    """What ends by itself is judged by its time alone, also as a document among several and in a list."""
    pod = "spec: {containers: [{name: a, command: [flask, lifecycle, run, -h, '::']}]}"
    text = (
        "---\n---\n# nothing\n---\napiVersion: batch/v1\nkind: Job\nmetadata: {name: one}\n"
        f"spec: {{template: {{{pod}}}}}\n"
        "---\napiVersion: v1\nkind: List\nitems:\n- kind: CronJob\n"
        f"  spec: {{jobTemplate: {{spec: {{template: {{{pod}}}}}}}}}\n- kind: Service\n"
    )
    assert [line.split(" by default")[0] for line in said(text, LIFECYCLE_GRACE_PERIOD=30)] == [
        "deploy.yaml:8: error: Job/one 'a': terminationGracePeriodSeconds is 30 s",
        "deploy.yaml:14: error: CronJob/? 'a': terminationGracePeriodSeconds is 30 s",
    ]


def test_of_several_containers_the_application_is_chosen() -> None:
    """By its command, by its probes or by --name; where none looks like it a warning says so."""
    side = "      containers:\n        - name: side\n          image: proxy\n"
    text = changed(DEPLOYMENT, "      containers:\n", side)
    assert said(text) == [PROVED]
    bare = re.sub(r"          command: .*\n", "", text)
    assert said(bare) == [PROVED]
    silent = bare.replace("Probe:", "Nothing:")
    assert said(silent) == [
        "deploy.yaml:7: warning: Deployment/shop: which of its containers is the application cannot be told ('side',"
        " 'web'), so none was judged; say it with --name."
    ]
    assert said(silent, name="side") == [PROVED.replace("'web'", "'side'")]
    assert said(silent, name="other") == [
        "deploy.yaml: unreadable: The file has no container or service 'other'; --name has to be one of those in it."
    ]


# -- compose ------------------------------------------------------------------------------------------------------

SERVICES = [
    (
        ("    stop_grace_period: 12s\n", ""),
        [
            f"6: error: service 'web': stop_grace_period is 10 s by default, and a stop may take {ROOM}; set it to 12"
            " or more, or LIFECYCLE_GRACE_PERIOD to less than 9."
        ],
    ),
    (("12s", "1m30.5s"), []),
    (
        ("12s", "soon"),
        [
            "10: error: service 'web': stop_grace_period is 'soon'; give it a duration such as '30s' or '1m30s'.",
            f"10: error: service 'web': stop_grace_period is 10 s by default, and a stop may take {ROOM}; set it to 12"
            " or more, or LIFECYCLE_GRACE_PERIOD to less than 9.",
        ],
    ),
    (
        ("12s", "${GRACE}"),
        [
            "10: warning: service 'web': stop_grace_period is '${GRACE}', which is filled in later, so 10 s, the"
            " default, was judged; give the doctor what 'docker compose config' prints.",
            f"10: error: service 'web': stop_grace_period is 10 s by default, and a stop may take {ROOM}; set it to 12"
            " or more, or LIFECYCLE_GRACE_PERIOD to less than 9.",
        ],
    ),
    (
        ("stop_signal: SIGINT", "stop_signal: 3"),
        [
            "11: error: service 'web': SIGQUIT is sent to stop it, and the application takes SIGTERM; set stop_signal"
            " to SIGTERM."
        ],
    ),
    (
        ("stop_signal: SIGINT", "stop_signal: STOPPED"),
        [
            "11: error: service 'web': STOPPED is sent to stop it, and the application takes SIGTERM; set stop_signal"
            " to SIGTERM."
        ],
    ),
    (
        ("--host=0.0.0.0 ", ""),
        [
            "8: error: service 'web': the application listens on 127.0.0.1, which nothing outside the container"
            " reaches; add '-h 0.0.0.0' to the command."
        ],
    ),
    (("--host=0.0.0.0 -p8000\n", "-p8000\n    network_mode: host\n"), []),
    (
        ("command: flask", "command: sh -c 'flask run -h 0.0.0.0 -p 8000; true' #"),
        [
            f"8: error: service 'web': {SHELL}; {SHELL_CURE}",
            "11: error: service 'web': SIGINT is sent to stop it, and the application takes SIGTERM; set stop_signal to"
            " SIGTERM.",
        ],
    ),
    (
        ("localhost:8000/healthcheck", "localhost/health"),
        [
            "13: error: service 'web': healthcheck asks for '/health', where this application has no probe; set its"
            " path to '/healthcheck'.",
            "13: error: service 'web': healthcheck asks port 80, where nobody listens: the application is on port 8000;"
            " set its port to 8000.",
        ],
    ),
    (
        ("timeout: 6s", "timeout: 2s"),
        [
            "14: warning: service 'web': timeout of healthcheck is 2 s, and the answer may take the 5 s of"
            " LIFECYCLE_PROBE_TIMEOUT; set it to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."
        ],
    ),
    (("localhost:8000", "localhost:$PORT"), []),
    (("    healthcheck:\n      test:", "    labels:\n      test:"), []),
    (
        ("    stop_signal: SIGINT\n", "    environment: {FLASK_LIFECYCLE_EXIT: signal, OTHER: null}\n"),
        [
            "11: warning: service 'web': FLASK_LIFECYCLE_EXIT is 'signal' here, and the application was loaded with"
            " 'code', by which all is judged; run the doctor with FLASK_LIFECYCLE_EXIT in its environment."
        ],
    ),
    (
        (
            "    stop_signal: SIGINT\n",
            "    environment: ['FLASK_LIFECYCLE_PATHS={}', FLASK_LIFECYCLE_READY=auto, HOME]\n",
        ),
        [],
    ),
]


@pytest.mark.parametrize(("change", "expected"), SERVICES, ids=range(len(SERVICES)))
def test_a_service_that_is_wrong_is_told(change: tuple[str, str], expected: list[str]) -> None:
    """Each rule finds its case in a compose file, and only that."""
    told = [line.removeprefix("compose.yaml:") for line in said(changed(COMPOSE, *change), "compose.yaml")]
    assert sorted(line for line in told if ": ok:" not in line) == sorted(expected)


def test_a_service_alone_is_the_application() -> None:
    """Whatever it looks like."""
    assert said("services: {a: {image: a, stop_grace_period: 12s}}", "compose.yaml")[0].startswith("compose.yaml:1: ok")


def test_a_command_without_options_listens_where_it_does_by_default() -> None:
    """On the loopback, as Flask does."""
    text = changed(COMPOSE, " --host=0.0.0.0 -p8000", "")
    assert [line.partition(": service 'web': ")[2] for line in said(text, "compose.yaml") if ": error:" in line] == [
        "the application listens on 127.0.0.1, which nothing outside the container reaches; add '-h 0.0.0.0' to the"
        " command.",
        "healthcheck asks port 8000, where nobody listens: the application is on port 5000; set its port to 5000.",
    ]


def test_a_signal_is_right_if_the_settings_take_it() -> None:
    """With LIFECYCLE_SIGNALS those count; without any nothing stops the process."""
    assert len(said(COMPOSE, "compose.yaml", LIFECYCLE_SIGNALS=["SIGINT"])) == 1
    assert said(COMPOSE, "compose.yaml", LIFECYCLE_SIGNALS=[])[1:] == [
        "compose.yaml:11: error: service 'web': SIGINT is sent to stop it, and the application takes none; add 'SIGINT'"
        " to LIFECYCLE_SIGNALS."
    ]


def test_of_several_services_the_application_is_chosen() -> None:
    """By its command, its healthcheck or --name; where none looks like it a warning says so."""
    by_check = re.sub("    command: .*\n", "", COMPOSE)
    assert len(said(by_check, "compose.yaml")) == 2  # the signal, as it is not seen to be under run
    silent = re.sub("    healthcheck:\n.*\n.*\n", "", by_check)
    assert said(silent, "compose.yaml") == [
        "compose.yaml:1: warning: which of its services is the application cannot be told ('db', 'web'), so none was"
        " judged; say it with --name."
    ]
    assert said(silent, "compose.yaml", name="web")[0].startswith("compose.yaml:9: ok: service 'web'")


# -- systemd ------------------------------------------------------------------------------------------------------

UNITS = [
    (("Type=notify", "Type=notify\nNotifyAccess=all"), []),
    (
        ("Type=notify", "Type=exec"),
        [
            f"10: error: unit 'a.service': TimeoutStopSec is 10 s, and a stop may take {ROOM}; set it to 12 or more, or"
            " LIFECYCLE_GRACE_PERIOD to less than 9.",
            "6: warning: unit 'a.service': Type is 'exec', by which systemd does not wait until the application is"
            " ready; set it to 'notify'.",
        ],
    ),
    (
        ("Type=notify\n", "TimeoutStopSec=1min 30s\nTimeoutStopSec=\n"),
        [
            f"11: error: unit 'a.service': TimeoutStopSec is 10 s, and a stop may take {ROOM}; set it to 12 or more, or"
            " LIFECYCLE_GRACE_PERIOD to less than 9.",
            "8: warning: unit 'a.service': Type is 'simple' by default, by which systemd does not wait until the"
            " application is ready; set it to 'notify'.",
        ],
    ),
    (
        ("Type=notify", "Type=forking"),
        [
            f"10: error: unit 'a.service': TimeoutStopSec is 10 s, and a stop may take {ROOM}; set it to 12 or more, or"
            " LIFECYCLE_GRACE_PERIOD to less than 9.",
            "6: error: unit 'a.service': Type is 'forking', and the process neither forks nor ends; set it to"
            " 'notify'.",
        ],
    ),
    (
        ("lifecycle run", "run"),
        [
            f"10: error: unit 'a.service': TimeoutStopSec is 10 s, and a stop may take {ROOM}; set it to 12 or more, or"
            " LIFECYCLE_GRACE_PERIOD to less than 9.",
            "6: error: unit 'a.service': Type is 'notify', and under flask run the application is not ready before the"
            " first request; set it to 'exec', or start 'flask lifecycle run'.",
        ],
    ),
    (
        ("KillMode=mixed", "KillMode=none"),
        ["11: error: unit 'a.service': KillMode is 'none', by which no signal is sent at all; set it to 'mixed'."],
    ),
    (
        ("KillMode=mixed", "KillMode=process"),
        [
            "11: warning: unit 'a.service': KillMode is 'process', by which children are left behind; set it to"
            " 'mixed'."
        ],
    ),
    (
        ("KillMode=mixed", "KillSignal=SIGHUP\nEnvironment=A=1 FLASK_LIFECYCLE_READY=manual"),
        [
            "11: error: unit 'a.service': SIGHUP is sent to stop it, and the application takes SIGTERM; set KillSignal"
            " to SIGTERM.",
            "12: warning: unit 'a.service': FLASK_LIFECYCLE_READY is 'manual' here, and the application was loaded with"
            " 'auto', by which all is judged; run the doctor with FLASK_LIFECYCLE_READY in its environment.",
        ],
    ),
    (("TimeoutStopSec=10", "TimeoutStopSec=soon"), ["10: error: unit 'a.service': TimeoutStopSec is 'soon'; give it a"
        " time such as '30' or '1min 30s'."]),
    (("TimeoutStopSec=10", "TimeoutStopSec=10 parsecs"), ["10: error: unit 'a.service': TimeoutStopSec is '10 parsecs';"
        " give it a time such as '30' or '1min 30s'."]),
    (
        ("TimeoutStopSec=10", "ExecStop=/bin/sleep 3"),
        [
            "10: warning: unit 'a.service': a sleep of 3 s stands beside a LIFECYCLE_SHUTDOWN_DELAY of 2 s, which is"
            " for the same; remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0."
        ],
    ),
    (("TimeoutStopSec=10", "ExecStop=-/bin/kill $MAINPID"), []),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), UNITS, ids=range(len(UNITS)))
def test_a_unit_that_is_wrong_is_told(change: tuple[str, str], expected: list[str]) -> None:
    """Each rule finds its case in a unit, and only that."""
    told = [line.removeprefix("a.service:") for line in said(changed(UNIT, *change), "a.service")]
    assert sorted(line for line in told if ": ok:" not in line) == sorted(expected)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Type=exec\nExecStart=@/srv/serve shop\nTimeoutSec=infinity", UNLIMITED),
        ("TimeoutStopSec=0\nExecStart=serve", UNLIMITED),
        (
            "TimeoutStopSec=1min 500ms\nExecStart=serve",
            f"ok: unit 'a.conf': {ROOM}, less than the 60.5 s of TimeoutStopSec",
        ),
        (
            "TimeoutStopSec=1\nTimeoutStopSec=\nExecStart=serve",
            f"ok: unit 'a.conf': {ROOM}, less than the 90 s of TimeoutStopSec",
        ),
        ("Restart=always", UNLIMITED),
        (
            "ExecStart=waitress-serve shop:app",
            "warning: unit 'a.conf': Type is 'simple' by default, by which a command that cannot be started counts as"
            " started; set it to 'exec'.",
        ),
        (
            "ExecStart=sh -c 'true && serve'",
            "warning: unit 'a.conf': a shell is the main process, so that its exit code and notifications are not the"
            " application's; write 'exec' before the command, or start it without sh -c.",
        ),
        ("KillMode=process\nExecStart=sh -c 'true && serve'", f"error: unit 'a.conf': {SHELL}; {SHELL_CURE}"),
    ],
)  # fmt: skip
def test_a_drop_in_is_read_as_a_unit(lines: str, expected: str) -> None:
    """A unit is known by its first line as well; a drop-in is judged by what it says."""
    assert expected in [line.partition(": ")[2] for line in said(f"; comment\n\n[Service]\n{lines}\n", "a.conf")]


# -- files that are none ------------------------------------------------------------------------------------------

BOMB = "a: &a0 [0, 0]\n" + "".join(f"b{n}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(40))
TEMPLATE = "This is a template that is not filled in yet; render it ('helm template', Jinja) and give what comes out."
NOTHING = "The file holds no workload of Kubernetes, no compose service and no systemd unit."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", ": The file is empty."),
        (b" \n\n", ": The file is empty."),
        (b"# nothing\n", f": {NOTHING}"),
        (b"a: 1\n", f": {NOTHING}"),
        (b"- 1\n- [2]\n--- 3\n", f": {NOTHING}"),
        (b"apiVersion: v1\nkind: Service\n", f": {NOTHING}"),
        (b"apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", f": {NOTHING}"),
        (b"a: 1\nb\0c: 2\n", ":2: This is no text in UTF-8, but binary."),
        (b"a: 1\nb: \xff\n", ":2: This is no text in UTF-8, but binary."),
        (b"a" * (LIMIT + 1), f": The file is larger than {LIMIT // 1024} KiB; give the parts that deploy this alone."),
        (b"a: 1\nb: [\n", ":3: This is no YAML: expected the node content, but found '<stream end>'."),
        (b"a: 1\n\tb: 2\n", ":2: This is no YAML: found character '\\t' that cannot start any token."),
        (b"a: 1\nb: \x07\n", ":2: This is no YAML: there is a control character."),
        (b"a: *b\n", ":1: This is no YAML: found undefined alias 'b'."),
        (b"a: 1\nb: 2\na: 3\n", ":3: The key 'a' is there twice, first on line 1; remove one of them."),
        (b"a: &a\n  b: *a\n", ":1: The value that begins here contains itself; remove the alias within it."),
        (b"a: 1\n? [b]\n: 2\n", ":2: The key that begins here is not a text."),
        (b"a: 1\n<<: 2\n", ":2: '<<' has to be an alias of a mapping, or a list of such."),
        (b"a: !!int x\n", ":1: 'x' is no value of its kind."),
        (b"a: 1\nb: {{ .Values.b }}\n", f":2: {TEMPLATE}"),
        (b"# {{ here }}\n{{- if .Values.a }}\na: 1\n{{- end }}\n", f":2: {TEMPLATE}"),
        (b"{% if a %}\na: 1\n", f":1: {TEMPLATE}"),
        (b"[Service]\nExecStart={{ command }}\n", f":2: {TEMPLATE}"),
        (b"[Service]\n\nnothing\n", ":3: This is no line of a unit, which are '[Section]' and 'Key=value'."),
        (b"[Unit]\nDescription=a\n", ": The unit has no section '[Service]', so there is nothing to judge."),
        (
            b"[" * (DEEPEST + 1),
            f":1: This is nested more than {DEEPEST} levels deep, as nothing deployed is.",
        ),
        (
            BOMB.encode(),
            f":16: What begins here is more than {MOST_VALUES} values when its aliases are written out.",
        ),
    ],
    ids=range(27),
)
def test_a_file_that_cannot_be_read_is_one_sentence(text: bytes, expected: str) -> None:
    """Whatever is in a file, it is one sentence with the line."""
    where, _, sentence = expected.partition(": ")
    assert said(text) == [f"deploy.yaml{where}: unreadable: {sentence}"]


def test_a_quoted_template_is_found_where_it_is_read() -> None:
    """A template that happens to be YAML is told as well, and one in an annotation is none."""
    annotated = changed(DEPLOYMENT, "  name: shop", "  name: shop\n  annotations: {a: '{{ b }}'}")
    assert said(annotated)[0].startswith("deploy.yaml:9: ok")
    quoted = changed(DEPLOYMENT, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: '{{ a }}'")
    assert said(quoted) == [f"deploy.yaml:8: unreadable: {TEMPLATE}"]


def test_merged_mappings_and_aliases_are_what_they_stand_for() -> None:
    """Of several that are merged the first counts, and what is written counts before all."""
    text = changed(COMPOSE, "<<: *usual", "<<: [*usual, {stop_grace_period: 1s, network_mode: host}]")
    assert said(text, "compose.yaml")[0].startswith("compose.yaml:10: ok")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no.yaml", "No such file or directory"), (".", "Is a directory"), ("a\0b", "embedded null byte")],
)
def test_a_file_that_is_not_there_is_one_sentence(name: str, reason: str) -> None:
    """A missing file, a directory and a name that can be none are told without a line."""
    (found,) = examine(name, application())
    assert found.text == f"The file cannot be read ({reason})."
    assert "\0" not in str(found)


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is one sentence, and units are read without it."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert said(DEPLOYMENT) == [
        "deploy.yaml: unreadable: PyYAML is not installed, which reading YAML needs; install flask_lifecycle[doctor]."
    ]
    assert len(said(UNIT, "a.service")) == 1


def test_what_a_file_says_reaches_no_terminal() -> None:
    """A control sequence in a name is escaped."""
    (line,) = said(changed(DEPLOYMENT, "  name: shop", '  name: "\\e[31mshop"'))
    assert "Deployment/\\x1b[31mshop" in line


# -- the command --------------------------------------------------------------------------------------------------


def invoke(*arguments: str, given: str = "") -> Any:
    """Run the command as ``flask`` would."""
    app = make_app()
    Lifecycle(app)
    app.cli.add_command(group)
    return app.test_cli_runner().invoke(args=["lifecycle", "doctor", *arguments], input=given)


@pytest.mark.parametrize(
    ("files", "code"), [(["good"], 0), (["warned"], 0), (["good", "bad"], 1), (["bad", "good", "no"], 2)]
)
def test_the_exit_code_is_that_of_the_worst(files: list[str], code: int) -> None:
    """0 without an error, 1 with one, 2 if a file cannot be read; all files are told of all the same."""
    Path("good").write_text(COMPOSE)
    Path("warned").write_text(DEPLOYMENT)
    Path("bad").write_text(changed(COMPOSE, "12s", "11s"))
    result = invoke(*files)
    assert result.exit_code == code
    assert list(dict.fromkeys(line.partition(":")[0] for line in result.stdout.splitlines())) == files


def test_json_is_one_document() -> None:
    """Each finding has its numbers in fields of their own."""
    Path("bad").write_text(changed(COMPOSE, "12s", "11s"))
    document = json.loads(invoke("--json", "bad").stdout)
    assert document["counts"] == {"error": 1, "warning": 0, "ok": 0, "unreadable": 0}
    assert document["findings"] == [
        {
            "file": "bad",
            "line": 10,
            "severity": "error",
            "rule": "grace-period",
            "subject": "service 'web'",
            "text": f"stop_grace_period is 11 s, and a stop may take {ROOM}",
            "cure": "set it to 12 or more, or LIFECYCLE_GRACE_PERIOD to less than 10",
            "found": "11",
            "wanted": "12",
        }
    ]


def test_the_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program renders need not be written to a file."""
    result = invoke("-", given=COMPOSE)
    assert result.stdout == f"<stdin>:10: ok: service 'web': {ROOM}, less than the 12 s of stop_grace_period\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert str(examine("-", application())[0]) == "<stdin>: unreadable: The file is empty."


def test_a_file_has_to_be_given() -> None:
    """Without one the usage is told."""
    result = invoke()
    assert (result.exit_code, "Missing argument 'FILE...'" in result.output) == (2, True)
