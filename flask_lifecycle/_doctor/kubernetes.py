"""Kubernetes: every object with a pod template, whatever its kind (a Rollout of Argo has one)."""

from __future__ import annotations

from collections.abc import Iterator

from .model import Command, Notes, Number, Probe, Stop, Workload
from .source import Value

# Kubernetes' own defaults.
_GRACE = 30
_NUMBERS = {
    "initialDelaySeconds": 0,
    "timeoutSeconds": 1,
    "periodSeconds": 10,
    "failureThreshold": 3,
    "terminationGracePeriodSeconds": 0,
}
_WAYS = {"httpGet": "http", "tcpSocket": "tcp"}
_POD_PATHS = (("spec", "template", "spec"), ("spec", "jobTemplate", "spec", "template", "spec"))
# They end by themselves and have no readiness.
_JOBS = {"Job", "CronJob"}


def is_kubernetes(document: Value) -> bool:
    return document.get("apiVersion") is not None and document.get("kind") is not None


def read_kubernetes(document: Value, notes: Notes) -> Iterator[Workload]:
    """The containers of the application in a document."""
    # Kubernetes does not accept nested lists either.
    listed = document.entries("items") if document.text("kind").endswith("List") else []
    for item in (document, *listed):
        with notes.reading():
            yield from _read(item, notes)


def _read(item: Value, notes: Notes) -> Iterator[Workload]:
    paths = [("spec",)] if item.text("kind") == "Pod" else _POD_PATHS
    pod = next((pod for path in paths if (pod := item.get(*path)) and pod.get("containers")), None)
    if pod is None:
        return
    kind = item.text("kind")
    label = f"{kind}/{item.text('metadata', 'name') or '?'}"
    notes.subject = label
    containers = pod.entries("containers")
    for container in notes.choose("container", pod.line, containers, lambda each: each.text("name"), _signs):
        with notes.reading():
            yield _workload(label, pod, container, notes, kind not in _JOBS)


def _signs(container: Value) -> tuple[str, list[str]]:
    words = " ".join(word.text() for key in ("command", "args") for word in container.entries(key))
    return words, [container.text(f"{kind}Probe", "httpGet", "path") for kind in ("liveness", "readiness", "startup")]


def _workload(label: str, pod: Value, container: Value, notes: Notes, serves: bool) -> Workload:
    notes.subject = f"{label} '{container.text('name')}'"
    key = "terminationGracePeriodSeconds"
    probes = (_probe(kind, container, notes) for kind in ("startup", "readiness", "liveness"))
    env = {each.text("name"): each.get("value") or Value(each.line, None) for each in container.entries("env")}
    return Workload(
        "kubernetes", notes.file, notes.subject, container.line, notes.number(pod, key, _GRACE), key,
        _command(container, notes), _stop(container, notes), tuple(probe for probe in probes if probe is not None),
        _names(container), env, container.fields(), serves,
    )  # fmt: skip


def _command(container: Value, notes: Notes) -> Command | None:
    given = container.get("command") or container.get("args")
    words = [word for key in ("command", "args") for word in notes.words(container.get(key), key)]
    return Command.of(given.line, words) if given is not None and words else None


def _stop(container: Value, notes: Notes) -> Stop | None:
    hook = container.get("lifecycle", "preStop")
    if hook is None:
        return None
    sleep, get = hook.get("sleep"), hook.get("httpGet")
    if sleep is not None:
        return Stop(hook.line, "sleep", notes.number(sleep, "seconds", 0).value)
    if get is not None:
        return Stop(hook.line, "http", path=get.text("path"))
    return Stop.of(hook.line, notes.words(hook.get("exec", "command"), "command"))


def _names(container: Value) -> dict[str, int]:
    ports = {port.text("name"): port.get("containerPort") for port in container.entries("ports")}
    return {name: port.data for name, port in ports.items() if name and port and isinstance(port.data, int)}


def _probe(kind: str, container: Value, notes: Notes) -> Probe | None:
    probe = container.get(f"{kind}Probe")
    if probe is None:
        return None
    numbers: dict[str, Number] = {key: notes.number(probe, key, default) for key, default in _NUMBERS.items()}
    way = next((way for key, way in _WAYS.items() if probe.get(key)), "other")
    get = probe.get("httpGet") or Value(probe.line, {})
    path, port = get.get("path") or Value(get.line, "/"), get.get("port") or Value(get.line, 80)
    return Probe(kind, get.line, way, path, port, get.text("scheme") or "HTTP", numbers)
