"""``flask lifecycle doctor``: for each rule files that are right and wrong, and files that cannot be read."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from flask_lifecycle import Lifecycle
from tests._fakes import ROOT, make_app, run_python

RUN = '["flask", "--app", "shop", "lifecycle", "run", "-h", "0.0.0.0", "-p", "8000"]'
DEPLOYMENT = f"""\
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
          command: {RUN}
          ports:
            - name: http
              containerPort: 8000
          startupProbe:
            httpGet: {{path: /startupz, port: http}}
            periodSeconds: 1
            failureThreshold: 60
          readinessProbe:
            httpGet: {{path: /readyz, port: 8000}}
            timeoutSeconds: 6
          livenessProbe:
            httpGet: {{path: /livez/, port: http}}
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
LIMITED = f"ok: unit 'a.conf': {ROOM}, less than the"
SHELL = "a shell gets the signal and may not forward it"
SHELL_CURE = "write 'exec' before the command, or start it without sh -c."


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for each test, so that files have short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def doctor(*arguments: str, given: str | bytes = "", **config: Any) -> Result:
    """Run the command as ``flask`` does, for an application with these settings; ``None`` leaves one out."""
    app = make_app(**{"LIFECYCLE_SHUTDOWN_DELAY": 2, **config})
    for key in [key for key, value in config.items() if value is None]:
        del app.config[key]
    Lifecycle(app).group("own", path="/own")
    return app.test_cli_runner().invoke(args=["lifecycle", "doctor", *arguments], input=given)


def said(text: str | bytes, file: str = "deploy.yaml", name: str | None = None, **config: Any) -> list[str]:
    """The findings of a file with this text."""
    Path(file).write_bytes(text.encode() if isinstance(text, str) else text)
    return doctor(file, *(() if name is None else ("--name", name)), **config).stdout.splitlines()


def changed(text: str, old: str, new: str) -> str:
    """A text with one change."""
    assert text.count(old) == 1
    return text.replace(old, new)


def compare(text: str, file: str, subject: str, row: tuple[str, ...]) -> None:
    """Check that a text with one change has exactly the findings of a row, but for what is right."""
    old, new, *expected = row
    found = [line.removeprefix(f"{file}:") for line in said(changed(text, old, new), file)]
    where = [finding.split(": ", 2) for finding in expected]
    wanted = [f"{line}: {severity}: {subject}: {sentence}" for line, severity, sentence in where]
    assert sorted(line for line in found if ": ok:" not in line) == sorted(wanted)


@pytest.mark.parametrize(
    ("text", "file", "expected"),
    [
        (DEPLOYMENT, "deploy.yaml", PROVED.removeprefix("deploy.yaml:")),
        (COMPOSE, "compose.yaml", f"10: ok: service 'web': {ROOM}, less than the 12 s of stop_grace_period"),
        (UNIT, "a.service", f"7: ok: unit 'a.service': {ROOM}, and the process asks systemd for the time it needs"),
    ],
)
def test_what_fits_is_proved(text: str, file: str, expected: str) -> None:
    """Without a finding the sum is shown; another service in the file is not checked."""
    assert said(text, file) == [f"{file}:{expected}"]


def test_the_examples_of_the_documentation_are_right() -> None:
    """The example in docs/kubernetes.md and the units in docs/systemd.md are accepted."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    (block,) = re.findall(r"^```yaml\n(terminationGrace.*?)^```$", page, re.S | re.M)
    pod = "apiVersion: v1\nkind: Pod\nspec:\n" + "".join(f"  {line}\n" for line in block.splitlines())
    found = [said(pod, LIFECYCLE_GRACE_PERIOD=25, LIFECYCLE_SHUTDOWN_DELAY=5)]
    units = re.findall(r"^```ini\n(.*?)^```$", (ROOT / "docs/systemd.md").read_text(), re.S | re.M)
    for unit, grace in zip(units, (60, 25), strict=True):
        found.append(said(unit, "shop.service", LIFECYCLE_GRACE_PERIOD=grace))
    assert [[line.split(": ")[1] for line in lines] for lines in found] == [["ok"]] * 3


def test_every_rule_is_in_the_documentation() -> None:
    """The table of docs/deploy.md has the names that JSON shows."""
    code = "".join(path.read_text() for path in (ROOT / "flask_lifecycle/_doctor").glob("*.py"))
    rules = set(re.findall(r"(?:(?:error|warning|report)\(|ERROR,|WARNING,)\s*\"([a-z-]+)\"", code))
    table = (ROOT / "docs/deploy.md").read_text().partition("| rule |")[2].partition("\n\n")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall("`(.*?)`", row)}
    assert rules | {"settings", "form"} == named


PRESTOP = "          startupProbe:\n"


def _with_stop(hook: str) -> tuple[str, str]:
    return PRESTOP, f"          lifecycle: {{preStop: {hook}}}\n{PRESTOP}"


# fmt: off
KUBERNETES = [
    ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 11",
     f"8: error: terminationGracePeriodSeconds is 11 s, but a shutdown may take {ROOM}; set it to 12 or more, or"
     " LIFECYCLE_GRACE_PERIOD to less than 10."),
    ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 0",
     f"8: error: terminationGracePeriodSeconds is 0 s, but a shutdown may take {ROOM}; set it to 12 or more."),
    ("terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: soon",
     "8: error: terminationGracePeriodSeconds is 'soon'; give it a whole number of seconds or times."),
    (*_with_stop("{exec: {command: [/bin/sh, -c, sleep 0.5m]}}"),
     "8: error: terminationGracePeriodSeconds is 30 s, but a shutdown may take 10 s of LIFECYCLE_GRACE_PERIOD + 30 s of"
     " preStop + 1 s to spare = 41 s; set it to 42 or more.",
     "15: warning: a sleep of 30 s is used together with a LIFECYCLE_SHUTDOWN_DELAY of 2 s, which has the same"
     " purpose; remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0."),
    (*_with_stop("{sleep: {seconds: 5}}"),
     "15: warning: a sleep of 5 s is used together with a LIFECYCLE_SHUTDOWN_DELAY of 2 s, which has the same"
     " purpose; remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0."),
    (*_with_stop("{exec: {command: [flask, lifecycle, drain, --wait]}}"),),
    (*_with_stop("{exec: {command: [/bin/bye]}}"),
     "15: warning: the duration of the preStop hook is unknown, and it counts towards terminationGracePeriodSeconds;"
     " leave more room there, or use LIFECYCLE_SHUTDOWN_DELAY instead."),
    (*_with_stop("{exec: {command: sleep 5}}"),
     "15: error: command is not a list of texts; write it as ['program', 'argument'].",
     "15: warning: the duration of the preStop hook is unknown, and it counts towards terminationGracePeriodSeconds;"
     " leave more room there, or use LIFECYCLE_SHUTDOWN_DELAY instead."),
    (*_with_stop("{httpGet: {path: /lifecycle/drain, port: 9000}}"),
     "15: error: preStop sends GET '/lifecycle/drain' without a token, which is refused: operators' requests need"
     " POST and a token; remove the hook, because SIGTERM does the same, or run 'flask lifecycle drain' by exec."),
    (*_with_stop("{httpGet: {path: /bye, port: 8000}}"),
     "15: warning: preStop asks for '/bye', which takes an unknown time of terminationGracePeriodSeconds; use an"
     " on_drain function instead."),
    ("failureThreshold: 3", "terminationGracePeriodSeconds: 5",
     "24: error: livenessProbe has its own terminationGracePeriodSeconds of 5 s, but a shutdown may take 11 s; set it"
     " to 12 or more, or remove it."),
    ("/livez/", "/health",
     "23: error: livenessProbe asks for '/health', which is not a probe of this application; set its path to"
     " '/livez'."),
    ("path: /livez/, ", "",
     "23: error: livenessProbe asks for '/', which is not a probe of this application; set its path to '/livez'."),
    ("/livez/", "'/readyz?verbose'",
     "23: error: livenessProbe asks for '/readyz?verbose', which is readiness, so the container is restarted when it"
     " should only get no traffic; set its path to '/livez'."),
    ("/livez/", "/healthcheck",
     "23: error: livenessProbe asks for '/healthcheck', which is all checks, so the container is restarted when it"
     " should only get no traffic; set its path to '/livez'."),
    ("/livez/", "/startupz",
     "23: error: livenessProbe asks for '/startupz', which fails until the start-up is over, so a slow start-up is"
     " restarted; set its path to '/livez'."),
    ("/readyz", "/livez",
     "20: error: readinessProbe asks for '/livez', which still passes while the process stops; set its path to"
     " '/readyz'."),
    ("/readyz", "/own"),
    ("/startupz", "/livez",
     "16: warning: startupProbe asks for '/livez', which passes before the start-up is over; set its path to"
     " '/startupz'."),
    ("{path: /startupz, port: http}", "{path: /readyz, port: http}\n            timeoutSeconds: 6",
     "16: warning: startupProbe asks for '/readyz', so a dependency that is down restarts a container that has"
     " started; set its path to '/startupz'."),
    ("{path: /livez/, port: http}", "{path: /livez/, port: web}",
     "23: error: livenessProbe names the port 'web', which the container does not have (it has 'http'); name one"
     " under 'ports', or give the number."),
    ("port: 8000}", "port: 8080}",
     "20: error: readinessProbe asks port 8080, where nothing listens: the application is on port 8000; set its port"
     " to 8000."),
    ("timeoutSeconds: 6", "timeoutSeconds: 5",
     "21: warning: timeoutSeconds of readinessProbe is 5 s, but the answer may take the 5 s of"
     " LIFECYCLE_PROBE_TIMEOUT; set it to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."),
    ("            timeoutSeconds: 6\n", "",
     "20: warning: timeoutSeconds of readinessProbe is 1 s by default, but the answer may take the 5 s of"
     " LIFECYCLE_PROBE_TIMEOUT; set it to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."),
    ("httpGet: {path: /livez/, port: http}", "tcpSocket: {port: http}",
     "22: warning: livenessProbe only connects, which succeeds even if the application hangs; use httpGet with the"
     " path '/livez'."),
    ("httpGet: {path: /livez/, port: http}", "exec: {command: [look]}"),
    ("failureThreshold: 60", "failureThreshold: 20",
     "18: warning: startupProbe gives the start-up 20 s (0 + 20 x 1), then the container is restarted; set its"
     " failureThreshold to 30 or more."),
    ("failureThreshold: 3", "initialDelaySeconds: 9",
     "24: warning: livenessProbe waits 9 s more after the startupProbe, which delays it already; remove its"
     " initialDelaySeconds."),
    ("failureThreshold: 3", "failureThreshold: 1",
     "24: warning: livenessProbe restarts the container after a single late answer; set its failureThreshold to 3."),
    ("readinessProbe", "otherProbe",
     "10: warning: there is no readinessProbe, so the container gets traffic before the start-up is over and while"
     " checks fail; add one with the path '/readyz'."),
    ('"-h", "0.0.0.0", ', "",
     "11: error: the application listens on 127.0.0.1, which is not reachable from outside the container; add '-h"
     " 0.0.0.0' to the command."),
    ('["flask", "--app"', '["sh", "-ec", "cd /srv; flask lifecycle run -h 0.0.0.0 -p 8000", "--app"',
     f"11: error: {SHELL}; {SHELL_CURE}"),
    (*_with_stop("{exec: {command: [lifecycle/drain]}}, stopSignal: SIGQUIT"),
     "15: error: SIGQUIT is sent to stop it, but the application handles SIGTERM; set stopSignal to SIGTERM."),
    (f"{PRESTOP}", f"          env: [{{name: FLASK_LIFECYCLE_GRACE_PERIOD, value: '8'}}]\n{PRESTOP}",
     "15: warning: FLASK_LIFECYCLE_GRACE_PERIOD is '8' here, but the application was loaded with 10.0, which all"
     " rules use; run the doctor with FLASK_LIFECYCLE_GRACE_PERIOD in its environment."),
]
# fmt: on


def test_a_hook_counts_if_its_time_is_known() -> None:
    """A sleep is added, a drain is not, because it begins the grace period; an unknown hook proves nothing."""
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
def test_commands_without_a_finding(command: str) -> None:
    """An exec, a trap, a script and a variable are no findings; a pipe or the background keeps the shell."""
    assert said(changed(DEPLOYMENT, RUN, command)) == [PROVED]
    for script in ("", "exec flask run | tee log", "exec flask run &", "flask run 'it"):
        text = changed(DEPLOYMENT, RUN, f'[/bin/sh, -c, "{script}"]')
        assert f"deploy.yaml:11: error: {POD}: {SHELL}; {SHELL_CURE}" in said(text)


def test_a_loopback_address_behind_a_neighbour_is_a_warning() -> None:
    """If no probe asks the main port, a proxy in the same pod may use it."""
    text = changed(changed(DEPLOYMENT, '"-h", "0.0.0.0", ', ""), "port: 8000}", "port: 9000}")
    text = text.replace("port: http}", "port: 9000}")
    assert said(text, LIFECYCLE_PROBE_PORT=9000)[1:] == [
        f"deploy.yaml:11: warning: {POD}: the application listens on 127.0.0.1, which is not reachable from outside"
        " the container; add '-h 0.0.0.0' to the command."
    ]


def test_ports_of_probes() -> None:
    """A probe asks an open port, liveness the probe listener, by HTTP and at a reachable address."""
    assert said(DEPLOYMENT, LIFECYCLE_PROBE_PORT=9000)[1:] == [
        f"deploy.yaml:23: warning: {POD}: livenessProbe asks port 8000, which is closed during a shutdown and busy"
        " under load; set its port to LIFECYCLE_PROBE_PORT, 9000."
    ]
    text = changed(DEPLOYMENT, "port: 8000}", "port: 9000}")
    assert said(text, LIFECYCLE_PROBE_PORT=0)[1:] == [
        f"deploy.yaml:20: error: {POD}: readinessProbe asks port 9000, but LIFECYCLE_PROBE_PORT is 0, which is a"
        " different port at each start; set it to 9000."
    ]
    text = changed(DEPLOYMENT, "port: 8000}", "port: [1]}")
    assert f"deploy.yaml:20: error: {POD}: readinessProbe names the port ''" in said(text)[1]
    assert "readinessProbe asks port 80, where" in said(changed(DEPLOYMENT, ", port: 8000}", "}"))[1]
    text = changed(DEPLOYMENT, "{path: /livez/, port: http}", "{path: /livez, port: 9000, scheme: HTTPS}")
    text = changed(text, "port: 8000}", "port: 9001}")
    assert said(text, LIFECYCLE_PROBE_PORT=9000, LIFECYCLE_PROBE_HOST="127.0.0.1")[1:] == [
        f"deploy.yaml:20: error: {POD}: readinessProbe asks port 9001, where nothing listens: the application is on"
        " port 8000 and the probe listener on 9000; set its port to 9000.",
        f"deploy.yaml:23: error: {POD}: livenessProbe uses HTTPS for the probe listener, which speaks HTTP; set its"
        " scheme to HTTP.",
        f"deploy.yaml:23: error: {POD}: LIFECYCLE_PROBE_HOST is 127.0.0.1, which livenessProbe does not reach; set it"
        " to '0.0.0.0'.",
    ]


def test_ports_from_the_environment_are_not_guessed() -> None:
    """If variables may set the address, there is no finding about ports and addresses."""
    text = changed(DEPLOYMENT, PRESTOP, f"          envFrom: [{{secretRef: {{name: s}}}}]\n{PRESTOP}")
    text = changed(changed(text, "port: 8000}", "port: 1}"), '"-h", "0.0.0.0", ', "")
    assert len(said(text)) == 1
    named = changed(text, "envFrom: [{secretRef: {name: s}}]", "env: [{name: FLASK_LIFECYCLE_RUN_PORT, value: '1'}]")
    assert len(said(named)) == 1


def test_the_delay_of_a_cluster() -> None:
    """A delay of 0 is a warning, because proxies need time; a grace period without room for the default is an error."""
    assert said(DEPLOYMENT, LIFECYCLE_SHUTDOWN_DELAY=0) == [
        PROVED,
        f"deploy.yaml:10: warning: {POD}: LIFECYCLE_SHUTDOWN_DELAY is 0 and there is no preStop, so the listener closes"
        " while proxies still send to the pod; set it to 5, or to 'auto'.",
    ]
    assert said(DEPLOYMENT, LIFECYCLE_GRACE_PERIOD=4, LIFECYCLE_SHUTDOWN_DELAY=None) == [
        f"deploy.yaml:10: error: {POD}: in the cluster the application does not start: 'LIFECYCLE_SHUTDOWN_DELAY' (5 s)"
        " and 'LIFECYCLE_HOOK_RESERVE' (0.8 s) leave nothing of 'LIFECYCLE_GRACE_PERIOD' (4 s) to drain in; raise the"
        " grace period or lower one of the two."
    ]


def test_every_kind_with_a_template_is_read() -> None:
    """Every kind with a pod template is a workload; jobs are only checked for their time, also in a list."""
    for kind in ("StatefulSet", "DaemonSet", "ReplicaSet", "Rollout"):
        assert said(changed(DEPLOYMENT, "Deployment", kind)) == [PROVED.replace("Deployment", kind)]
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


def test_several_containers() -> None:
    """The application is found by its command, its probes or --name; otherwise there is a warning."""
    side = "      containers:\n        - name: side\n          image: proxy\n"
    text = changed(DEPLOYMENT, "      containers:\n", side)
    assert said(text) == [PROVED]
    bare = re.sub(r"          command: .*\n", "", text)
    assert said(bare) == [PROVED]
    silent = bare.replace("Probe:", "Nothing:")
    assert said(silent) == [
        "deploy.yaml:7: warning: Deployment/shop: it is not clear which container is the application ('side',"
        " 'web'), so none was checked; name it with --name."
    ]
    assert said(silent, name="side") == [PROVED.replace("'web'", "'side'")]
    assert said(silent, name="other") == [
        "deploy.yaml: unreadable: The file has no container or service 'other'; give --name one that it has."
    ]


BY_DEFAULT = (
    f"error: stop_grace_period is 10 s by default, but a shutdown may take {ROOM}; set it to 12 or more, or"
    " LIFECYCLE_GRACE_PERIOD to less than 9."
)
# fmt: off
SERVICES = [
    ("    stop_grace_period: 12s\n", "",
     f"6: {BY_DEFAULT}"),
    ("12s", "1m30.5s"),
    ("12s", "soon",
     "10: error: stop_grace_period is 'soon'; give it a duration such as '30s' or '1m30s'.",
     f"10: {BY_DEFAULT}"),
    ("12s", "${GRACE}",
     "10: warning: stop_grace_period is '${GRACE}', which is replaced later, so 10 s, the default, was checked; give"
     " the doctor what 'docker compose config' prints.",
     f"10: {BY_DEFAULT}"),
    ("stop_signal: SIGINT", "stop_signal: 3",
     "11: error: SIGQUIT is sent to stop it, but the application handles SIGTERM; set stop_signal to SIGTERM."),
    ("stop_signal: SIGINT", "stop_signal: STOPPED",
     "11: error: STOPPED is sent to stop it, but the application handles SIGTERM; set stop_signal to SIGTERM."),
    ("--host=0.0.0.0 ", "",
     "8: error: the application listens on 127.0.0.1, which is not reachable from outside the container; add '-h"
     " 0.0.0.0' to the command."),
    ("--host=0.0.0.0 -p8000\n", "-p8000\n    network_mode: host\n"),
    ("command: flask", "command: sh -c 'flask run -h 0.0.0.0 -p 8000; true' #",
     f"8: error: {SHELL}; {SHELL_CURE}",
     "11: error: SIGINT is sent to stop it, but the application handles SIGTERM; set stop_signal to SIGTERM."),
    ("localhost:8000/healthcheck", "localhost/health",
     "13: error: healthcheck asks for '/health', which is not a probe of this application; set its path to"
     " '/healthcheck'.",
     "13: error: healthcheck asks port 80, where nothing listens: the application is on port 8000; set its port to"
     " 8000."),
    ("timeout: 6s", "timeout: 2s",
     "14: warning: timeout of healthcheck is 2 s, but the answer may take the 5 s of LIFECYCLE_PROBE_TIMEOUT; set it"
     " to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."),
    ("localhost:8000", "localhost:$PORT"),
    ("    healthcheck:\n      test:", "    labels:\n      test:"),
    ("    stop_signal: SIGINT\n", "    environment: {FLASK_LIFECYCLE_EXIT: signal, OTHER: null}\n",
     "11: warning: FLASK_LIFECYCLE_EXIT is 'signal' here, but the application was loaded with 'code', which all rules"
     " use; run the doctor with FLASK_LIFECYCLE_EXIT in its environment."),
    ("    stop_signal: SIGINT\n",
     "    environment: ['FLASK_LIFECYCLE_PATHS={}', FLASK_LIFECYCLE_READY=auto, HOME]\n"),
]
# fmt: on


def test_a_command_without_options_listens_where_it_does_by_default() -> None:
    """By default the application listens on the loopback address."""
    text = changed(COMPOSE, " --host=0.0.0.0 -p8000", "")
    assert [line.partition(": service 'web': ")[2] for line in said(text, "compose.yaml") if ": error:" in line] == [
        "the application listens on 127.0.0.1, which is not reachable from outside the container; add '-h 0.0.0.0'"
        " to the command.",
        "healthcheck asks port 8000, where nothing listens: the application is on port 5000; set its port to 5000.",
    ]


def test_a_signal_is_right_if_the_settings_take_it() -> None:
    """With LIFECYCLE_SIGNALS only those signals count; without any no signal stops the process."""
    assert len(said(COMPOSE, "compose.yaml", LIFECYCLE_SIGNALS=["SIGINT"])) == 1
    assert said(COMPOSE, "compose.yaml", LIFECYCLE_SIGNALS=[])[1:] == [
        "compose.yaml:11: error: service 'web': SIGINT is sent to stop it, but the application handles none; add"
        " 'SIGINT' to LIFECYCLE_SIGNALS."
    ]


def test_several_services() -> None:
    """The application is found by its command, its healthcheck or --name; otherwise there is a warning."""
    by_check = re.sub("    command: .*\n", "", COMPOSE)
    assert len(said(by_check, "compose.yaml")) == 2  # the signal, as it is not seen to be under run
    silent = re.sub("    healthcheck:\n.*\n.*\n", "", by_check)
    assert said(silent, "compose.yaml") == [
        "compose.yaml:1: warning: it is not clear which service is the application ('db', 'web'), so none was"
        " checked; name it with --name."
    ]
    assert said(silent, "compose.yaml", name="web")[0].startswith("compose.yaml:9: ok: service 'web'")
    assert "not clear which service" in said(by_check.replace("//localhost:8000", "//[::1"), "compose.yaml")[0]


TOO_SHORT = (
    f"error: TimeoutStopSec is 10 s, but a shutdown may take {ROOM}; set it to 12 or more, or LIFECYCLE_GRACE_PERIOD to"
    " less than 9."
)
# fmt: off
UNITS = [
    ("Type=notify", "Type=notify\nNotifyAccess=all"),
    ("Type=notify", "Type=exec",
     f"10: {TOO_SHORT}",
     "6: warning: Type is 'exec', so systemd does not wait until the application is ready; set it to 'notify'."),
    ("Type=notify\n", "TimeoutStopSec=1min 30s\nTimeoutStopSec=\n",
     f"11: {TOO_SHORT}",
     "8: warning: Type is 'simple' by default, so systemd does not wait until the application is ready; set it to"
     " 'notify'."),
    ("Type=notify", "Type=forking",
     f"10: {TOO_SHORT}",
     "6: error: Type is 'forking', but the process neither forks nor ends; set it to 'notify'."),
    ("lifecycle run", "run",
     f"10: {TOO_SHORT}",
     "6: error: Type is 'notify', but under flask run the application is not ready before the first request; set it"
     " to 'exec', or start 'flask lifecycle run'."),
    ("KillMode=mixed", "KillMode=none",
     "11: error: KillMode is 'none', so no signal is sent; set it to 'mixed'."),
    ("KillMode=mixed", "KillMode=process",
     "11: warning: KillMode is 'process', so children are left running; set it to 'mixed'."),
    ("KillMode=mixed", "KillSignal=SIGHUP\nEnvironment=A=1 FLASK_LIFECYCLE_READY=manual",
     "11: error: SIGHUP is sent to stop it, but the application handles SIGTERM; set KillSignal to SIGTERM.",
     "12: warning: FLASK_LIFECYCLE_READY is 'manual' here, but the application was loaded with 'auto', which all"
     " rules use; run the doctor with FLASK_LIFECYCLE_READY in its environment."),
    ("TimeoutStopSec=10", "TimeoutStopSec=soon",
     "10: error: TimeoutStopSec is 'soon'; give it a time such as '30' or '1min 30s'."),
    ("TimeoutStopSec=10", "TimeoutStopSec=10 parsecs",
     "10: error: TimeoutStopSec is '10 parsecs'; give it a time such as '30' or '1min 30s'."),
    ("TimeoutStopSec=10", "ExecStop=/bin/sleep 3",
     "10: warning: a sleep of 3 s is used together with a LIFECYCLE_SHUTDOWN_DELAY of 2 s, which has the same"
     " purpose; remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0."),
    ("TimeoutStopSec=10", "ExecStop=-/bin/kill $MAINPID"),
]
# fmt: on


@pytest.mark.parametrize(
    ("given", "row"),
    [
        *(((DEPLOYMENT, "deploy.yaml", POD), row) for row in KUBERNETES),
        *(((COMPOSE, "compose.yaml", "service 'web'"), row) for row in SERVICES),
        *(((UNIT, "a.service", "unit 'a.service'"), row) for row in UNITS),
    ],
    ids=range(len(KUBERNETES) + len(SERVICES) + len(UNITS)),
)
def test_wrong_files(given: tuple[str, str, str], row: tuple[str, ...]) -> None:
    """Each rule finds its case, and only that, and names the line, the number and the cure."""
    compare(*given, row)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("Type=exec\nExecStart=@/srv/serve shop\nTimeoutSec=infinity", UNLIMITED),
        ("TimeoutStopSec=0\nExecStart=serve", UNLIMITED),
        ("TimeoutStopSec=1min 500ms\nExecStart=serve", f"{LIMITED} 60.5 s of TimeoutStopSec"),
        ("TimeoutStopSec=1\nTimeoutStopSec=\nExecStart=serve", f"{LIMITED} 90 s of TimeoutStopSec"),
        ("Restart=always", UNLIMITED),
        (
            "ExecStart=waitress-serve shop:app",
            "warning: unit 'a.conf': Type is 'simple' by default, so a command that cannot be started counts as"
            " started; set it to 'exec'.",
        ),
        (
            "ExecStart=sh -c 'true && serve'",
            "warning: unit 'a.conf': a shell is the main process, so its exit code and notifications are not those"
            f" of the application; {SHELL_CURE}",
        ),
        ("KillMode=process\nExecStart=sh -c 'true && serve'", f"error: unit 'a.conf': {SHELL}; {SHELL_CURE}"),
    ],
)
def test_drop_ins(lines: str, expected: str) -> None:
    """A unit is also recognised by its first line; a drop-in is checked by what it has."""
    assert expected in [line.partition(": ")[2] for line in said(f"; comment\n\n[Service]\n{lines}\n", "a.conf")]


TEMPLATE = "This is a template; render it ('helm template', Jinja) and give the result."
NOTHING = "The file contains no Kubernetes workload, no compose service and no systemd unit."


UNREADABLE: dict[str, list[tuple[bytes | None, str]]] = {
    "deploy.yaml": [
        (b"", ": The file is empty."),
        (b" \n\n", ": The file is empty."),
        (b"# nothing\n", f": {NOTHING}"),
        (b"a: 1\n", f": {NOTHING}"),
        (b"- 1\n- [2]\n--- 3\n", f": {NOTHING}"),
        (b"apiVersion: v1\nkind: Service\n", f": {NOTHING}"),
        (b"apiVersion: v1\nkind: Pod\nspec: {containers: []}\n", f": {NOTHING}"),
        (b"a: 1\nb\0c: 2\n", ":2: This is not UTF-8 text."),
        (b"a: 1\nb: \xff\n", ":2: This is not UTF-8 text."),
        (b"a" * 1_000_001, ": The file is larger than 1000 kB; give only what deploys this application."),
        (b"a: 1\nb: \x07\n", ": This is not YAML: control characters are not allowed."),
        (b"a: *b\n", ":1: This is not YAML: found undefined alias."),
        (b"a: 1\nb: 2\na: 3\n", ":3: The key 'a' appears twice, first on line 1; remove one of them."),
        (b"a: &a\n  b: *a\n", ":1: An alias is inside its own value; remove it."),
        (b"a: 1\n? [b]\n: 2\n", ":2: The key that begins here is not a text."),
        (b"a: 1\n<<: 2\n", ":2: '<<' must be an alias of a mapping, or a list of them."),
        (b"a: !!int x\n", ":1: 'x' is not a valid value of its type."),
        (b"a: 1\nb: {{ .Values.b }}\n", f":2: {TEMPLATE}"),
        (b"# {{ here }}\n{{- if .Values.a }}\na: 1\n{{- end }}\n", f":2: {TEMPLATE}"),
        (b"{% if a %}\na: 1\n", f":1: {TEMPLATE}"),
        (b"[Service]\nExecStart={{ command }}\n", f":2: {TEMPLATE}"),
        (b"[Service]\n\nnothing\n", ":3: This is not a line of a unit, such as '[Section]' or 'Key=value'."),
        (b"[Unit]\nDescription=a\n", ": The unit has no section '[Service]', so there is nothing to check."),
        (b"[" * 900 + b"]" * 900, ": This is nested too deeply."),
    ],
    "Dockerfile": [
        (b"# nothing\n", ": The Dockerfile has no FROM, so there is no image to check."),
        (b"ARG A\n", ": The Dockerfile has no FROM, so there is no image to check."),
        (b"CMD a\nFROM b\n", ":1: 'CMD' is before the first FROM, where only ARG is allowed."),
        (b"FROM a\nRUN <<E\nx\n", ":2: The here-document that begins here has no end 'E'."),
        (b"FROM a\nCMD {{ command }}\n", f":2: {TEMPLATE}"),
    ],
    "gunicorn.conf.py": [
        (b"a = 1\nb = (\n", ":2: This is not Python: '(' was never closed."),
        (b"a = " + b"-" * 60_000 + b"1\n", ": This is nested too deeply to be a configuration."),
    ],
    "nowhere.yaml": [(None, ": The file cannot be read (No such file or directory).")],
    ".": [(None, ": The file cannot be read (Is a directory).")],
    "a\0b": [(None, ": The file cannot be read (embedded null byte).")],
}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [(file, *row) for file, rows in UNREADABLE.items() for row in rows],
    ids=range(sum(map(len, UNREADABLE.values()))),
)
def test_unreadable_files(file: str, text: bytes | None, expected: str) -> None:
    """An unreadable file is an error of one sentence with its line."""
    where, _, sentence = expected.partition(": ")
    if text is not None:
        Path(file).write_bytes(text)
    shown = file.replace("\0", "\\x00")
    assert doctor(file).stdout.splitlines() == [f"{shown}{where}: unreadable: {sentence}"]


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two parsers of PyYAML; the one in Python is used without libyaml."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML is installed without libyaml")
    return str(request.param)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("a: 1\nb: [\n", "deploy.yaml:3: unreadable: This is not YAML: "),
        ("a: 1\n\tb: 2\n", "deploy.yaml:2: unreadable: This is not YAML: found "),
    ],
)
def test_files_that_are_not_yaml(text: str, beginning: str) -> None:
    """An error of PyYAML has its own text."""
    (line,) = said(text)
    assert line.startswith(beginning)


def test_both_parsers_say_the_same(parser: str) -> None:
    """Lines, merged keys and types do not depend on the parser; of merged mappings the first counts."""
    text = changed(COMPOSE, "<<: *usual", "<<: [*usual, {stop_grace_period: 1s, network_mode: host}]")
    assert said(text, "compose.yaml")[0].startswith("compose.yaml:10: ok")
    assert said(f"{DEPLOYMENT}---\n{DEPLOYMENT}") == [
        PROVED,
        PROVED.replace(":8:", f":{DEPLOYMENT.count(chr(10)) + 9}:"),
    ]


BROKEN = changed(DEPLOYMENT, "kind: Deployment", "kind: [Deployment")
TWICE = changed(DEPLOYMENT, "  name: shop", "  name: shop\n  name: shop")
FILLED_IN = changed(DEPLOYMENT, "name: web", "name: '{{ web }}'")
UNFILLED = changed(DEPLOYMENT, "timeoutSeconds: 6", "timeoutSeconds: {{ six }}")
LENGTH = DEPLOYMENT.count("\n") + 1


def test_an_unreadable_document_hides_no_other(parser: str) -> None:
    """Each document of a file is checked up to one that is not YAML; each unreadable one is an error with its line."""
    documents = (DEPLOYMENT, TWICE, FILLED_IN, DEPLOYMENT, UNFILLED, BROKEN, DEPLOYMENT)
    found = [re.match(r"deploy.yaml:(\d+): (\w+)", line) for line in said("---\n".join(documents))]
    assert [(int(each[1]), each[2]) for each in found if each] == [
        (8, "ok"),
        (LENGTH + 5, "unreadable"),
        (2 * LENGTH + 11, "unreadable"),
        (3 * LENGTH + 9, "ok"),
        (4 * LENGTH + 22, "unreadable"),
        (5 * LENGTH + 4, "unreadable"),
    ]


def test_what_cannot_be_read_hides_no_other() -> None:
    """A template is one error; the other containers and services are checked, and by the other rules its own."""
    other = '        - {name: other, command: ["flask", "{{ run }}"]}\n'
    value = changed(DEPLOYMENT, "path: /readyz", "path: '{{ path }}'").replace("Seconds: 30", "Seconds: 3")
    service = "  job:\n    command: flask jobs\n    stop_grace_period: '{{ time }}'\n"
    for text, file, first in (
        (f"{DEPLOYMENT}{other}", "deploy.yaml", "ok"),
        (f"{COMPOSE}{service}", "compose.yaml", "ok"),
        (value, "deploy.yaml", "error"),
    ):
        assert [line.split(": ")[1] for line in said(text, file)] == [first, "unreadable"]


def test_names_and_annotations() -> None:
    """A template that is valid YAML is an error only where it is read; a control sequence in a name is escaped."""
    annotated = changed(DEPLOYMENT, "  name: shop", "  name: shop\n  annotations: {a: '{{ b }}'}")
    assert said(annotated)[0].startswith("deploy.yaml:9: ok")
    quoted = changed(DEPLOYMENT, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: '{{ a }}'")
    assert said(quoted) == [f"deploy.yaml:8: unreadable: {TEMPLATE}"]
    (line,) = said(changed(DEPLOYMENT, "  name: shop", '  name: "\\e[31mshop"'))
    assert "Deployment/\\x1b[31mshop" in line


LIMIT = 1_000_000  # bytes of a file
_KEYS = "".join(f"  k{n}: 1\n" for n in range(40_000))
_POD = "{kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}"
BOMBS = {
    "laughs.yaml": "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)),
    "pods.yaml": f"kind: List\nitems: [&p {_POD}, {', '.join(['*p'] * 240_000)}]\n",
    "merge.yaml": (f"a: &a\n{_KEYS}" + "".join(f"b{n}:\n  <<: *a\n" for n in range(30_000)))[:LIMIT],
    "chain.yaml": "a: &a0 {k: 1}\n" + "".join(f"a{n}: &a{n + 1}\n  <<: *a{n}\n  k{n}: 1\n" for n in range(25_000)),
    "list.yaml": "a: &a {x: 1, y: 2}\nb:\n  <<: [" + "*a, " * 240_000 + "*a]\n",
    "flow.yaml": "a: [" + "1," * 490_000 + "1]\n",
    "number.yaml": "a: " + ":".join(["59"] * 300_000) + "\n",
    "word.yaml": f"services:\n  web:\n    command: sh -c 'sleep {'x' * 900_000}'\n",
    "time.yaml": f"services:\n  web:\n    command: run\n    stop_grace_period: '{'1' * 900_000}'\n",
    "flag.service": f"[Service]\nExecStart=sh -{'c' * 900_000}! a\n",
    "time.service": f"[Service]\nTimeoutStopSec=!{' ' * 900_000}x\n",
    "lines.service": "[Service]\nExecStart=" + "x \\\n" * 240_000 + "x\n",
    "stages.Dockerfile": "".join(f"FROM s{n} AS s{n + 1}\nENV A{n}=1\n" for n in range(28_000)),
    "lines.Dockerfile": "FROM x\nRUN " + "a \\\n" * 240_000 + "b\n",
    "flags.Dockerfile": "FROM x\nHEALTHCHECK " + "--timeout=1s " * 70_000 + "CMD curl http://x/\n",
    "froms.Dockerfile": "FROM\n" * 100_000,
    "deep.Dockerfile": "FROM a\nCMD " + "[" * 400_000,
    "env.Dockerfile": "FROM a\n" + "ENV a=1\n" * 60_000,
    "string.py": "x = f'" + "{a}" * 300_000 + "'\n",
    "number.py": "graceful_timeout = 0x" + "f" * 60_000 + "\n",
}
EXAMINE = """
import resource, sys
from flask import Flask
from flask_lifecycle import Lifecycle
from flask_lifecycle._doctor.examine import Application, examine

app = Flask("shop")
Lifecycle(app)
state = app.extensions["lifecycle"]
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
for file in sys.argv[1:]:
    found = [str(each) for each in examine(file, Application(state.settings, app.config, state.probes.worker))]
    assert found and all(len(each) < 2000 and "cannot be read" not in each for each in found), found
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) // 1024)
"""


def test_bombs_cost_bounded_memory() -> None:
    """A file of a megabyte is read or rejected with less than 200 MB and in bounded time."""
    for name, text in BOMBS.items():
        Path(name).write_text(text[:LIMIT])
    # Measured without coverage, which takes memory of its own, and from /proc, because ``ru_maxrss`` of a child begins
    # with the peak of the process that started it.
    alone = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
    done = run_python(EXAMINE, *(str(Path(name).resolve()) for name in BOMBS), environ=alone)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200


def test_without_libyaml_large_files_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own parser would take longer than a few seconds."""
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert "PyYAML is too slow for more than 250 kB." in said("a: " + "x" * (LIMIT // 4))[0]


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyYAML the error names the extra, and units can be read."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert said(DEPLOYMENT) == [
        "deploy.yaml: unreadable: PyYAML is needed to read YAML; install flask_lifecycle[doctor]."
    ]
    assert len(said(UNIT, "a.service")) == 1


@pytest.mark.parametrize(
    ("files", "code"), [(["good"], 0), (["warned"], 0), (["good", "bad"], 1), (["bad", "good", "no"], 2)]
)
def test_the_exit_code_is_that_of_the_worst(files: list[str], code: int) -> None:
    """0 without an error, 1 with one, 2 if a file cannot be read; all files are reported."""
    Path("good").write_text(COMPOSE)
    Path("warned").write_text(DEPLOYMENT)
    Path("bad").write_text(changed(COMPOSE, "12s", "11s"))
    result = doctor(*files, LIFECYCLE_SHUTDOWN_DELAY=0)
    assert result.exit_code == code
    assert list(dict.fromkeys(line.partition(":")[0] for line in result.stdout.splitlines())) == files


def test_json_is_one_document() -> None:
    """Each finding has its numbers in their own fields."""
    Path("bad").write_text(changed(COMPOSE, "12s", "11s"))
    document = json.loads(doctor("--json", "bad").stdout)
    assert document["counts"] == {"error": 1, "warning": 0, "ok": 0, "unreadable": 0}
    [finding] = document["findings"]
    text = f"stop_grace_period is 11 s, but a shutdown may take {ROOM}"
    cure = "set it to 12 or more, or LIFECYCLE_GRACE_PERIOD to less than 10"
    assert (finding.pop("text"), finding.pop("cure")) == (text, cure)
    assert (finding.pop("file"), finding.pop("line"), finding.pop("subject")) == ("bad", 10, "service 'web'")
    assert finding == {"severity": "error", "rule": "grace-period", "found": "11", "wanted": "12"}


def test_the_standard_input_is_a_file() -> None:
    """The output of another program can be checked without a file."""
    proved = f"<stdin>:10: ok: service 'web': {ROOM}, less than the 12 s of stop_grace_period\n"
    assert doctor("-", given=COMPOSE).stdout == proved
    assert doctor("-").stdout == "<stdin>: unreadable: The file is empty.\n"
