"""The rules: functions from a workload and the settings to findings, and the table of them.

A rule speaks of what it can see. Where a number cannot be known (a script that is called, a variable) it says nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

from .._config import KEYS, parse_signal
from ._gunicorn import graceful_timeout
from ._model import OK, Case, Finding, Probe

Rule = Callable[[Case], Iterator[Finding]]

# What the process needs beyond its grace period: the interpreter's end, and the clocks of two programs.
MARGIN = 1.0
# A start that takes longer is rare; one that is given less is killed for a cold cache.
_SHORTEST_START = 30.0
_LANES = {"live": "liveness", "ready": "readiness", "startup": "startup", "healthcheck": "all checks"}
_PATH_NAMES = {"liveness": "livez", "readiness": "readyz", "startup": "startupz"}
_LOOPBACK = ("127.", "localhost", "::1")


# -- time ---------------------------------------------------------------------------------------------------------


def fits(case: Case) -> Iterator[Finding]:
    """Delay, drain and hooks, what comes before them and a margin are less than the orchestrator's limit."""
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
        return  # nothing is proved: how long the hook takes is not known, as another rule says
    elif needed < work.limit.value:
        text = f"{total}, less than the {work.limit.value:g} s of {work.limit_key}"
        yield Finding(work.file, work.limit.line, OK, "grace-period", work.subject, text)
    else:
        wanted = math.floor(needed) + 1
        yield case.error(
            "grace-period", work.limit.line, f"{limit}, and a stop may take {total}",
            f"set it to {wanted} or more{_lower(case, before)}", work.limit.value, wanted,
        )  # fmt: skip


def _unlimited(case: Case, wanted: int) -> str:
    """Why the file itself sets no limit; empty if it does."""
    if case.workload.platform == "docker":
        return f"the limit is said at the start: docker run --stop-timeout {wanted}, or 10 s by default"
    if _extended(case):
        return "the process asks systemd for the time that it takes"
    return "there is no limit" if math.isinf(case.workload.limit.value) else ""


def _before(case: Case) -> float:
    """What the hook before the signal uses up of the limit; systemd grants its own commands the limit once more."""
    stop = case.workload.stop
    return stop.seconds if stop and case.workload.platform == "kubernetes" else 0.0


def _lower(case: Case, before: float) -> str:
    room = case.workload.limit.value - before - MARGIN
    return f", or LIFECYCLE_GRACE_PERIOD to less than {room:g}" if room > 1 else ""


def _extended(case: Case) -> bool:
    """Whether systemd hears of a process what time it needs: from the main process, which a shell must not be."""
    work = case.workload
    kind, access = work.options.get("Type"), work.options.get("NotifyAccess")
    told = work.platform == "systemd" and kind is not None and str(kind.data).startswith("notify") and _is_run(case)
    from_all = access is not None and access.data == "all"
    return bool(told and work.command and (from_all or not work.command.shell))


def probe_grace(case: Case) -> Iterator[Finding]:
    """A limit of a probe's own is as long."""
    for probe in case.workload.probes:
        own = probe.numbers.get("terminationGracePeriodSeconds")
        needed = case.settings.grace_period + MARGIN + _before(case)
        if own and own.given and own.value <= needed:
            yield case.error(
                "grace-period", own.line,
                f"{probe.name} has a terminationGracePeriodSeconds of its own of {own.value:g} s, and a stop may take"
                f" {needed:g} s",
                f"set it to {math.floor(needed) + 1} or more, or remove it", own.value, math.floor(needed) + 1,
            )  # fmt: skip


def stop_hook(case: Case) -> Iterator[Finding]:
    """What is done before the signal fits what the signal does."""
    stop, delay = case.workload.stop, case.settings.longest_delay
    if stop is None:
        return
    if stop.way == "http":
        yield from _http_stop(case, stop.line, stop.path)
    elif stop.way == "sleep" and delay and stop.seconds:
        yield case.warning(
            "delay-twice", stop.line,
            f"a sleep of {stop.seconds:g} s stands beside a LIFECYCLE_SHUTDOWN_DELAY of {delay:g} s, which is for the"
            " same",
            "remove the sleep, or set LIFECYCLE_SHUTDOWN_DELAY to 0", stop.seconds, 0.0,
        )  # fmt: skip
    elif stop.way == "other" and case.workload.platform == "kubernetes":
        yield case.warning(
            "prestop-time", stop.line,
            "how long the preStop hook takes cannot be told, and it uses up terminationGracePeriodSeconds",
            "leave so much more room there, or use LIFECYCLE_SHUTDOWN_DELAY in its place",
        )  # fmt: skip


def _http_stop(case: Case, line: int, path: str) -> Iterator[Finding]:
    if any(path.rstrip("/").endswith(f"/lifecycle/{verb}") for verb in ("drain", "cordon", "uncordon")):
        yield case.error(
            "prestop-http", line,
            f"preStop sends GET '{path}' without a token, which is refused: what operators ask for is a POST",
            "remove the hook, as SIGTERM does the same, or run 'flask lifecycle drain' by exec",
        )  # fmt: skip
    else:
        yield case.warning(
            "prestop-http", line,
            f"preStop asks for '{path}', and how long that takes cannot be told; it uses up"
            " terminationGracePeriodSeconds",
            "use an on_drain function in its place",
        )  # fmt: skip


def no_delay(case: Case) -> Iterator[Finding]:
    """In Kubernetes something has to last until every proxy has heard of the end."""
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


def probe_paths(case: Case) -> Iterator[Finding]:
    """Each probe asks for what it is meant to ask for."""
    paths = case.settings.probe_paths()
    for probe, lane in case.http_probes():
        path = probe.path.text() if probe.path else "/"
        line = probe.path.line if probe.path else probe.line
        wanted = paths[_PATH_NAMES.get(probe.kind, "healthcheck")]
        cure = f"set its path to '{wanted}'"
        if lane is None:
            text = f"{probe.name} asks for '{path}', where this application has no probe"
            yield case.error("probe-path", line, text, cure, path, wanted)
        elif probe.kind == "liveness" and lane in ("ready", "healthcheck"):
            text = (
                f"{probe.name} asks for '{path}', which is {_LANES[lane]} and fails whenever traffic should stay away:"
                " each time the container is restarted"
            )
            yield case.error("liveness", line, text, cure, path, wanted)
        elif probe.kind == "liveness" and lane == "startup":
            text = f"{probe.name} asks for '{path}', which fails until the start is over: a slow start is restarted"
            yield case.error("liveness", line, text, cure, path, wanted)
        elif probe.kind == "readiness" and lane in ("live", "startup"):
            text = f"{probe.name} asks for '{path}', which goes on succeeding while the process leaves"
            yield case.error("readiness", line, text, cure, path, wanted)
        elif probe.kind == "startup" and lane == "live":
            text = f"{probe.name} asks for '{path}', which succeeds before the start is over"
            yield case.warning("startup", line, text, cure, path, wanted)
        elif probe.kind == "startup" and lane in ("ready", "healthcheck"):
            text = f"{probe.name} asks for '{path}', by which a dependency that is down restarts what has started"
            yield case.warning("startup", line, text, cure, path, wanted)


def probe_ports(case: Case) -> Iterator[Finding]:
    """Each probe asks where somebody answers."""
    own, main = case.settings.probe_port, _main_port(case)
    for probe, _ in case.http_probes():
        port, line = _port(case, probe), probe.port.line if probe.port else probe.line
        if isinstance(port, str):
            names = ", ".join(f"'{name}'" for name in case.workload.names) or "none"
            text = f"{probe.name} names the port '{port}', which the container does not have (it has {names})"
            yield case.error("probe-port", line, text, "name one under 'ports', or give the number", port)
        elif own == 0 and main is not None and port != main:
            text = f"{probe.name} asks port {port}, and LIFECYCLE_PROBE_PORT is 0, which is another port at each start"
            yield case.error("probe-port", line, text, f"set that to {port}", port, main)
        elif main is not None and port not in (own, main):
            where = f"port {main}" + (f" and the probe listener on {own}" if own else "")
            text = f"{probe.name} asks port {port}, where nobody listens: the application is on {where}"
            yield case.error("probe-port", line, text, f"set its port to {own or main}", port, own or main)
        elif own and port != own and probe.kind == "liveness":
            text = f"{probe.name} asks port {port}, which is closed in a stop and busy under load"
            yield case.warning("probe-port", line, text, f"set its port to LIFECYCLE_PROBE_PORT, {own}", port, own)
        if own and port == own and probe.scheme == "HTTPS":
            text = f"{probe.name} asks the probe listener by HTTPS, and it speaks HTTP"
            yield case.error("probe-scheme", probe.line, text, "set its scheme to HTTP", "HTTPS", "HTTP")


def _main_port(case: Case) -> int | None:
    command = case.workload.command
    return command.address[1] if command and not _moved(case) else None


def _moved(case: Case) -> bool:
    """Whether variables may say where the application listens, some of which are not in the file."""
    work = case.workload
    others = any(key in work.options for key in ("envFrom", "env_file", "EnvironmentFile"))
    return others or any(name.startswith(("FLASK_RUN_", "FLASK_LIFECYCLE_RUN_")) for name in work.env)


def _port(case: Case, probe: Probe) -> int | str:
    port = probe.port.data if probe.port else 80
    return case.workload.names.get(port, port) if isinstance(port, str) else int(port) if isinstance(port, int) else ""


def reachable(case: Case) -> Iterator[Finding]:
    """A container listens where others reach it."""
    work = case.workload
    host = None if _moved(case) or work.command is None else work.command.address[0]
    if work.platform == "systemd" or work.options.get("network_mode"):
        return
    if work.command and host and host.startswith(_LOOPBACK):
        asked = any(_port(case, probe) == _main_port(case) for probe, _ in case.http_probes())
        wanted = asked if work.platform == "kubernetes" else "ports" in work.options
        text = f"the application listens on {host}, which nothing outside the container reaches"
        # Where nobody is seen to ask, a proxy beside it may.
        report = case.error if wanted else case.warning
        cure = "add '-h 0.0.0.0' to the command"
        if work.command.server == "gunicorn":
            cure = f"set --bind to '0.0.0.0:{_main_port(case)}'"
        yield report("address", work.command.line, text, cure, host, "0.0.0.0")


def probe_host(case: Case) -> Iterator[Finding]:
    """The probe listener is where the kubelet reaches it."""
    settings = case.settings
    if case.workload.platform != "kubernetes" or not settings.probe_host.startswith(_LOOPBACK):
        return
    for probe, _ in case.http_probes():
        if settings.probe_port and _port(case, probe) == settings.probe_port:
            text = f"LIFECYCLE_PROBE_HOST is {settings.probe_host}, which {probe.name} does not reach"
            yield case.error("address", probe.line, text, "set it to '0.0.0.0'", settings.probe_host, "0.0.0.0")


def probe_timeouts(case: Case) -> Iterator[Finding]:
    """A probe waits longer than the answer may take; liveness and startup have no checks, unless they are given any."""
    limit = case.settings.probe_timeout
    for probe, lane in case.http_probes():
        timeout = probe.numbers["timeoutSeconds"]
        other = probe.kind == "liveness" and lane in ("ready", "healthcheck")  # which another rule refuses
        if lane not in (None, "live", "startup") and not other and timeout.value <= limit:
            key = "timeout" if probe.kind == "health" else "timeoutSeconds"
            is_default = "" if timeout.given else " by default"
            yield case.warning(
                "probe-timeout", timeout.line if timeout.given else probe.line,
                f"{key} of {probe.name} is {timeout.value:g} s{is_default}, and the answer may take the {limit:g} s of"
                " LIFECYCLE_PROBE_TIMEOUT",
                f"set it to {math.floor(limit) + 1} or more, or LIFECYCLE_PROBE_TIMEOUT below it",
                timeout.value, math.floor(limit) + 1,
            )  # fmt: skip


def probe_ways(case: Case) -> Iterator[Finding]:
    """A probe learns more than that the kernel listens."""
    for probe in case.workload.probes:
        if probe.way == "tcp":
            wanted = case.settings.probe_paths()[_PATH_NAMES[probe.kind]]
            text = f"{probe.name} only connects, which succeeds also when nobody answers"
            yield case.warning("probe-way", probe.line, text, f"use httpGet with the path '{wanted}'")


def starts(case: Case) -> Iterator[Finding]:
    """The start has time, and nothing waits for nothing."""
    work = case.workload
    probes = {probe.kind: probe for probe in work.probes}
    judge = probes.get("startup") or probes.get("liveness")
    if work.platform != "kubernetes" or judge is None:
        return
    delay, period, failures = (
        judge.numbers[key] for key in ("initialDelaySeconds", "periodSeconds", "failureThreshold")
    )
    time = delay.value + period.value * failures.value
    if time < _SHORTEST_START:
        wanted = math.ceil((_SHORTEST_START - delay.value) / max(period.value, 1.0))
        yield case.warning(
            "start-time", failures.line if failures.given else judge.line,
            f"{judge.name} gives the start {time:g} s ({delay.value:g} + {failures.value:g} x {period.value:g}), then"
            " the container is restarted",
            f"set its failureThreshold to {wanted} or more", failures.value, wanted,
        )  # fmt: skip
    for kind in ("readiness", "liveness"):
        probe = probes.get(kind)
        if probe and "startup" in probes and probe.numbers["initialDelaySeconds"].value:
            wait = probe.numbers["initialDelaySeconds"]
            text = f"{probe.name} waits {wait.value:g} s more after the startupProbe, which has held it back already"
            yield case.warning("initial-delay", wait.line, text, "remove its initialDelaySeconds", wait.value, 0.0)


def has_readiness(case: Case) -> Iterator[Finding]:
    """What serves is asked whether it is ready, and liveness is patient."""
    work = case.workload
    kinds = {probe.kind: probe for probe in work.probes}
    listens = bool(kinds or work.options.get("ports") or (work.command and work.command.server))
    if work.platform == "kubernetes" and work.serves and listens and "readiness" not in kinds:
        path = case.settings.probe_paths()["readyz"]
        text = "there is no readinessProbe, so that traffic comes before the start is over and while checks fail"
        yield case.warning("readiness", work.line, text, f"add one with the path '{path}'")
    live = kinds.get("liveness")
    if live and live.numbers["failureThreshold"].value == 1:
        line = live.numbers["failureThreshold"].line
        text = "livenessProbe restarts the container for a single answer that is late"
        yield case.warning("liveness", line, text, "set its failureThreshold to 3", 1, 3)


# -- signals ------------------------------------------------------------------------------------------------------


def shell_form(case: Case) -> Iterator[Finding]:
    """The signal reaches the application and not a shell before it."""
    work = case.workload
    mode = work.options.get("KillMode")
    to_all = work.platform == "systemd" and (mode is None or mode.data == "control-group")
    if work.command and work.command.shell:
        report = case.warning if to_all else case.error
        text = "a shell is started, which the signal goes to and which need not pass it on"
        if to_all:
            text = "a shell is the main process, so that its exit code and notifications are not the application's"
        cure = "write 'exec' before the command, or start it without sh -c"
        if work.platform == "docker":
            cure = 'write it in exec form, ["program", "argument"]'
        yield report("shell-form", work.command.line, text, cure)


def kill_mode(case: Case) -> Iterator[Finding]:
    """systemd sends the signal to the process, and ends what that leaves."""
    mode = case.workload.options.get("KillMode")
    if case.workload.platform == "systemd" and mode:
        if mode.data == "none":
            text = "KillMode is 'none', by which no signal is sent at all"
            yield case.error("kill-mode", mode.line, text, "set it to 'mixed'", mode.data, "mixed")
        elif mode.data == "process":
            text = "KillMode is 'process', by which children are left behind"
            yield case.warning("kill-mode", mode.line, text, "set it to 'mixed'", mode.data, "mixed")


def stop_signal(case: Case) -> Iterator[Finding]:
    """The signal that is sent is one that begins the shutdown."""
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
    text = f"{known} is sent to stop it, and the application takes {' and '.join(taken) or 'none'}"
    cure = f"set {key} to {taken[0]}" if taken else f"add '{known}' to LIFECYCLE_SIGNALS"
    yield case.error("stop-signal", line, text, cure, known, taken[0] if taken else "")


def _is_run(case: Case) -> bool:
    return bool(case.workload.command and case.workload.command.server == "lifecycle run")


def unit_type(case: Case) -> Iterator[Finding]:
    """systemd learns when the application is ready, if it can tell, and waits for nothing it cannot."""
    work = case.workload
    if work.platform != "systemd" or work.command is None or not work.command.server:
        return
    given = work.options.get("Type")
    kind, line = (str(given.data), given.line) if given else ("simple", work.command.line)
    is_default = "" if given else " by default"
    server = work.command.server
    if kind in ("forking", "oneshot", "dbus"):
        wanted = "notify" if _is_run(case) else "exec"
        text = f"Type is '{kind}', and the process neither forks nor ends"
        yield case.error("unit-type", line, text, f"set it to '{wanted}'", kind, wanted)
    elif _is_run(case) and not kind.startswith("notify"):
        text = f"Type is '{kind}'{is_default}, by which systemd does not wait until the application is ready"
        yield case.warning("unit-type", line, text, "set it to 'notify'", kind, "notify")
    elif kind.startswith("notify") and server in ("flask run", "waitress-serve"):
        text = f"Type is '{kind}', and under {server} the application is not ready before the first request"
        yield case.error("unit-type", line, text, "set it to 'exec', or start 'flask lifecycle run'", kind, "exec")
    elif kind == "simple" and not _is_run(case):
        text = f"Type is 'simple'{is_default}, by which a command that cannot be started counts as started"
        yield case.warning("unit-type", line, text, "set it to 'exec'", kind, "exec")


# -- settings -----------------------------------------------------------------------------------------------------


def environment(case: Case) -> Iterator[Finding]:
    """The file gives the application the settings that it was loaded with here."""
    for name, entry in case.workload.env.items():
        key, value = KEYS.get(name.removeprefix("FLASK_")), entry.get("value")
        if not name.startswith("FLASK_LIFECYCLE_") or key is None or value is None or key.attribute == "token":
            continue
        loaded = getattr(case.settings, key.attribute)
        if not _same(value.text(), loaded):
            yield case.warning(
                "environment", value.line,
                f"{name} is '{value.text()}' here, and the application was loaded with {loaded!r}, by which all is"
                " judged",
                f"run the doctor with {name} in its environment", value.text(), str(loaded),
            )  # fmt: skip


def _same(text: str, loaded: object) -> bool:
    """Whether a variable is what a setting is; as Flask reads it, what is JSON is taken as such."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(loaded, (str, bool, int, float, type(None))):
        return bool(value == loaded)
    return True  # mappings and lists: filled up with their defaults, so that they cannot be compared


RULES: tuple[Rule, ...] = (
    fits,
    graceful_timeout,
    probe_grace,
    stop_hook,
    no_delay,
    probe_paths,
    probe_ports,
    reachable,
    probe_host,
    probe_timeouts,
    probe_ways,
    starts,
    has_readiness,
    shell_form,
    kill_mode,
    stop_signal,
    unit_type,
    environment,
)
