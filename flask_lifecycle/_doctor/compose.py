"""Compose files. Unlike in a Dockerfile, a command that is one text is split into words and gets no shell."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .model import WARNING, Command, Notes, Number, Probe, Workload, find_url, looks_like_ours, split
from .source import Value

# Docker's own defaults.
_GRACE = 10.0
DOCKER_TIMEOUT = 30.0
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|us|µs|ns|m|s)")
_LONGEST = 100  # characters of a duration


def is_compose(document: Value) -> bool:
    return bool(document.fields("services"))


def read_compose(
    document: Value, notes: Notes, name: str | None, group_at: Callable[[str], str | None]
) -> Iterator[Workload]:
    """The services that are the application.

    :param name: of the service; by default those that look like it.
    """
    services = document.fields("services")

    def ours(key: str) -> bool:
        return _looks_like_ours(services[key], group_at)

    for key in notes.choose("service", document.line, list(services), name, str, ours):
        with notes.reading():
            yield _workload(key, services[key], notes)


def _looks_like_ours(service: Value, group_at: Callable[[str], str | None]) -> bool:
    words = " ".join(" ".join(_words(service, key)) for key in ("entrypoint", "command"))
    url = find_url(" ".join(_words(service, "healthcheck", "test")))
    return looks_like_ours(words, [url.path] if url is not None else [], group_at)


def _words(service: Value, *keys: str) -> list[str]:
    value = service.get(*keys)
    if value is not None and isinstance(value.data, list):
        return [word.text() for word in value.data]
    return list(split(service.text(*keys)))


def _workload(name: str, service: Value, notes: Notes) -> Workload:
    notes.subject = f"service '{name}'"
    given = service.get("entrypoint") or service.get("command")
    words = [*_words(service, "entrypoint"), *_words(service, "command")]
    probe = _probe(service, notes)
    return Workload(
        "compose", notes.file, notes.subject, service.line,
        seconds(service, "stop_grace_period", _GRACE, notes), "stop_grace_period",
        Command.of(given.line, words) if given is not None and words else None,
        probes=(probe,) if probe is not None else (), env=_environment(service), options=service.fields(),
    )  # fmt: skip


def _environment(service: Value) -> dict[str, Value]:
    pairs = [(entry.line, *entry.text().partition("=")) for entry in service.entries("environment")]
    listed = {key: Value(line, value) for line, key, equals, value in pairs if equals}
    return listed | service.fields("environment")


def seconds(parent: Value, key: str, default: float, notes: Notes) -> Number:
    """A duration as Docker writes it; the default if it is missing or not valid."""
    value, text = parent.get(key), parent.text(key)
    if value is None:
        return Number(default, parent.line, False)
    parts = _PART.findall(text[:_LONGEST])
    if parts and "".join(number + unit for number, unit in parts) == text:
        return Number(sum(float(number) * _UNITS[unit] for number, unit in parts), value.line)
    if "$" in text:
        what = f"{key} is '{text}', which is replaced later, so {default:g} s, the default, was checked"
        notes.add(value.line, what, "give the doctor what 'docker compose config' prints", text, WARNING)
    else:
        notes.add(value.line, f"{key} is '{text}'", "give it a duration such as '30s' or '1m30s'", text)
    return Number(default, value.line, False)


def _probe(service: Value, notes: Notes) -> Probe | None:
    check = service.get("healthcheck")
    if check is None:
        return None
    test = check.get("test")
    line = test.line if test is not None else check.line
    timeout = seconds(check, "timeout", DOCKER_TIMEOUT, notes)
    return Probe.of_check(line, " ".join(_words(check, "test")), timeout)
