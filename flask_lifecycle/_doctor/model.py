"""The model of a workload, whatever its orchestrator, and the findings of the rules."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from .._config import Settings
from .._core.text import visible
from .source import UnreadableError, Value

T = TypeVar("T")

ERROR, WARNING, OK, UNREADABLE = "error", "warning", "ok", "unreadable"

# Characters of one text of a file that are printed.
_LONGEST = 500
# They forward signals to their child.
_INITS = {"tini", "tini-static", "dumb-init", "catatonit", "docker-init"}
_SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}
# Between commands; only the last one runs when the signal comes.
_SEPARATOR = re.compile(r"&&|\|\||;|\n")
# A pipe or the background: the shell stays.
_BESIDE = re.compile(r"\||(?<![>&])&(?!>)")
_OPENING = re.compile(r"^(?:then|else|do)\s+")
_CLOSING = {"", "fi", "done", "esac", "}"}
_SLEEP = re.compile(r"(?<![\w-])sleep[ \t]+([0-9]+(?:\.[0-9]+)?)([smh]?)")
_FACTORS = {"": 1, "s": 1, "m": 60, "h": 3600}
_VARIABLE = "$"
# As gunicorn reads it; neither "unix:" nor "fd://" nor a variable.
_BIND = re.compile(r"(?:tcp://)?(?:\[([0-9a-fA-F:.]+)\]|([\w.-]*))(?::([0-9]{1,5}))?")
_SERVERS = re.compile(r"flask|lifecycle|gunicorn|waitress-serve|uwsgi")
_URL = re.compile(r"https?://[^\s'\"|)]+")


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One finding of a rule. ``found`` is what the file has and ``wanted`` what it should have; each may be empty."""

    file: str
    line: int
    severity: str
    rule: str
    subject: str
    text: str
    cure: str = ""
    found: str = ""
    wanted: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        parts = [where, self.severity, *([self.subject] if self.subject else [])]
        text = f"{visible(': '.join(parts), _LONGEST)}: {visible(self.text, _LONGEST)}"
        return f"{text}; {visible(self.cure, _LONGEST)}." if self.cure else text


@dataclasses.dataclass(frozen=True, slots=True)
class Number:
    """A number and its line; ``given`` is false for a default."""

    value: float
    line: int
    given: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """The command of a workload; ``shell``: a shell stays as its parent."""

    line: int
    words: tuple[str, ...]
    shell: bool

    @classmethod
    def of(cls, line: int, words: list[str]) -> Command:
        """Skip an init and ``sh -c``; ``exec`` replaces the shell by the program."""
        words = _behind_init(words)
        script = _script(words)
        if script is None:
            return cls(line, tuple(words), False)
        last = _last(script)
        replaced = last.startswith("exec ") and not _BESIDE.search(last)
        return cls(line, split(script), not replaced and "trap " not in script)

    @property
    def server(self) -> str:
        """The server that it starts; empty if it is unknown."""
        words = [word.rpartition("/")[2] for word in self.words]
        if "run" in words and "lifecycle" in words[: words.index("run")]:
            return "lifecycle run"
        if "run" in words and "flask" in words[: words.index("run")]:
            return "flask run"
        return next((word for word in words if word in ("waitress-serve", "gunicorn", "uwsgi")), "")

    @property
    def address(self) -> tuple[str | None, int | None]:
        """The host and port that the application listens on, each ``None`` if it is unknown."""
        if self.server == "gunicorn":
            return _bound(self.option("--bind", "-b"))
        if self.server not in ("lifecycle run", "flask run"):
            return None, None
        options = dict(_options(self.words[self.words.index("run") + 1 :]))
        if options.keys() & {"--listen", "--unix-socket", "--option", "-o"}:
            return None, None
        host = options.get("-h", options.get("--host", "127.0.0.1"))
        port = options.get("-p", options.get("--port", "5000"))
        return None if _VARIABLE in host else host, int(port) if re.fullmatch("[0-9]{1,5}", port) else None

    def option(self, *names: str) -> str | None:
        """The value of an option, if the command has it once."""
        found = [value for name, value in _options(self.words) if name in names]
        return found[0] if len(found) == 1 else None


def split(text: str) -> tuple[str, ...]:
    """The words of a shell script, roughly: unmatched quotes are ignored."""
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return tuple(text.split())


def _behind_init(words: list[str]) -> list[str]:
    if not words or words[0].rpartition("/")[2] not in _INITS:
        return words
    if "--" in words:
        return words[words.index("--") + 1 :]
    return list(itertools.dropwhile(lambda word: word.startswith("-"), words[1:]))


def _bound(text: str | None) -> tuple[str | None, int | None]:
    """The address of gunicorn's ``--bind``; without one the configuration may have it."""
    found = _BIND.fullmatch(text) if text else None
    if found is None:
        return None, None
    return found[1] or found[2] or "0.0.0.0", int(found[3] or 8000)


def _script(words: list[str]) -> str | None:
    """The script of a shell's ``-c``."""
    if not words or words[0].rpartition("/")[2] not in _SHELLS:
        return None
    for flag, script in itertools.pairwise(words):
        if "c" in flag and re.fullmatch(r"-[a-z]+", flag):
            return script
    return None


def _last(script: str) -> str:
    """The last command of a script, without the keywords around it."""
    parts = [part.strip() for part in _SEPARATOR.split(script.replace("\\\n", " "))]
    while parts and parts[-1] in _CLOSING:
        parts.pop()
    return _OPENING.sub("", parts[-1]) if parts else ""


def _options(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The options with what follows them, as each may have a value."""
    for word, following in zip(words, (*words[1:], ""), strict=False):
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            yield name, value if equals else following
        elif word.startswith("-"):
            yield word[:2], word[2:] or following


def find_url(text: str) -> SplitResult | None:
    """The first URL in a text; ``None`` without one, or if it is not valid."""
    found = _URL.search(text)
    with contextlib.suppress(ValueError):  # a bracket too few
        return urlsplit(found[0]) if found else None
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """The hook before the signal: ``preStop`` or ``ExecStop=``."""

    line: int
    way: str  # sleep, drain (which begins the shutdown itself), http, or other, of an unknown duration
    seconds: float = 0.0
    path: str = ""

    @classmethod
    def of(cls, line: int, words: list[str]) -> Stop:
        text = " ".join(words)
        if re.search(r"lifecycle[ /]drain", text):
            return cls(line, "drain")
        sleeps = _SLEEP.findall(text)
        if not sleeps:
            return cls(line, "other")
        return cls(line, "sleep", sum(float(number) * _FACTORS[unit] for number, unit in sleeps))


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """A probe of a workload."""

    kind: str  # liveness, readiness, startup, or health for Docker's healthcheck
    line: int
    way: str  # http, tcp or other
    path: Value
    port: Value
    scheme: str
    numbers: dict[str, Number]  # by their names in Kubernetes

    @classmethod
    def of_check(cls, line: int, text: str, timeout: Number) -> Probe | None:
        """Docker's healthcheck by its URL; ``None`` without a URL, or with a variable in it."""
        parts = find_url(text)
        if parts is None:
            return None
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:  # a variable
            return None
        path = Value(line, parts.path or "/")
        scheme = parts.scheme.upper()
        return cls("health", line, "http", path, Value(line, port), scheme, {"timeoutSeconds": timeout})

    @property
    def name(self) -> str:
        return "healthcheck" if self.kind == "health" else f"{self.kind}Probe"


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """One container, service or unit."""

    platform: str
    file: str
    subject: str
    line: int
    limit: Number  # seconds from the stop signal to the kill
    limit_key: str
    command: Command | None = None
    stop: Stop | None = None
    probes: tuple[Probe, ...] = ()
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)  # the named ports
    env: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Value] = dataclasses.field(default_factory=dict)  # other keys of a unit or a service
    serves: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A workload, and the application that runs in it."""

    workload: Workload
    settings: Settings
    group_at: Callable[[str], str | None]

    def error(self, rule: str, line: int, text: str, cure: str, found: object = "", wanted: object = "") -> Finding:
        return self.finding(ERROR, rule, line, text, cure, found, wanted)

    def warning(self, rule: str, line: int, text: str, cure: str, found: object = "", wanted: object = "") -> Finding:
        return self.finding(WARNING, rule, line, text, cure, found, wanted)

    def finding(
        self, severity: str, rule: str, line: int, text: str, cure: str, found: object, wanted: object
    ) -> Finding:
        workload = self.workload
        return Finding(workload.file, line, severity, rule, workload.subject, text, cure, _shown(found), _shown(wanted))

    def http_probes(self) -> Iterator[tuple[Probe, str | None]]:
        """The HTTP probes, each with the group that it asks."""
        for probe in self.workload.probes:
            if probe.way == "http":
                yield probe, self.group_at(probe.path.text().partition("?")[0])


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Notes:
    """The findings about the form of a file, and which of its workloads is the application.

    :param name: of the container, service or stage; by default those that look like the application.
    :param group_at: the group of checks that a path asks, ``None`` for any other path.
    """

    def __init__(self, file: str, name: str | None, group_at: Callable[[str], str | None]) -> None:
        self.file, self.name = file, name
        self.subject = ""
        self.findings: list[Finding] = []
        self._group_at = group_at

    def add(self, line: int, text: str, cure: str, found: str = "", severity: str = ERROR) -> None:
        self.findings.append(Finding(self.file, line, severity, "form", self.subject, text, cure, found))

    def unreadable(self, error: UnreadableError) -> None:
        self.findings.append(Finding(self.file, error.line, UNREADABLE, "file", "", str(error)))

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """An error within becomes a finding, and hides nothing after it."""
        try:
            yield
        except UnreadableError as error:
            self.unreadable(error)

    def choose(
        self,
        kind: str,
        line: int,
        found: list[T],
        name_of: Callable[[T], str],
        signs: Callable[[T], tuple[str, list[str]]],
    ) -> list[T]:
        """The application among several: by its name, or the only one, or those that look like it.

        :param signs: the words of its commands, and the paths of its probes.
        """
        if self.name is not None:
            return [each for each in found if name_of(each) == self.name]
        if len(found) <= 1:
            return found
        chosen = []
        for each in found:
            with self.reading():
                words, paths = signs(each)
                if _SERVERS.search(words) or any(self._group_at(path.partition("?")[0]) for path in paths if path):
                    chosen.append(each)
        if not chosen:
            names = ", ".join(f"'{name_of(each)}'" for each in found)
            text = f"it is not clear which {kind} is the application ({names}), so none was checked"
            self.add(line, text, "name it with --name", severity=WARNING)
        return chosen

    def number(self, parent: Value, key: str, default: float) -> Number:
        """A whole number, as Kubernetes requires."""
        value = parent.get(key)
        if value is None:
            return Number(default, parent.line, False)
        if not isinstance(value.data, int) or isinstance(value.data, bool) or not 0 <= value.data < 2**31:
            text = value.text() or "not a number"
            self.add(value.line, f"{key} is '{text}'", "give it a whole number of seconds or times", text)
            return Number(default, value.line, False)
        return Number(float(value.data), value.line)

    def words(self, value: Value | None, key: str) -> list[str]:
        if value is None:
            return []
        if not isinstance(value.data, list) or any(isinstance(word.data, (dict, list)) for word in value.data):
            self.add(value.line, f"{key} is not a list of texts", "write it as ['program', 'argument']")
            return []
        return [word.text() for word in value.data]
