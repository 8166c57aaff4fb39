"""Docker: compose files, and Dockerfiles, of which the last stage counts with what it inherits from the stages below.

Unlike in a Dockerfile, a command of a compose file that is one text is split into words and gets no shell.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from .model import WARNING, Command, Notes, Number, Probe, Workload, find_url, split
from .source import UnreadableError, Value, joined

# Docker's own defaults.
_GRACE = 10.0
_TIMEOUT = 30.0
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|us|µs|ns|m|s)")
_LONGEST = 100  # characters of a duration
_NAME = re.compile(r"(?i)(?:docker|container)file(?:\..+)?|.+\.(?:docker|container)file")
_FIRST = re.compile(r"(?i)(?:FROM|ARG)\s+\S")
_HEREDOC = re.compile(r"<<-?(['\"]?)([A-Za-z_]\w*)\1")
_FLAG = re.compile(r"(--[a-z-]+)=(\S+)\s*")
# Of a command in shell form; SHELL sets another one, which changes nothing here.
_SHELL = ["/bin/sh", "-c"]


# -- compose files ------------------------------------------------------------------------------------------------


def is_compose(document: Value) -> bool:
    return bool(document.fields("services"))


def read_compose(document: Value, notes: Notes) -> Iterator[Workload]:
    """The services that are the application."""
    services = document.fields("services")
    for key in notes.choose("service", document.line, list(services), str, lambda key: _signs(services[key])):
        with notes.reading():
            yield _service(key, services[key], notes)


def _signs(service: Value) -> tuple[str, list[str]]:
    words = " ".join(" ".join(_words(service, key)) for key in ("entrypoint", "command"))
    url = find_url(" ".join(_words(service, "healthcheck", "test")))
    return words, [] if url is None else [url.path]


def _words(service: Value, *keys: str) -> list[str]:
    value = service.get(*keys)
    if value is not None and isinstance(value.data, list):
        return [word.text() for word in value.data]
    return list(split(service.text(*keys)))


def _service(name: str, service: Value, notes: Notes) -> Workload:
    notes.subject = f"service '{name}'"
    given = service.get("entrypoint") or service.get("command")
    words = [*_words(service, "entrypoint"), *_words(service, "command")]
    probe = _service_probe(service, notes)
    return Workload(
        "compose", notes.file, notes.subject, service.line,
        _seconds(service, "stop_grace_period", _GRACE, notes), "stop_grace_period",
        Command.of(given.line, words) if given is not None and words else None,
        probes=(probe,) if probe is not None else (), env=_service_environment(service), options=service.fields(),
    )  # fmt: skip


def _service_environment(service: Value) -> dict[str, Value]:
    pairs = [(entry.line, *entry.text().partition("=")) for entry in service.entries("environment")]
    listed = {key: Value(line, value) for line, key, equals, value in pairs if equals}
    return listed | service.fields("environment")


def _seconds(parent: Value, key: str, default: float, notes: Notes) -> Number:
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


def _service_probe(service: Value, notes: Notes) -> Probe | None:
    check = service.get("healthcheck")
    if check is None:
        return None
    test = check.get("test")
    line = test.line if test is not None else check.line
    timeout = _seconds(check, "timeout", _TIMEOUT, notes)
    return Probe.of_check(line, " ".join(_words(check, "test")), timeout)


# -- Dockerfiles --------------------------------------------------------------------------------------------------


class _Stage:
    """A stage, as far as it was read."""

    def __init__(self, line: int, name: str, base: _Stage | None) -> None:
        self.line = line
        self.label = f"stage '{name}'" if name else "image"
        self.commands: dict[str, Value] = dict(base.commands) if base else {}
        self.values: dict[str, Value] = dict(base.values) if base else {}
        self.env: dict[str, Value] = dict(base.env) if base else {}
        self._own_command = False

    def add(self, keyword: str, value: Value, notes: Notes) -> None:
        if keyword == "ENV":
            self.env.update(_image_environment(value))
        elif keyword in ("STOPSIGNAL", "EXPOSE", "HEALTHCHECK"):
            self.values[keyword] = value
        elif keyword in ("CMD", "ENTRYPOINT"):
            self.commands[keyword] = Value(value.line, _argv(keyword, value, notes))
            if keyword == "CMD":
                self._own_command = True
            elif not self._own_command:
                self.commands.pop("CMD", None)  # a new entry point resets the command of the image below


def is_dockerfile(file: str, text: str) -> bool:
    _, first = next(joined(text, "#"), (0, ""))
    return bool(_NAME.fullmatch(file.rpartition("/")[2]) or _FIRST.match(first))


def read_dockerfile(text: str, notes: Notes) -> Workload:
    """The image that is built: of the stage that is named, or of the last one."""
    stages: dict[str, _Stage] = {}  # the named stages
    stage: _Stage | None = None
    for line, keyword, rest in _instructions(text):
        if keyword == "FROM":
            stage = _begun(line, rest, stages)
            notes.subject = stage.label
        elif stage is not None:
            stage.add(keyword, Value(line, rest), notes)
        elif keyword != "ARG":
            raise UnreadableError(line, f"'{keyword}' is before the first FROM, where only ARG is allowed.")
    if stage is None:
        raise UnreadableError(0, "The Dockerfile has no FROM, so there is no image to check.")
    return _image(stages.get((notes.name or "").lower(), stage), notes)


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Each instruction as its line, its name and the rest."""
    lines = joined(text, "#")
    for begun, line in lines:
        keyword, *others = line.split(None, 1)
        rest = others[0] if others else ""
        if keyword.upper() in ("RUN", "COPY", "ADD"):
            for _, mark in _HEREDOC.findall(rest):
                if all(inner != mark for _, inner in lines):  # skips it up to its end
                    raise UnreadableError(begun, f"The here-document that begins here has no end '{mark}'.")
        yield begun, keyword.upper(), rest


def _begun(line: int, rest: str, stages: dict[str, _Stage]) -> _Stage:
    words = [word for word in rest.split() if not word.startswith("--")] or [""]
    name = words[2] if len(words) > 2 and words[1].upper() == "AS" else ""
    stage = _Stage(line, name, stages.get(words[0].lower()))
    if name:
        stages[name.lower()] = stage
    return stage


def _argv(keyword: str, value: Value, notes: Notes) -> list[str]:
    """The words of a command in exec form, or those of the shell that runs it."""
    text = value.text()
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        words = None
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        return words
    if text.startswith("["):
        cure = 'write it as ["program", "argument"], with double quotes'
        notes.add(value.line, f"{keyword} looks like the exec form but is not JSON, so a shell runs it", cure, text)
        return []
    return [*_SHELL, text]


def _image_environment(value: Value) -> dict[str, Value]:
    """``ENV name=value ...``, or ``ENV name value``, without values that contain a variable."""
    words = split(str(value.data))
    pairs = [word.partition("=")[::2] for word in words]
    if words and "=" not in words[0]:
        pairs = [(words[0], " ".join(words[1:]))]
    return {key: Value(value.line, text) for key, text in pairs if "$" not in text}


def _image(stage: _Stage, notes: Notes) -> Workload:
    notes.subject = stage.label
    command, probe = _command(stage), _image_probe(stage, notes)
    line = command.line if command is not None else stage.line
    options = {}
    if "EXPOSE" in stage.values:
        options["ports"] = stage.values["EXPOSE"]
    if "STOPSIGNAL" in stage.values and "$" not in stage.values["STOPSIGNAL"].text():
        options["STOPSIGNAL"] = stage.values["STOPSIGNAL"]
    return Workload(
        "docker", notes.file, notes.subject, line, Number(math.inf, line, False), "--stop-timeout", command,
        probes=(probe,) if probe is not None else (), env=stage.env, options=options,
    )  # fmt: skip


def _command(stage: _Stage) -> Command | None:
    entry, command = stage.commands.get("ENTRYPOINT"), stage.commands.get("CMD")
    if entry is not None and entry.data[:2] == _SHELL:
        command = None  # a shell form ignores CMD
    parts = [part for part in (entry, command) if part is not None]
    words = [word for part in parts for word in part.data]
    return Command.of(parts[-1].line, words) if words else None


def _image_probe(stage: _Stage, notes: Notes) -> Probe | None:
    check = stage.values.get("HEALTHCHECK")
    if check is None:
        return None
    text, begin, flags = check.text(), 0, dict[str, Value]()
    while flag := _FLAG.match(text, begin):
        begin = flag.end()
        flags[flag[1]] = Value(check.line, flag[2])
    timeout = _seconds(Value(check.line, flags), "--timeout", _TIMEOUT, notes)
    return Probe.of_check(check.line, text[begin:], timeout)
