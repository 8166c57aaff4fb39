"""The settings: every ``LIFECYCLE_*`` key with its default, its unit and its validation.

They are read once, in ``init_app``, into one frozen :class:`Settings`. A wrong value is an error there, in one
sentence that names the key and the cure, before the first request.
"""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any

PREFIX = "LIFECYCLE_"
# Adaptive shutdown delay.
AUTO = "auto"

# Where the workers' files are, in prometheus_client's multiprocess mode: a variable of the environment.
MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
# Where the probe listener answers scrapes: the path that Prometheus asks by default.
METRICS_PATH = "/metrics"

# Settings that flask_lifecycle.testing puts over those of an application: a variable of the environment, a JSON object.
TEST_SETTINGS = "LIFECYCLE_TEST_SETTINGS"

# In the environ: the probes of all applications that one request to a shared probe listener asks.
TOGETHER = "flask_lifecycle.together"

# The orchestrator's default patience is 30 s (Kubernetes' terminationGracePeriodSeconds); the rest is room for preStop.
GRACE_PERIOD = 25.0
# Five seconds is what endpoint removal usually takes to reach every kube-proxy; outside a cluster there is none.
KUBERNETES_DELAY = 5.0
# Longer than a load balancer takes to stop sending after it has seen that an instance is not ready.
DELAY_QUIET = 1.0
# Three probes at intervals of four seconds, and the quiet second. It leaves ten of the default grace period.
DELAY_MAX = 15.0
HOOK_RESERVE = 5.0
# Twice the default timeout of a check, and a second for the rest.
PROBE_TIMEOUT = 5.0

# The default of Kubernetes' terminationMessagePath, of which it shows 4,096 bytes.
TERMINATION_LOG = "/dev/termination-log"
# The maximum of timeouts: threading accepts at most 292 years, and a float cannot hold an integer of 400 digits.
LONGEST = 365 * 86400.0
# The maximum of times during a shutdown and of settings for it.
LONGEST_TIME = 7 * 86400.0
_MOST_PROBES = 1000
# The maximum length of a request line, a header or a host name.
_LONGEST_TEXT = 1000
_LONGEST_HOST = 253
_PATH_MAX = 4096
# If the token can stop the process: 16 random letters and digits have 95 bits, 16 hexadecimal digits still 64.
SHORTEST_TOKEN = 16

PATHS = {name: f"/{name}" for name in ("healthcheck", "livez", "readyz", "startupz")}

# Both are compiled on first use, which is rare. Paths exclude characters with a meaning in URLs or in Flask's rules,
# and those that would have to be quoted.
_PATH = r"/[!$&-;=@-Z\[\]_a-z|~]*"
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, 5.6.2

_UNCATCHABLE = {signal.SIGKILL, signal.SIGSTOP}


class Settings:
    """The ``LIFECYCLE_*`` keys of one application. Times are seconds.

    Read once, and frozen. A plain class whose attributes are the defaults, because the class statement of a named tuple
    compiles each annotation, which here would take as long as the rest of this module.
    """

    grace_period: float = GRACE_PERIOD
    shutdown_delay: float | str = 0.0
    delay_probes: int = 3  # the failureThreshold of Kubernetes and the fall of HAProxy
    delay_min: float = 0.0
    delay_max: float = DELAY_MAX
    hook_reserve: float = HOOK_RESERVE
    keepalive_linger: float = 0.25
    signals: tuple[signal.Signals, ...] | None = None
    exit: str = "code"
    ready: str = "auto"
    drain_policy: str = "auto"
    probe_host: str | None = None  # that of the main listener
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

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__annotations__} | {"token": self.token and "***"}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> Settings:
        """Read and validate the keys of a Flask configuration.

        :raises ValueError: a value is out of range, or a ``LIFECYCLE_*`` key is unknown.
        :raises TypeError: a value is of the wrong type.
        """
        given = given_keys(config)
        for key in given:
            if key not in KEYS:
                raise ValueError(_unknown(key))
        values = {attribute_of(key): KEYS[key](key, value) for key, value in given.items()}
        # In a cluster something has to notice that this process leaves, the kubelet asks the pod's address, and it
        # keeps what is in the termination log. Elsewhere the probes are as reachable as the application.
        in_cluster = bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
        delay = KUBERNETES_DELAY if in_cluster else 0.0
        values.setdefault("shutdown_delay", delay)
        values.setdefault("report_file", TERMINATION_LOG if in_cluster else None)
        values.setdefault("probe_host", "0.0.0.0" if in_cluster else None)
        grace: float = values.setdefault("grace_period", GRACE_PERIOD)
        values.setdefault("hook_reserve", min(HOOK_RESERVE, grace / 5))
        longest: float = values.setdefault("delay_max", min(DELAY_MAX, grace * 3 / 5))
        values.setdefault("delay_min", min(delay, longest))
        settings = cls(**values)
        settings._check_budget()
        settings._check_auto()
        settings._check_token()
        settings._check_case()
        settings._check_metrics()
        return settings

    def _check_budget(self) -> None:
        """Refuse times that leave no time for the drain."""
        if self.longest_delay + self.hook_reserve >= self.grace_period:
            key = "LIFECYCLE_DELAY_MAX" if self.shutdown_delay == AUTO else "LIFECYCLE_SHUTDOWN_DELAY"
            raise ValueError(
                f"'{key}' ({self.longest_delay:g} s) and 'LIFECYCLE_HOOK_RESERVE'"
                f" ({self.hook_reserve:g} s) leave nothing of 'LIFECYCLE_GRACE_PERIOD'"
                f" ({self.grace_period:g} s) to drain in; raise the grace period or lower one of the two."
            )

    def _check_auto(self) -> None:
        """Refuse settings with which an automatic delay would always take its maximum."""
        if self.shutdown_delay != AUTO:
            return
        if self.delay_min > self.delay_max:
            raise ValueError(
                f"'LIFECYCLE_DELAY_MIN' ({self.delay_min:g} s) is more than 'LIFECYCLE_DELAY_MAX'"
                f" ({self.delay_max:g} s); lower it, or raise the maximum."
            )
        if self.readiness_on_drain == "keep":
            raise ValueError(
                "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until failing probes have been seen, but"
                " 'LIFECYCLE_READINESS_ON_DRAIN' is 'keep', so none fails; set the delay to a number of seconds."
            )
        if self.status_codes.get("fail", 503) < 400:
            raise ValueError(
                "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until failing probes have been seen, but"
                f" 'LIFECYCLE_STATUS_CODES' answers them with {self.status_codes['fail']}, which means success;"
                " give 'fail' a status of 400 or more."
            )

    @property
    def longest_delay(self) -> float:
        """The longest possible delay."""
        return self.delay_max if isinstance(self.shutdown_delay, str) else self.shutdown_delay

    def _check_token(self) -> None:
        if self.probe_port is not None and self.token and len(self.token) < SHORTEST_TOKEN:
            raise ValueError(
                f"'LIFECYCLE_TOKEN' has fewer than {SHORTEST_TOKEN} characters, and a client that guesses"
                " it and reaches the probe listener can stop the process; set it to a long secret."
            )
        if self.details == "token" and not self.token:
            raise ValueError(
                "'LIFECYCLE_DETAILS' is 'token' but 'LIFECYCLE_TOKEN' is not set; set it to a long secret."
            )

    def _check_case(self) -> None:
        """Refuse paths that differ only in case, if case is ignored."""
        if self.case_insensitive and len({path.lower() for path in self.paths.values()}) < len(self.paths):
            raise ValueError(
                "'LIFECYCLE_PATHS' gives two probes paths that differ in their case alone, which"
                " 'LIFECYCLE_CASE_INSENSITIVE' ignores; give each its own."
            )

    def _check_metrics(self) -> None:
        """Refuse metrics that no client could read."""
        if not self.metrics:
            return
        if self.probe_port is None and MULTIPROC_DIR not in os.environ:
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


def given_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that are ours, with their values."""
    return {k: v for k, v in config.items() if isinstance(k, str) and k.startswith(PREFIX)}


def settings_under_test() -> dict[str, Any]:
    """The settings that override those of each application that gets a ``Lifecycle`` now; empty outside of tests.

    :raises ValueError: the variable is not of ``flask_lifecycle.testing``.
    """
    text = os.environ.get(TEST_SETTINGS)
    if text is None:
        return {}
    import json  # in tests alone

    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise ValueError(f"{TEST_SETTINGS} is set, but not by flask_lifecycle.testing; unset it.") from None


def attribute_of(key: str) -> str:
    """The attribute of :class:`Settings` for a key."""
    return key.removeprefix(PREFIX).lower()


def is_seconds(value: Any, *, zero: bool = False, most: float = LONGEST) -> bool:
    """Whether this is a number of seconds greater than zero and at most ``most``.

    :param zero: whether zero is allowed.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and (value >= 0 if zero else value > 0) and bool(value <= most)


def bound(value: Any, most: float = LONGEST) -> str:
    """The addition to an error about a finite number that is too large."""
    too_large = isinstance(value, (int, float)) and most < value < math.inf
    return f" and at most {most:.0f}" if too_large else ""


def shown(value: Any) -> str:
    """Any value as a short text for an error."""
    try:
        text = ascii(value)
    except Exception:  # an integer with more digits than Python converts, or an object whose __repr__ fails
        text = f"this {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


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
        raise ValueError(
            f"'LIFECYCLE_SIGNALS' names {shown(value)}, which is not a signal on this system; use names such as"
            " 'SIGTERM'."
        )
    if found in _UNCATCHABLE:
        raise ValueError(f"'LIFECYCLE_SIGNALS' names '{found.name}', which a process cannot catch; leave it out.")
    return found


def _unknown(key: str) -> str:
    import difflib  # only for this sentence

    near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
    return f"'{key}' is not a setting of flask_lifecycle; did you mean '{near}'?"


def _seconds(*, zero: bool) -> Callable[[str, Any], float]:
    least = "zero or more" if zero else "more than zero"

    def read(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"'{key}' must be a number of seconds, not {shown(value)}.")
        if not is_seconds(value, zero=zero, most=LONGEST_TIME):
            raise ValueError(
                f"'{key}' must be a finite number of seconds, {least}{bound(value, LONGEST_TIME)}, not {shown(value)}."
            )
        return float(value)

    return read


def _delay(key: str, value: Any) -> float | str:
    if isinstance(value, str):
        if value != AUTO:
            raise ValueError(f"'{key}' must be a number of seconds or 'auto', not {shown(value)}.")
        return value
    return _seconds(zero=True)(key, value)


def _whole(least: int, most: int, what: str) -> Callable[[str, Any], int]:
    def read(key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"'{key}' must be {what}, not {shown(value)}.")
        return value

    return read


def _optional(read: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda key, value: None if value is None else read(key, value)


def _choice(*options: str) -> Callable[[str, Any], str]:
    def read(key: str, value: Any) -> str:
        if value not in options:
            listed = ", ".join(f"'{option}'" for option in options)
            raise ValueError(f"'{key}' must be one of {listed}, not {shown(value)}.")
        return str(value)

    return read


def _signals(key: str, value: Any) -> tuple[signal.Signals, ...]:
    if isinstance(value, (str, int)):
        value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise TypeError(f"'{key}' must be a list of signal names or numbers, not {shown(value)}.")
    return tuple(dict.fromkeys(parse_signal(item) for item in value))


def _host(key: str, value: Any) -> str:
    good = isinstance(value, str) and 0 < len(value) <= _LONGEST_HOST
    if not good or not value.isprintable() or any(map(str.isspace, value)):
        raise TypeError(f"'{key}' must be an address to listen on, such as '0.0.0.0' or '::', not {shown(value)}.")
    return str(value)


def _token(key: str, value: Any) -> str | None:
    if not isinstance(value, str):
        raise TypeError(f"'{key}' must be a string or None, not {type(value).__name__}.")
    if value != value.strip() or not value.isprintable():
        raise ValueError(
            f"'{key}' begins or ends with a blank, or contains a line break, which a header cannot; remove it."
        )
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"'{key}' has more than {_LONGEST_TEXT} characters, which no server takes in a header.")
    return value or None


def read_path(key: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(_PATH, value) or value.rstrip("/") == "":
        raise ValueError(f"'{key}' must hold paths such as '/livez', not {shown(value)}.")
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"'{key}' holds a path of more than {_LONGEST_TEXT} characters, which no server takes.")
    return value.rstrip("/")


def _prefix(key: str, value: Any) -> str:
    return "" if value in ("", None, "/") else read_path(key, value)


def _paths(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise TypeError(f"'{key}' must be a mapping from a probe to its path, not {shown(value)}.")
    for name in value:
        if name not in PATHS:
            raise ValueError(f"'{key}' names the probe {shown(name)}; the probes are {', '.join(map(repr, PATHS))}.")
    paths = PATHS | {name: read_path(key, path) for name, path in value.items()}
    if len(set(paths.values())) < len(paths):
        raise ValueError(f"'{key}' gives two probes the same path; each needs its own.")
    return paths


def _is_path(value: str) -> bool:
    """Whether the kernel accepts this as a path: not empty, not too long, without NUL and lone surrogates."""
    try:
        return "\0" not in value and 0 < len(os.fsencode(value)) < _PATH_MAX
    except UnicodeEncodeError:
        return False


def _directory(key: str, value: Any) -> str:
    if not isinstance(value, str) or not _is_path(value):
        raise TypeError(f"'{key}' must be the path of a directory or None, not {shown(value)}.")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"'{key}' must be True or False, not {shown(value)}.")
    return value


def _patterns(key: str, value: Any) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(patterns, (list, tuple, set, frozenset)) or not all(isinstance(item, str) for item in patterns):
        raise TypeError(
            f"'{key}' must be a list of patterns of thread names such as ['MainThread', 'consumer-*'], not"
            f" {shown(value)}."
        )
    if "" in patterns:
        raise ValueError(f"'{key}' contains an empty pattern, which matches no thread; use '*' for all.")
    return tuple(patterns)


def read_status_codes(key: str, value: Any) -> dict[str, int]:
    """A mapping from ``pass``, ``warn`` and ``fail`` to HTTP status codes."""
    if not isinstance(value, Mapping):
        raise TypeError(f"'{key}' must be a mapping such as {{'fail': 500}}, not {shown(value)}.")
    for status, code in value.items():
        if status not in ("pass", "warn", "fail"):
            raise ValueError(f"'{key}' names the status {status!r}; the statuses are 'pass', 'warn' and 'fail'.")
        if isinstance(code, bool) or not isinstance(code, int) or not 200 <= code <= 599:
            raise ValueError(f"'{key}' must give '{status}' an HTTP status from 200 to 599, not {shown(code)}.")
    return dict(value)


def read_headers(key: str, value: Any) -> dict[str, str]:
    """A mapping from the names of headers to their values."""
    if not isinstance(value, Mapping):
        raise TypeError(f"'{key}' must be a mapping from header names to strings, not {shown(value)}.")
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(_TOKEN, name):
            raise ValueError(
                f"'{key}' names the header {shown(name)}, which is not a header name; use one such as 'X-Node'."
            )
        if not isinstance(text, str) or not text.isprintable() or not text.isascii():
            raise ValueError(f"'{key}' must give '{name}' one line of printable ASCII, not {shown(text)}.")
        if len(name) + len(text) > _LONGEST_TEXT:
            raise ValueError(f"'{key}' gives '{name[:50]}' more than {_LONGEST_TEXT} characters; shorten it.")
        if name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise ValueError(f"'{key}' names the header '{name}', which is the server's to set; leave it out.")
    return dict(value)


def _report_file(key: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not isinstance(path := os.fspath(value), str) or not _is_path(path):
        raise TypeError(f"'{key}' must be the path of a file or None, not {shown(value)}.")
    path = os.path.abspath(path)  # relative to the current directory of now
    if not os.path.isdir(os.path.dirname(path)) or os.path.isdir(path):
        raise ValueError(
            f"'{key}' names '{path}', which is not a file in an existing directory; create the directory, or name"
            " another."
        )
    if os.path.islink(path) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"'{key}' names '{path}', a link to a pipe or a device, which is not followed; name a file.")
    return path


# Each key, and the function that checks its value and returns the setting.
KEYS: dict[str, Callable[[str, Any], Any]] = {
    "LIFECYCLE_GRACE_PERIOD": _seconds(zero=False),
    "LIFECYCLE_SHUTDOWN_DELAY": _delay,
    "LIFECYCLE_DELAY_PROBES": _whole(1, _MOST_PROBES, f"a whole number from 1 to {_MOST_PROBES}"),
    "LIFECYCLE_DELAY_MIN": _seconds(zero=True),
    "LIFECYCLE_DELAY_MAX": _seconds(zero=False),
    "LIFECYCLE_HOOK_RESERVE": _seconds(zero=True),
    "LIFECYCLE_KEEPALIVE_LINGER": _seconds(zero=True),
    "LIFECYCLE_SIGNALS": _optional(_signals),
    "LIFECYCLE_EXIT": _choice("code", "signal"),
    "LIFECYCLE_READY": _choice("auto", "manual"),
    "LIFECYCLE_DRAIN_POLICY": _choice("auto", "serve", "reject"),
    "LIFECYCLE_PROBE_HOST": _host,
    "LIFECYCLE_PROBE_PORT": _optional(_whole(0, 65535, "a port from 0 (any free one) to 65535, or None")),
    "LIFECYCLE_DETAILS": _choice("never", "token", "always"),
    "LIFECYCLE_TOKEN": _optional(_token),
    "LIFECYCLE_URL_PREFIX": _prefix,
    "LIFECYCLE_PATHS": _paths,
    "LIFECYCLE_PROBE_TIMEOUT": _seconds(zero=False),
    "LIFECYCLE_STATUS_CODES": read_status_codes,
    "LIFECYCLE_HEADERS": read_headers,
    "LIFECYCLE_READINESS_ON_DRAIN": _choice("fail", "keep"),
    "LIFECYCLE_CASE_INSENSITIVE": _flag,
    "LIFECYCLE_LOG_PROBES": _flag,
    "LIFECYCLE_SELF_TEST": _flag,
    "LIFECYCLE_REPORT_FILE": _optional(_report_file),
    "LIFECYCLE_LOG_REMOTE_ADDR": _flag,
    "LIFECYCLE_STOP_ON_CRASH": _patterns,
    "LIFECYCLE_CONTROL_DIR": _optional(_directory),
    "LIFECYCLE_STUCK_AFTER": _optional(_seconds(zero=False)),
    "LIFECYCLE_METRICS": _flag,
}
