"""The settings: every ``LIFECYCLE_*`` key with its default, its unit and its rule.

They are read once, in ``init_app``, into one frozen :class:`Settings`. Whatever is wrong with them is said
there, in one sentence that names the key and the cure, before a single request is served.
"""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "LIFECYCLE_"
# The delay that ends when it may.
AUTO = "auto"

# Where the workers' files are, in prometheus_client's multiprocess mode: a variable of the environment.
MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
# Where the probe listener answers scrapes: the path that Prometheus asks unless it is told another.
METRICS_PATH = "/metrics"

# The orchestrator's default patience is 30 s (Kubernetes' terminationGracePeriodSeconds); the rest is room for preStop.
GRACE_PERIOD = 25.0
# Five seconds is what endpoint removal usually takes to reach every kube-proxy; outside a cluster nobody has to notice.
KUBERNETES_DELAY = 5.0
# The failureThreshold of Kubernetes and the fall of HAProxy.
DELAY_PROBES = 3
# Longer than a balancer takes from hearing that an instance is not ready to no longer sending to it.
DELAY_QUIET = 1.0
# Three probes of a balancer that asks each four seconds, and the quiet; of the default grace period it leaves ten.
DELAY_MAX = 15.0
HOOK_RESERVE = 5.0
KEEPALIVE_LINGER = 0.25
# Twice what a check has by default, and a second for the rest.
PROBE_TIMEOUT = 5.0

# The default of Kubernetes' terminationMessagePath, of which it shows 4,096 bytes.
TERMINATION_LOG = "/dev/termination-log"
# Where the token can stop the process: 16 random letters and digits are 95 bits, 16 hexadecimal digits still 64.
SHORTEST_TOKEN = 16

PATHS = {
    "healthcheck": "/healthcheck",
    "livez": "/livez",
    "readyz": "/readyz",
    "startupz": "/startupz",
}

# Both are compiled when they are needed, as they rarely are. Left out of paths is what means something in URLs or in
# Flask's rules, and what would have to be quoted.
_PATH = r"/[!$&-;=@-Z\[\]_a-z|~]*"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2

_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


class Settings:
    """What the ``LIFECYCLE_*`` keys of one application say. Times are seconds.

    Read once, and frozen. A plain class whose attributes are the defaults, because the class statement of a named tuple
    compiles each annotation, and for so many that takes as long as the rest of this module.
    """

    grace_period: float = GRACE_PERIOD
    shutdown_delay: float | str = 0.0
    delay_probes: int = DELAY_PROBES
    delay_quiet: float = DELAY_QUIET
    delay_min: float = 0.0
    delay_max: float = DELAY_MAX
    hook_reserve: float = HOOK_RESERVE
    keepalive_linger: float = KEEPALIVE_LINGER
    signals: tuple[signal.Signals, ...] | None = None
    exit: str = "code"
    ready: str = "auto"
    drain_policy: str = "auto"
    probe_host: str = "0.0.0.0"
    probe_port: int | None = None
    details: str = "never"
    token: str | None = None
    url_prefix: str = ""
    paths: Mapping[str, str] = PATHS
    probe_timeout: float = PROBE_TIMEOUT
    status_codes: Mapping[str, int] = {}
    headers: Mapping[str, str] = {}
    readiness_on_drain: str = "fail"
    case_insensitive: bool = False
    log_probes: bool = False
    self_test: bool = True
    report_file: str | None = None
    log_remote_addr: bool = False
    stop_on_crash: tuple[str, ...] = ()
    control_dir: str | None = None
    stuck_after: float | None = None
    metrics: bool = False

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in self.__annotations__:
                raise TypeError(f"There is no setting '{name}'.")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Settings are read once, so '{name}' cannot be set; make others.")

    def _asdict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__annotations__}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and self._asdict() == other._asdict()

    __hash__ = None  # type: ignore[assignment]  # some of them are mappings

    def __repr__(self) -> str:
        shown = self._asdict() | {"token": self.token and "***"}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> Settings:
        """Read and validate the keys of a Flask configuration.

        :raises ValueError: a value is out of range, or a ``LIFECYCLE_*`` key is unknown.
        :raises TypeError: a value is of the wrong type.
        """
        given = {k: v for k, v in config.items() if isinstance(k, str) and k.startswith(PREFIX)}
        for key in given:
            if key not in KEYS:
                raise ValueError(_unknown(key))
        values = {KEYS[key].attribute: KEYS[key].read(key, value) for key, value in given.items()}
        values.setdefault("shutdown_delay", default_delay(os.environ))
        values.setdefault("report_file", default_report_file(os.environ))
        grace: float = values.setdefault("grace_period", GRACE_PERIOD)
        values.setdefault("hook_reserve", min(HOOK_RESERVE, grace / 5))
        longest: float = values.setdefault("delay_max", min(DELAY_MAX, grace * 3 / 5))
        values.setdefault("delay_min", min(default_delay(os.environ), longest))
        settings = cls(**values)
        settings._check_budget()
        settings._check_auto()
        settings._check_token()
        settings._check_case()
        settings._check_metrics(os.environ)
        return settings

    def _check_budget(self) -> None:
        """Refuse times that leave no moment in which a request could be drained."""
        if self.longest_delay + self.hook_reserve >= self.grace_period:
            key = "LIFECYCLE_DELAY_MAX" if self.shutdown_delay == AUTO else "LIFECYCLE_SHUTDOWN_DELAY"
            raise ValueError(
                f"'{key}' ({self.longest_delay:g} s) and 'LIFECYCLE_HOOK_RESERVE'"
                f" ({self.hook_reserve:g} s) leave nothing of 'LIFECYCLE_GRACE_PERIOD'"
                f" ({self.grace_period:g} s) to drain in; raise the grace period or lower one of the two."
            )

    def _check_auto(self) -> None:
        """Refuse what an automatic delay would always take its maximum with."""
        if self.shutdown_delay != AUTO:
            return
        for key, seconds in (("LIFECYCLE_DELAY_MIN", self.delay_min), ("LIFECYCLE_DELAY_QUIET", self.delay_quiet)):
            if seconds > self.delay_max:
                raise ValueError(
                    f"'{key}' ({seconds:g} s) is more than 'LIFECYCLE_DELAY_MAX' ({self.delay_max:g} s); lower it,"
                    " or raise the maximum."
                )
        if self.readiness_on_drain == "keep":
            raise ValueError(
                "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until probers have been told, but"
                " 'LIFECYCLE_READINESS_ON_DRAIN' is 'keep', by which nobody is; set the delay to a number of seconds."
            )
        if self.status_codes.get("fail", 503) < 400:
            raise ValueError(
                "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until probers have been told, but"
                f" 'LIFECYCLE_STATUS_CODES' tells them with {self.status_codes['fail']}, which says that all is well;"
                " give 'fail' a status from 400 on."
            )

    @property
    def longest_delay(self) -> float:
        """How long the delay may take."""
        return self.delay_max if isinstance(self.shutdown_delay, str) else self.shutdown_delay

    def _check_token(self) -> None:
        if self.probe_port is not None and self.token and len(self.token) < SHORTEST_TOKEN:
            raise ValueError(
                f"'LIFECYCLE_TOKEN' has fewer than {SHORTEST_TOKEN} characters, and stops the process for whoever"
                " guesses it and reaches the probe listener; set it to a long secret."
            )
        if self.details == "token" and not self.token:
            raise ValueError(
                "'LIFECYCLE_DETAILS' is 'token' but 'LIFECYCLE_TOKEN' is not set; set it to a long secret."
            )

    def _check_case(self) -> None:
        """Refuse paths that differ in their case alone, where that makes no difference."""
        if self.case_insensitive and len({path.lower() for path in self.paths.values()}) < len(self.paths):
            raise ValueError(
                "'LIFECYCLE_PATHS' gives two probes paths that differ in their case alone, which"
                " 'LIFECYCLE_CASE_INSENSITIVE' takes for the same; each needs its own."
            )

    def _check_metrics(self, environ: Mapping[str, str]) -> None:
        """Refuse metrics that nobody could read."""
        if not self.metrics:
            return
        if self.probe_port is None and MULTIPROC_DIR not in environ:
            raise ValueError(
                "'LIFECYCLE_METRICS' is True but 'LIFECYCLE_PROBE_PORT' is not set, and only the probe listener serves"
                " metrics; set it to a port, or register flask_lifecycle.metrics.LifecycleCollector in a registry that"
                " you serve."
            )
        for name, path in self.probe_paths().items():
            if path.lower() == METRICS_PATH:
                raise ValueError(
                    f"'LIFECYCLE_PATHS' gives '{name}' the path '{path}', where 'LIFECYCLE_METRICS' is served; give it"
                    " another."
                )

    def probe_paths(self) -> dict[str, str]:
        """The full path of each probe within the application, by the probe's name."""
        return {name: self.url_prefix + path for name, path in self.paths.items()}


class Key:
    """One row of the table: where a key goes, what it defaults to (as the documents say it) and how it is read."""

    def __init__(self, attribute: str, default: str, read: Callable[[str, Any], Any]) -> None:
        self.attribute = attribute
        self.default = default
        self.read = read


def default_delay(environ: Mapping[str, str]) -> float:
    """The delay when none is configured: something must notice us leave only inside a cluster."""
    return KUBERNETES_DELAY if environ.get("KUBERNETES_SERVICE_HOST") else 0.0


def default_report_file(environ: Mapping[str, str]) -> str | None:
    """Where Kubernetes looks for what a container says last; it is written only if it is there."""
    return TERMINATION_LOG if environ.get("KUBERNETES_SERVICE_HOST") else None


def parse_signal(value: Any) -> signal.Signals:
    """A signal by number or by name (``"SIGTERM"``, ``"TERM"``).

    :raises ValueError: there is no such signal, or a process cannot catch it.
    """
    found: signal.Signals | None = None
    if isinstance(value, str):
        name = value.strip().upper()
        found = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
    elif isinstance(value, int) and not isinstance(value, bool) and value in set(signal.Signals):
        found = signal.Signals(value)
    if found is None:
        raise ValueError(f"'LIFECYCLE_SIGNALS' names {value!r}, which is no signal here; use names such as 'SIGTERM'.")
    if found in _UNCATCHABLE:
        raise ValueError(f"'LIFECYCLE_SIGNALS' names '{found.name}', which no process can catch; leave it out.")
    return found


def _unknown(key: str) -> str:
    import difflib  # for this sentence alone

    near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
    return f"'{key}' is not a setting of flask_lifecycle; did you mean '{near}'?"


def _seconds(*, zero: bool) -> Callable[[str, Any], float]:
    bound = "zero or more" if zero else "more than zero"

    def read(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"'{key}' must be a number of seconds, not {value!r}.")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ValueError(f"'{key}' must be a finite number of seconds, {bound}, not {value!r}.")
        return float(value)

    return read


def _delay(key: str, value: Any) -> float | str:
    if isinstance(value, str):
        if value != AUTO:
            raise ValueError(f"'{key}' must be a number of seconds or 'auto', not {value!r}.")
        return value
    return _seconds(zero=True)(key, value)


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{key}' must be a whole number from 1 on, not {value!r}.")
    return value


def _optional(read: Callable[[str, Any], float]) -> Callable[[str, Any], float | None]:
    return lambda key, value: None if value is None else read(key, value)


def _choice(*options: str) -> Callable[[str, Any], str]:
    def read(key: str, value: Any) -> str:
        if value not in options:
            listed = ", ".join(f"'{option}'" for option in options)
            raise ValueError(f"'{key}' must be one of {listed}, not {value!r}.")
        return str(value)

    return read


def _signals(key: str, value: Any) -> tuple[signal.Signals, ...] | None:
    if value is None:
        return None
    if isinstance(value, (str, int)):
        value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(f"'{key}' must be a list of signal names or numbers, not {value!r}.")
    return tuple(dict.fromkeys(parse_signal(item) for item in value))


def _host(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"'{key}' must be an address to listen on, such as '0.0.0.0' or '::', not {value!r}.")
    return value


def _port(key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"'{key}' must be a port from 0 (any free one) to 65535, or None, not {value!r}.")
    return value


def _token(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"'{key}' must be a string or None, not a {type(value).__name__}.")
    if value and (value != value.strip() or not value.isprintable()):
        raise ValueError(
            f"'{key}' has a blank around it or a line break in it; leave it out, as no header can hold it."
        )
    return value or None


def read_path(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(_PATH, value) or value.rstrip("/") == "":
        raise ValueError(f"'{key}' must hold paths such as '/livez', not {value!r}.")
    return value.rstrip("/")


def _prefix(key: str, value: Any) -> str:
    return "" if value in ("", None, "/") else read_path(key, value)


def _paths(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"'{key}' must be a mapping from a probe to its path, not {value!r}.")
    for name in value:
        if name not in PATHS:
            raise ValueError(f"'{key}' names the probe {name!r}; the probes are {', '.join(map(repr, PATHS))}.")
    paths = PATHS | {name: read_path(key, path) for name, path in value.items()}
    if len(set(paths.values())) < len(paths):
        raise ValueError(f"'{key}' gives two probes the same path; each needs its own.")
    return paths


def _directory(key: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise TypeError(f"'{key}' must be the path of a directory or None, not {value!r}.")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"'{key}' must be True or False, not {value!r}.")
    return value


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(patterns, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in patterns):
        raise TypeError(
            f"'{key}' must be a list of patterns of thread names such as ['MainThread', 'consumer-*'], not {value!r}."
        )
    if "" in patterns:
        raise ValueError(f"'{key}' holds an empty pattern, which no thread has for a name; use '*' for all.")
    return tuple(patterns)


def read_status_codes(key: str, value: Any) -> dict[str, int]:
    """A mapping from ``pass``, ``warn`` and ``fail`` to HTTP status codes."""
    if not isinstance(value, Mapping):
        raise TypeError(f"'{key}' must be a mapping such as {{'fail': 500}}, not {value!r}.")
    for status, code in value.items():
        if status not in ("pass", "warn", "fail"):
            raise ValueError(f"'{key}' names the status {status!r}; the statuses are 'pass', 'warn' and 'fail'.")
        if isinstance(code, bool) or not isinstance(code, int) or not 200 <= code <= 599:
            raise ValueError(f"'{key}' must give '{status}' an HTTP status from 200 to 599, not {code!r}.")
    return dict(value)


def read_headers(key: str, value: Any) -> dict[str, str]:
    """A mapping from the names of headers to their values."""
    if not isinstance(value, Mapping):
        raise TypeError(f"'{key}' must be a mapping from header names to strings, not {value!r}.")
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(_TOKEN, name):
            raise ValueError(f"'{key}' names the header {name!r}, which is no header name; use one such as 'X-Node'.")
        if not isinstance(text, str) or not text.isprintable() or not text.isascii():
            raise ValueError(f"'{key}' must give '{name}' one line of printable ASCII, not {text!r}.")
        if name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise ValueError(f"'{key}' names the header '{name}', which is the server's to set; leave it out.")
    return dict(value)


def _report_file(key: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not (path := os.fspath(value)) or not isinstance(path, str):
        raise TypeError(f"'{key}' must be the path of a file or None, not {value!r}.")
    path = os.path.abspath(path)  # of the directory that the process is in now
    if not os.path.isdir(os.path.dirname(path)) or os.path.isdir(path):
        raise ValueError(
            f"'{key}' names '{path}', which is no file in a directory that exists; create it, or name another."
        )
    return path


_DELAY = "5.0 if KUBERNETES_SERVICE_HOST is set, else 0.0"

KEYS: dict[str, Key] = {
    "LIFECYCLE_GRACE_PERIOD": Key("grace_period", "25.0", _seconds(zero=False)),
    "LIFECYCLE_SHUTDOWN_DELAY": Key("shutdown_delay", _DELAY, _delay),
    "LIFECYCLE_DELAY_PROBES": Key("delay_probes", "3", _count),
    "LIFECYCLE_DELAY_QUIET": Key("delay_quiet", "1.0", _seconds(zero=True)),
    "LIFECYCLE_DELAY_MIN": Key("delay_min", _DELAY, _seconds(zero=True)),
    "LIFECYCLE_DELAY_MAX": Key(
        "delay_max", "the smaller of 15.0 and three fifths of the grace period", _seconds(zero=False)
    ),
    "LIFECYCLE_HOOK_RESERVE": Key(
        "hook_reserve", "the smaller of 5.0 and a fifth of the grace period", _seconds(zero=True)
    ),
    "LIFECYCLE_KEEPALIVE_LINGER": Key("keepalive_linger", "0.25", _seconds(zero=True)),
    "LIFECYCLE_SIGNALS": Key(
        "signals", "SIGTERM on init_app; SIGTERM and SIGINT under run and under flask run", _signals
    ),
    "LIFECYCLE_EXIT": Key("exit", '"code"', _choice("code", "signal")),
    "LIFECYCLE_READY": Key("ready", '"auto"', _choice("auto", "manual")),
    "LIFECYCLE_DRAIN_POLICY": Key("drain_policy", '"auto"', _choice("auto", "serve", "reject")),
    "LIFECYCLE_PROBE_HOST": Key("probe_host", '"0.0.0.0"', _host),
    "LIFECYCLE_PROBE_PORT": Key("probe_port", "None", _port),
    "LIFECYCLE_DETAILS": Key("details", '"never"', _choice("never", "token", "always")),
    "LIFECYCLE_TOKEN": Key("token", "None", _token),
    "LIFECYCLE_URL_PREFIX": Key("url_prefix", '""', _prefix),
    "LIFECYCLE_PATHS": Key("paths", "/healthcheck, /livez, /readyz and /startupz", _paths),
    "LIFECYCLE_PROBE_TIMEOUT": Key("probe_timeout", "5.0", _seconds(zero=False)),
    "LIFECYCLE_STATUS_CODES": Key("status_codes", "pass and warn 200, fail 503", read_status_codes),
    "LIFECYCLE_HEADERS": Key("headers", "{}", read_headers),
    "LIFECYCLE_READINESS_ON_DRAIN": Key("readiness_on_drain", '"fail"', _choice("fail", "keep")),
    "LIFECYCLE_CASE_INSENSITIVE": Key("case_insensitive", "False", _flag),
    "LIFECYCLE_LOG_PROBES": Key("log_probes", "False", _flag),
    "LIFECYCLE_SELF_TEST": Key("self_test", "True", _flag),
    "LIFECYCLE_REPORT_FILE": Key("report_file", "/dev/termination-log in Kubernetes, else None", _report_file),
    "LIFECYCLE_LOG_REMOTE_ADDR": Key("log_remote_addr", "False", _flag),
    "LIFECYCLE_STOP_ON_CRASH": Key("stop_on_crash", "()", _patterns),
    "LIFECYCLE_CONTROL_DIR": Key("control_dir", "None", _directory),
    "LIFECYCLE_STUCK_AFTER": Key("stuck_after", "None", _optional(_seconds(zero=False))),
    "LIFECYCLE_METRICS": Key("metrics", "False", _flag),
}
