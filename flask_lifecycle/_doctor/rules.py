"""The rules: functions from a workload and the settings to findings, and their table.

A rule reports nothing about a value that it cannot know, such as one in a script or a variable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

from .._config import KEYS, attribute_of, parse_signal
from .gunicorn import graceful_timeout
from .model import ERROR, OK, WARNING, Case, Finding, Probe

Rule = Callable[[Case], Iterator[Finding]]

# Seconds beyond the grace period: the end of the interpreter, and the clocks of two programs.
MARGIN = 1.0
# A longer start-up is rare; with less a cold cache gets the container killed.
_SHORTEST_START = 30.0
_PATH_NAMES = {"liveness": "livez", "readiness": "readyz", "startup": "startupz"}
_LOOPBACK = ("127.", "localhost", "::1")


# -- time ---------------------------------------------------------------------------------------------------------


def fits(case: Case) -> Iterator[Finding]:
    """The preStop hook, the grace period and a margin fit into the orchestrator's limit."""
    work, grace = case.workload, case.settings.grace_period
    before = _before(case)
    needed = grace + before + MARGIN
    hook = f" + {before:g} s of preStop" if before else ""
    total = f"{grace:g} s of LIFECYCLE_GRACE_PERIOD{hook} + {MARGIN:g} s to spare = {needed:g} s"
    limit = f"{work.limit_key} is {work.limit.value:g} s{'' if work.limit.given else ' by default'}"
    reason = _unlimited(case, math.floor(needed) + 1)
    if reason:
        yield Finding(work.file, work.line, OK, "grace-period", work.subject, f"{total}, and {reason}")
    elif needed < work.limit.value and work.stop and work.stop.way in ("http", "other"):
        return  # the duration of the hook is unknown, as another rule reports
    elif needed < work.limit.value:
        text = f"{total}, less than the {work.limit.value:g} s of {work.limit_key}"
        yield Finding(work.file, work.limit.line, OK, "grace-period", work.subject, text)
    else:
        wanted, room = math.floor(needed) + 1, work.limit.value - before - MARGIN
        lower = f", or LIFECYCLE_GRACE_PERIOD to less than {room:g}" if room > 1 else ""
        yield case.error(
            "grace-period", work.limit.line, f"{limit}, but a shutdown may take {total}",
            f"set it to {wanted} or more{lower}", work.limit.value, wanted,
        )  # fmt: skip


def _unlimited(case: Case, wanted: int) -> str:
    """Why the file sets no limit; empty if it does."""
    if case.workload.platform == "docker":
        return f"the limit is set at start-up: docker run --stop-timeout {wanted}, or 10 s by default"
    if _extended(case):
        return "the process asks systemd for the time it needs"
    return "there is no limit" if math.isinf(case.workload.limit.value) else ""


def _before(case: Case) -> float:
    """Seconds of the limit that the preStop hook takes; systemd gives ``ExecStop=`` its own limit."""
    stop = case.workload.stop
    return stop.seconds if stop and case.workload.platform == "kubernetes" else 0.0


def _extended(case: Case) -> bool:
    """Whether the process can ask systemd for time: as the main process, without a shell as its parent."""
    work = case.workload
    kind, access = work.options.get("Type"), work.options.get("NotifyAccess")
    notifies = work.platform == "systemd" and kind is not None and str(kind.data).startswith("notify") and _is_run(case)
    from_all = access is not None and access.data == "all"
    return bool(notifies and work.command and (from_all or not work.command.shell))


def probe_grace(case: Case) -> Iterator[Finding]:
    """A probe's own limit is as long."""
    for probe in case.workload.probes:
        own = probe.numbers.get("terminationGracePeriodSeconds")
        needed = case.settings.grace_period + MARGIN + _before(case)
        if own and own.given and own.value <= needed:
            yield case.error(
                "grace-period", own.line,
                f"{probe.name} has its own terminationGracePeriodSeconds of {own.value:g} s, but a shutdown may take"
                f" {needed:g} s",
                f"set it to {math.floor(needed) + 1} or more, or remove it", own.value, math.floor(needed) + 1,
            )  # fmt: skip


def stop_hook(case: Case) -> Iterator[Finding]:
    """The hook before the signal fits the shutdown."""
    stop, delay = case.workload.stop, case.settings.longest_delay
    if stop is None:
        return
    if stop.way == "http":
        yield from _http_stop(case, stop.line, stop.path)
    elif stop.way == "sleep" and delay and stop.seconds:
        yield case.warning(
            "delay-twice", stop.line,
            f"a sleep of {stop.seconds:g} s is used together with a LIFECYCLE_SHUTDOWN_DELAY of {delay:g} s, which"
            " has the same purpose",
            "remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0", stop.seconds, 0.0,
        )  # fmt: skip
    elif stop.way == "other" and case.workload.platform == "kubernetes":
        yield case.warning(
            "prestop-time", stop.line,
            "the duration of the preStop hook is unknown, and it counts towards terminationGracePeriodSeconds",
            "leave more room there, or use LIFECYCLE_SHUTDOWN_DELAY instead",
        )  # fmt: skip


def _http_stop(case: Case, line: int, path: str) -> Iterator[Finding]:
    if any(path.rstrip("/").endswith(f"/lifecycle/{verb}") for verb in ("drain", "cordon", "uncordon")):
        yield case.error(
            "prestop-http", line,
            f"preStop sends GET '{path}' without a token, which is refused: operators' requests need POST and a token",
            "remove the hook, because SIGTERM does the same, or run 'flask lifecycle drain' by exec",
        )  # fmt: skip
    else:
        yield case.warning(
            "prestop-http", line,
            f"preStop asks for '{path}', which takes an unknown time of terminationGracePeriodSeconds",
            "use an on_drain function instead",
        )  # fmt: skip


def no_delay(case: Case) -> Iterator[Finding]:
    """In Kubernetes a delay or a hook lasts until all proxies have noticed."""
    work = case.workload
    ready = any(probe.kind == "readiness" for probe in work.probes)
    if work.platform == "kubernetes" and work.serves and ready and not case.settings.longest_delay and not work.stop:
        yield case.warning(
            "no-delay", work.line,
            "LIFECYCLE_SHUTDOWN_DELAY is 0 and there is no preStop, so the listener closes while proxies still send to"
            " the pod",
            "set it to 5, or to 'auto'", 0.0, 5.0,
        )  # fmt: skip


# -- probes -------------------------------------------------------------------------------------------------------


_NO_TRAFFIC = "so the container is restarted when it should only get no traffic"
_STILL_PASSES = "which still passes while the process stops"
_RESTARTS = "so a dependency that is down restarts a container that has started"
# By the kind of a probe and the group that it asks: severity, rule and the reason.
_WRONG_GROUPS = {
    ("liveness", "ready"): (ERROR, "liveness", f"which is readiness, {_NO_TRAFFIC}"),
    ("liveness", "healthcheck"): (ERROR, "liveness", f"which is all checks, {_NO_TRAFFIC}"),
    ("liveness", "startup"): (
        ERROR, "liveness", "which fails until the start-up is over, so a slow start-up is restarted"
    ),
    ("readiness", "live"): (ERROR, "readiness", _STILL_PASSES),
    ("readiness", "startup"): (ERROR, "readiness", _STILL_PASSES),
    ("startup", "live"): (WARNING, "startup", "which passes before the start-up is over"),
    ("startup", "ready"): (WARNING, "startup", _RESTARTS),
    ("startup", "healthcheck"): (WARNING, "startup", _RESTARTS),
}  # fmt: skip
_NO_PROBE = (ERROR, "probe-path", "which is not a probe of this application")


def probe_paths(case: Case) -> Iterator[Finding]:
    """Each probe asks the right path."""
    for probe, group in case.http_probes():
        found = _NO_PROBE if group is None else _WRONG_GROUPS.get((probe.kind, group))
        if found is None:
            continue
        severity, rule, reason = found
        path = probe.path.text()
        wanted = case.settings.probe_paths()[_PATH_NAMES.get(probe.kind, "healthcheck")]
        text = f"{probe.name} asks for '{path}', {reason}"
        yield case.finding(severity, rule, probe.path.line, text, f"set its path to '{wanted}'", path, wanted)


def probe_ports(case: Case) -> Iterator[Finding]:
    """Each probe asks a port on which something listens."""
    own, main = case.settings.probe_port, _main_port(case)
    for probe, _ in case.http_probes():
        port, line = _port(case, probe), probe.port.line
        if isinstance(port, str):
            names = ", ".join(f"'{name}'" for name in case.workload.names) or "none"
            text = f"{probe.name} names the port '{port}', which the container does not have (it has {names})"
            yield case.error("probe-port", line, text, "name one under 'ports', or give the number", port)
        elif own == 0 and main is not None and port != main:
            text = (
                f"{probe.name} asks port {port}, but LIFECYCLE_PROBE_PORT is 0, which is a different port at each start"
            )
            yield case.error("probe-port", line, text, f"set it to {port}", port, main)
        elif main is not None and port not in (own, main):
            where = f"port {main}" + (f" and the probe listener on {own}" if own else "")
            text = f"{probe.name} asks port {port}, where nothing listens: the application is on {where}"
            yield case.error("probe-port", line, text, f"set its port to {own or main}", port, own or main)
        elif own and port != own and probe.kind == "liveness":
            text = f"{probe.name} asks port {port}, which is closed during a shutdown and busy under load"
            yield case.warning("probe-port", line, text, f"set its port to LIFECYCLE_PROBE_PORT, {own}", port, own)
        if own and port == own and probe.scheme == "HTTPS":
            text = f"{probe.name} uses HTTPS for the probe listener, which speaks HTTP"
            yield case.error("probe-scheme", probe.line, text, "set its scheme to HTTP", "HTTPS", "HTTP")


def _main_port(case: Case) -> int | None:
    command = case.workload.command
    return command.address[1] if command and not _moved(case) else None


def _moved(case: Case) -> bool:
    """Whether variables, some of which are not in the file, may set the address."""
    work = case.workload
    others = any(key in work.options for key in ("envFrom", "env_file", "EnvironmentFile"))
    return others or any(name.startswith(("FLASK_RUN_", "FLASK_LIFECYCLE_RUN_")) for name in work.env)


def _port(case: Case, probe: Probe) -> int | str:
    port = probe.port.data
    return case.workload.names.get(port, port) if isinstance(port, str) else int(port) if isinstance(port, int) else ""


def reachable(case: Case) -> Iterator[Finding]:
    """A container listens on a reachable address."""
    work = case.workload
    host = None if _moved(case) or work.command is None else work.command.address[0]
    if work.platform == "systemd" or work.options.get("network_mode"):
        return
    if work.command and host and host.startswith(_LOOPBACK):
        asked = any(_port(case, probe) == _main_port(case) for probe, _ in case.http_probes())
        wanted = asked if work.platform == "kubernetes" else "ports" in work.options
        text = f"the application listens on {host}, which is not reachable from outside the container"
        # Without a probe or port, a proxy in the same pod may use it.
        report = case.error if wanted else case.warning
        cure = "add '-h 0.0.0.0' to the command"
        if work.command.server == "gunicorn":
            cure = f"set --bind to '0.0.0.0:{_main_port(case)}'"
        yield report("address", work.command.line, text, cure, host, "0.0.0.0")


def probe_host(case: Case) -> Iterator[Finding]:
    """The kubelet reaches the probe listener."""
    settings = case.settings
    if case.workload.platform != "kubernetes" or not (settings.probe_host or "").startswith(_LOOPBACK):
        return
    for probe, _ in case.http_probes():
        if settings.probe_port and _port(case, probe) == settings.probe_port:
            text = f"LIFECYCLE_PROBE_HOST is {settings.probe_host}, which {probe.name} does not reach"
            yield case.error("address", probe.line, text, "set it to '0.0.0.0'", settings.probe_host, "0.0.0.0")


def probe_timeouts(case: Case) -> Iterator[Finding]:
    """A probe waits longer than the response may take; liveness and start-up have no checks by default."""
    limit = case.settings.probe_timeout
    for probe, group in case.http_probes():
        timeout = probe.numbers["timeoutSeconds"]
        other = probe.kind == "liveness" and group in ("ready", "healthcheck")  # another rule reports it
        if group not in (None, "live", "startup") and not other and timeout.value <= limit:
            key = "timeout" if probe.kind == "health" else "timeoutSeconds"
            is_default = "" if timeout.given else " by default"
            yield case.warning(
                "probe-timeout", timeout.line if timeout.given else probe.line,
                f"{key} of {probe.name} is {timeout.value:g} s{is_default}, but the answer may take the {limit:g} s of"
                " LIFECYCLE_PROBE_TIMEOUT",
                f"set it to {math.floor(limit) + 1} or more, or LIFECYCLE_PROBE_TIMEOUT below it",
                timeout.value, math.floor(limit) + 1,
            )  # fmt: skip


def probe_ways(case: Case) -> Iterator[Finding]:
    """A probe does more than connect."""
    for probe in case.workload.probes:
        if probe.way == "tcp":
            wanted = case.settings.probe_paths()[_PATH_NAMES[probe.kind]]
            text = f"{probe.name} only connects, which succeeds even if the application hangs"
            yield case.warning("probe-way", probe.line, text, f"use httpGet with the path '{wanted}'")


def starts(case: Case) -> Iterator[Finding]:
    """The start-up has enough time, and no probe waits twice."""
    work = case.workload
    probes = {probe.kind: probe for probe in work.probes}
    limiting = probes.get("startup") or probes.get("liveness")
    if work.platform != "kubernetes" or limiting is None:
        return
    delay, period, failures = (
        limiting.numbers[key] for key in ("initialDelaySeconds", "periodSeconds", "failureThreshold")
    )
    time = delay.value + period.value * failures.value
    if time < _SHORTEST_START:
        wanted = math.ceil((_SHORTEST_START - delay.value) / max(period.value, 1.0))
        yield case.warning(
            "start-time", failures.line if failures.given else limiting.line,
            f"{limiting.name} gives the start-up {time:g} s ({delay.value:g} + {failures.value:g} x {period.value:g}),"
            " then the container is restarted",
            f"set its failureThreshold to {wanted} or more", failures.value, wanted,
        )  # fmt: skip
    for kind in ("readiness", "liveness"):
        probe = probes.get(kind)
        if probe and "startup" in probes and probe.numbers["initialDelaySeconds"].value:
            wait = probe.numbers["initialDelaySeconds"]
            text = f"{probe.name} waits {wait.value:g} s more after the startupProbe, which delays it already"
            yield case.warning("initial-delay", wait.line, text, "remove its initialDelaySeconds", wait.value, 0.0)


def has_readiness(case: Case) -> Iterator[Finding]:
    """A serving container has a readiness probe, and liveness is patient."""
    work = case.workload
    kinds = {probe.kind: probe for probe in work.probes}
    listens = bool(kinds or work.options.get("ports") or (work.command and work.command.server))
    if work.platform == "kubernetes" and work.serves and listens and "readiness" not in kinds:
        path = case.settings.probe_paths()["readyz"]
        text = (
            "there is no readinessProbe, so the container gets traffic before the start-up is over and while checks"
            " fail"
        )
        yield case.warning("readiness", work.line, text, f"add one with the path '{path}'")
    live = kinds.get("liveness")
    if live and live.numbers["failureThreshold"].value == 1:
        line = live.numbers["failureThreshold"].line
        text = "livenessProbe restarts the container after a single late answer"
        yield case.warning("liveness", line, text, "set its failureThreshold to 3", 1, 3)


# -- signals ------------------------------------------------------------------------------------------------------


def shell_form(case: Case) -> Iterator[Finding]:
    """The signal reaches the application and not a shell."""
    work = case.workload
    mode = work.options.get("KillMode")
    to_all = work.platform == "systemd" and (mode is None or mode.data == "control-group")
    if work.command and work.command.shell:
        report = case.warning if to_all else case.error
        text = "a shell gets the signal and may not forward it"
        if to_all:
            text = "a shell is the main process, so its exit code and notifications are not those of the application"
        cure = "write 'exec' before the command, or start it without sh -c"
        if work.platform == "docker":
            cure = 'write it in exec form, ["program", "argument"]'
        yield report("shell-form", work.command.line, text, cure)


def kill_mode(case: Case) -> Iterator[Finding]:
    """systemd sends the signal to the process, and kills what remains."""
    mode = case.workload.options.get("KillMode")
    if case.workload.platform == "systemd" and mode:
        if mode.data == "none":
            text = "KillMode is 'none', so no signal is sent"
            yield case.error("kill-mode", mode.line, text, "set it to 'mixed'", mode.data, "mixed")
        elif mode.data == "process":
            text = "KillMode is 'process', so children are left running"
            yield case.warning("kill-mode", mode.line, text, "set it to 'mixed'", mode.data, "mixed")


def stop_signal(case: Case) -> Iterator[Finding]:
    """The stop signal begins the shutdown."""
    key = {"systemd": "KillSignal", "compose": "stop_signal", "docker": "STOPSIGNAL"}.get(
        case.workload.platform, "stopSignal"
    )
    options = case.workload.options
    sent = options["lifecycle"].get(key) if "lifecycle" in options else options.get(key)
    signals = case.settings.signals
    signals = (parse_signal("SIGTERM"),) if signals is None else signals
    taken = [each.name for each in signals]
    name = sent.text() if sent else "SIGTERM"
    try:
        known = parse_signal(int(name) if name.isdigit() else name).name
    except ValueError:
        known = name
    if known in taken or (known == "SIGINT" and case.settings.signals is None and _is_run(case)):
        return
    line = sent.line if sent else case.workload.line
    text = f"{known} is sent to stop it, but the application handles {' and '.join(taken) or 'none'}"
    cure = f"set {key} to {taken[0]}" if taken else f"add '{known}' to LIFECYCLE_SIGNALS"
    yield case.error("stop-signal", line, text, cure, known, taken[0] if taken else "")


def _is_run(case: Case) -> bool:
    return bool(case.workload.command and case.workload.command.server == "lifecycle run")


def unit_type(case: Case) -> Iterator[Finding]:
    """systemd waits for readiness if the server can report it, and not otherwise."""
    work = case.workload
    if work.platform != "systemd" or work.command is None or not work.command.server:
        return
    given = work.options.get("Type")
    kind, line = (str(given.data), given.line) if given else ("simple", work.command.line)
    is_default = "" if given else " by default"
    server = work.command.server
    if kind in ("forking", "oneshot", "dbus"):
        wanted = "notify" if _is_run(case) else "exec"
        text = f"Type is '{kind}', but the process neither forks nor ends"
        yield case.error("unit-type", line, text, f"set it to '{wanted}'", kind, wanted)
    elif _is_run(case) and not kind.startswith("notify"):
        text = f"Type is '{kind}'{is_default}, so systemd does not wait until the application is ready"
        yield case.warning("unit-type", line, text, "set it to 'notify'", kind, "notify")
    elif kind.startswith("notify") and server in ("flask run", "waitress-serve"):
        text = f"Type is '{kind}', but under {server} the application is not ready before the first request"
        yield case.error("unit-type", line, text, "set it to 'exec', or start 'flask lifecycle run'", kind, "exec")
    elif kind == "simple" and not _is_run(case):
        text = f"Type is 'simple'{is_default}, so a command that cannot be started counts as started"
        yield case.warning("unit-type", line, text, "set it to 'exec'", kind, "exec")


# -- settings -----------------------------------------------------------------------------------------------------


def environment(case: Case) -> Iterator[Finding]:
    """The file sets the values that the application was loaded with here."""
    for name, value in case.workload.env.items():
        key = name.removeprefix("FLASK_")
        if key == name or key not in KEYS or value.data is None or key == "LIFECYCLE_TOKEN":
            continue
        loaded = getattr(case.settings, attribute_of(key))
        if not _same(value.text(), loaded):
            yield case.warning(
                "environment", value.line,
                f"{name} is '{value.text()}' here, but the application was loaded with {loaded!r}, which all rules"
                " use",
                f"run the doctor with {name} in its environment", value.text(), str(loaded),
            )  # fmt: skip


def _same(text: str, loaded: object) -> bool:
    """Whether a variable equals a setting; Flask reads JSON values as such."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if isinstance(loaded, (str, bool, int, float, type(None))):
        return bool(value == loaded)
    return True  # mappings and lists have defaults added, so they cannot be compared


RULES: tuple[Rule, ...] = (
    fits, graceful_timeout, probe_grace, stop_hook, no_delay, probe_paths, probe_ports, reachable, probe_host,
    probe_timeouts, probe_ways, starts, has_readiness, shell_form, kill_mode, stop_signal, unit_type, environment,
)  # fmt: skip
