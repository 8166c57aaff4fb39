"""A workload as the rules see it, whichever orchestrator it is for, and what they find."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from .._config import Settings
from .._record import NamedTuple
from .._remote import visible
from ._source import Value

ERROR, WARNING, OK, UNREADABLE = "error", "warning", "ok", "unreadable"

# They pass signals on to what they start.
_INITS = {"tini", "tini-static", "dumb-init", "catatonit", "docker-init"}
_SHELLS = {"sh", "bash", "dash", "ash", "zsh", "ksh", "busybox"}
# The last of several commands: what is in front of it has ended when it runs.
_SEPARATOR = re.compile(r"&&|\|\||;|\n")
# A pipe or the background, for which the shell stays.
_BESIDE = re.compile(r"\||(?<![>&])&(?!>)")
_OPENING = re.compile(r"^(?:then|else|do)\s+")
_CLOSING = {"", "fi", "done", "esac", "}"}
_SLEEP = re.compile(r"(?<![\w-])sleep[ \t]+([0-9]+(?:\.[0-9]+)?)([smh]?)")
_FACTORS = {"": 1, "s": 1, "m": 60, "h": 3600}
_VARIABLE = "$"
# As gunicorn reads it; neither "unix:" nor "fd://", nor what holds a variable.
_BIND = re.compile(r"(?:tcp://)?(?:\[([0-9a-fA-F:.]+)\]|([\w.-]*))(?::([0-9]+))?")
_URL = re.compile(r"https?://[^\s'\"|)]+")


class Finding(NamedTuple):
    """One thing that was found, or proved.

    :param found: the number or name that the file has, and ``wanted`` what it should be; empty where there is none.
    """

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
        return visible(f"{': '.join(parts)}: {self.text}{f'; {self.cure}.' if self.cure else ''}")


class Number(NamedTuple):
    """A number, where it is written, and whether it is; if not it is the default."""

    value: float
    line: int
    given: bool = True


class Command(NamedTuple):
    """What is started.

    :param shell: a shell stays in front of it.
    """

    line: int
    words: tuple[str, ...]
    shell: bool

    @classmethod
    def of(cls, line: int, words: list[str]) -> Command:
        """Look through an init and ``sh -c``: an ``exec`` makes the shell the program."""
        words = _behind_init(words)
        script = _script(words)
        if script is None:
            return cls(line, tuple(words), False)
        last = _last(script)
        replaced = last.startswith("exec ") and not _BESIDE.search(last)
        return cls(line, split(script), not replaced and "trap " not in script)

    @property
    def server(self) -> str:
        """Which server it starts, where that can be told."""
        words = [word.rpartition("/")[2] for word in self.words]
        if "run" in words and "lifecycle" in words[: words.index("run")]:
            return "lifecycle run"
        if "run" in words and "flask" in words[: words.index("run")]:
            return "flask run"
        return next((word for word in words if word in ("waitress-serve", "gunicorn", "uwsgi")), "")

    @property
    def address(self) -> tuple[str | None, int | None]:
        """The host and port that the application listens on, each ``None`` where that cannot be told."""
        if self.server == "gunicorn":
            return _bound(self.option("--bind", "-b"))
        if self.server not in ("lifecycle run", "flask run"):
            return None, None
        options = _options(self.words[self.words.index("run") + 1 :])
        if options.keys() & {"--listen", "--unix-socket", "--option", "-o"}:
            return None, None
        host = options.get("-h", options.get("--host", "127.0.0.1"))
        port = options.get("-p", options.get("--port", "5000"))
        return None if _VARIABLE in host else host, int(port) if port.isascii() and port.isdigit() else None

    def option(self, *names: str) -> str | None:
        """What an option is given, if it is there once."""
        found = []
        for word, following in zip(self.words, (*self.words[1:], ""), strict=False):
            name, equals, value = word.partition("=")
            if word.startswith("--") and name in names:
                found.append(value if equals else following)
            elif not word.startswith("--") and word[:2] in names:
                found.append(word[2:] or following)
        return found[0] if len(found) == 1 else None


def split(text: str) -> tuple[str, ...]:
    """The words of a shell's script, roughly: quotes that do not match are no matter here."""
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
    """The address that gunicorn's ``--bind`` says; a configuration may have one where it says none."""
    found = _BIND.fullmatch(text) if text else None
    if found is None:
        return None, None
    return found[1] or found[2] or "0.0.0.0", int(found[3] or 8000)


def _script(words: list[str]) -> str | None:
    """What a shell is told to do by ``-c``."""
    if not words or words[0].rpartition("/")[2] not in _SHELLS:
        return None
    for flag, script in itertools.pairwise(words):
        if re.fullmatch(r"-[a-z]*c[a-z]*", flag):
            return script
    return None


def _last(script: str) -> str:
    """The last command of a script, out of what it stands in."""
    parts = [part.strip() for part in _SEPARATOR.split(script.replace("\\\n", " "))]
    while parts and parts[-1] in _CLOSING:
        parts.pop()
    return _OPENING.sub("", parts[-1]) if parts else ""


def _options(words: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for word, following in zip(words, (*words[1:], ""), strict=False):
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found[name] = value if equals else following
        elif word.startswith("-"):
            found[word[:2]] = word[2:] or following
    return found


def find_url(text: str) -> str:
    """The first URL in a text; empty if there is none."""
    found = _URL.search(text)
    return found[0] if found else ""


class Stop(NamedTuple):
    """What is done before the signal: a ``preStop`` hook, or ``ExecStop=``.

    :param way: ``sleep``, ``drain`` (which begins the shutdown itself), ``http``, or ``other``, of an unknown length.
    """

    line: int
    way: str
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


class Probe(NamedTuple):
    """What asks for the health of a workload.

    :param kind: ``liveness``, ``readiness``, ``startup``, or ``health``, which is none of them.
    :param way: ``http``, ``tcp`` or ``other``.
    :param numbers: by their names in Kubernetes.
    """

    kind: str
    line: int
    way: str
    path: Value | None
    port: Value | None
    scheme: str
    numbers: dict[str, Number]

    @classmethod
    def of_check(cls, line: int, text: str, timeout: Number) -> Probe | None:
        """Docker's healthcheck, of which the URL is seen; ``None`` if there is none, or a variable in its place."""
        url = find_url(text)
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            return None
        if not url:
            return None
        path = Value(line, parts.path or "/")
        scheme = parts.scheme.upper()
        return cls("health", line, "http", path, Value(line, port), scheme, {"timeoutSeconds": timeout})

    @property
    def name(self) -> str:
        return "healthcheck" if self.kind == "health" else f"{self.kind}Probe"


class Workload(NamedTuple):
    """One container, service or unit.

    :param limit: how long after the order to stop it is killed.
    :param names: the ports that have a name.
    :param options: other keys of a unit or a service.
    """

    platform: str
    file: str
    subject: str
    line: int
    limit: Number
    limit_key: str
    command: Command | None = None
    stop: Stop | None = None
    probes: tuple[Probe, ...] = ()
    names: Mapping[str, int] = {}
    env: Mapping[str, Value] = {}
    options: Mapping[str, Value] = {}
    serves: bool = True


class Case(NamedTuple):
    """A workload and the application that runs in it.

    :param lane: names the probe at a path, as ``Probes.lane`` does.
    """

    workload: Workload
    settings: Settings
    lane: Callable[[str], str | None]

    def error(self, rule: str, line: int, text: str, cure: str, found: object = "", wanted: object = "") -> Finding:
        return self._finding(ERROR, rule, line, text, cure, found, wanted)

    def warning(self, rule: str, line: int, text: str, cure: str, found: object = "", wanted: object = "") -> Finding:
        return self._finding(WARNING, rule, line, text, cure, found, wanted)

    def _finding(
        self, severity: str, rule: str, line: int, text: str, cure: str, found: object, wanted: object
    ) -> Finding:
        workload = self.workload
        return Finding(workload.file, line, severity, rule, workload.subject, text, cure, _shown(found), _shown(wanted))

    def http_probes(self) -> Iterator[tuple[Probe, str | None]]:
        """The probes that ask by HTTP, each with the name of what it asks for."""
        for probe in self.workload.probes:
            if probe.way == "http":
                path = probe.path.text() if probe.path else "/"
                yield probe, self.lane(path.partition("?")[0])


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Notes:
    """What is wrong with the form of a file, found while it is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.subject = ""
        self.findings: list[Finding] = []

    def add(self, line: int, text: str, cure: str, found: str = "", severity: str = ERROR) -> None:
        self.findings.append(Finding(self.file, line, severity, "form", self.subject, text, cure, found))

    def number(self, parent: Value, key: str, default: float) -> Number:
        """A whole number, as Kubernetes wants it."""
        value = parent.get(key)
        if value is None:
            return Number(default, parent.line, False)
        if not isinstance(value.data, int) or isinstance(value.data, bool) or not 0 <= value.data < 2**31:
            text = value.text() or "no number"
            self.add(value.line, f"{key} is '{text}'", "give it a whole number of seconds or times", text)
            return Number(default, value.line, False)
        return Number(float(value.data), value.line)

    def words(self, value: Value | None, key: str) -> list[str]:
        """A list of words."""
        if value is None:
            return []
        if not isinstance(value.data, list) or any(isinstance(word.data, (dict, list)) for word in value.data):
            self.add(value.line, f"{key} is no list of texts", "write it as ['program', 'argument']")
            return []
        return [word.text() for word in value.data]
