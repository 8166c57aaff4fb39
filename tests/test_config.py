"""The settings: defaults, units and rules. Bad values have their texts in test_bad_input."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from flask_lifecycle._config import KEYS, Settings, attribute_of
from tests._fakes import whole


def read(**keys: Any) -> Settings:
    """The settings from keys without their prefix, in capitals."""
    return Settings.from_mapping({f"LIFECYCLE_{key}": value for key, value in keys.items()})


def test_defaults() -> None:
    """What is read without any key, outside a cluster, is what ``Settings()`` has; test_docs.py has the documents'."""
    settings = read()
    assert repr(settings) == repr(Settings())
    assert (settings.shutdown_delay, settings.signals, settings.probe_host) == (0.0, None, None)
    assert (settings.status_codes, settings.report_file) == ({}, None)
    assert settings.probe_paths() == {name: f"/{name}" for name in ("healthcheck", "livez", "readyz", "startupz")}


def test_every_key_has_an_attribute_and_every_attribute_a_key() -> None:
    """The table of keys and the fields of Settings name the same things."""
    assert [attribute_of(key) for key in KEYS] == list(Settings.__annotations__)


def test_keys_of_others_are_left_alone() -> None:
    """A configuration may hold whatever else it likes, also keys that are no strings."""
    given: Any = {"SECRET_KEY": "x", "lifecycle_ready": "no", 7: 7}
    assert vars(Settings.from_mapping(given)) == vars(read())


def test_settings_are_frozen() -> None:
    """Nothing changes a setting once it was read, and what is none is refused."""
    with pytest.raises(TypeError, match=whole("There is no setting 'grace'.")):
        Settings(grace=1.0)
    message = "Settings are read once, so 'grace_period' cannot be set; make others."
    with pytest.raises(AttributeError, match=whole(message)):
        read().grace_period = 1.0


def test_delays_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defaults look at the process's own environment; a configured delay, minimum or maximum wins."""
    assert read().delay_min == 0.0
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert (read().shutdown_delay, read().probe_host) == (5.0, "0.0.0.0")
    assert read(SHUTDOWN_DELAY=1).shutdown_delay == 1.0
    assert read(SHUTDOWN_DELAY="auto").delay_min == 5.0
    assert read(SHUTDOWN_DELAY="auto", GRACE_PERIOD=8).delay_min == pytest.approx(4.8)
    assert read(SHUTDOWN_DELAY="auto", DELAY_MIN=0).delay_min == 0.0
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "")
    assert read().shutdown_delay == 0.0


@pytest.mark.parametrize(("grace", "longest"), [(25, 15.0), (100, 15.0), (10, 6.0), (1, 0.6)])
def test_the_maximum_of_an_automatic_delay(grace: float, longest: float) -> None:
    """It is the smaller of fifteen seconds and three fifths of the grace period, and what the delay may take."""
    settings = read(GRACE_PERIOD=grace, SHUTDOWN_DELAY="auto")
    assert (settings.delay_max, settings.longest_delay) == (longest, longest)
    assert read(GRACE_PERIOD=grace, SHUTDOWN_DELAY=0.25).longest_delay == 0.25


@pytest.mark.parametrize(("grace", "reserve"), [(25, 5.0), (100, 5.0), (20, 4.0), (1, 0.2)])
def test_hook_reserve_follows_the_grace_period(grace: float, reserve: float) -> None:
    """The reserve is the smaller of five seconds and a fifth of the grace period."""
    assert read(GRACE_PERIOD=grace).hook_reserve == reserve


# A key without its prefix, a value, and what is read from it.
READ: list[tuple[str, Any, Any]] = [
    ("GRACE_PERIOD", 10, 10.0),
    ("SHUTDOWN_DELAY", 0, 0.0),
    ("HOOK_RESERVE", 0, 0.0),
    ("STUCK_AFTER", 60, 60.0),
    *(("SIGNALS", given, (signal.SIGTERM,)) for given in ("SIGTERM", "term", " sigterm ", 15, signal.SIGTERM)),
    *(("SIGNALS", kind(["SIGHUP"]), (signal.SIGHUP,)) for kind in (list, tuple, set, frozenset)),
    ("SIGNALS", ["SIGTERM", 15, "int"], (signal.SIGTERM, signal.SIGINT)),
    ("SIGNALS", [], ()),
    ("STOP_ON_CRASH", "*", ("*",)),
    ("STOP_ON_CRASH", ["MainThread", "a-*"], ("MainThread", "a-*")),
    ("STOP_ON_CRASH", None, ()),
    ("TOKEN", "", None),
    *(("URL_PREFIX", given, "") for given in ("", None, "/")),
    *(("URL_PREFIX", given, given.rstrip("/")) for given in ("/ops", "/ops/", "/a/b")),
    *(
        (key, value, value)
        for key, values in {
            "EXIT": ("code", "signal"),
            "READY": ("auto", "manual"),
            "DRAIN_POLICY": ("auto", "serve", "reject"),
            "DELAY_PROBES": (5,),
            "SIGNALS": (None,),
            "PROBE_PORT": (None, 0, 65535),
            "PROBE_HOST": ("127.0.0.1", "::"),
            "DETAILS": ("never", "always"),
            "READINESS_ON_DRAIN": ("fail", "keep"),
            "CASE_INSENSITIVE": (True, False),
            "LOG_PROBES": (True, False),
            "SELF_TEST": (True, False),
            "CONTROL_DIR": (None, "/run/shop", "relative/is checked later"),
            "STUCK_AFTER": (None,),
            "STATUS_CODES": ({}, {"fail": 500, "warn": 207}, {"pass": 204}),
            "HEADERS": ({}, {"X-Node": "a b", "x!": ""}),
        }.items()
        for value in values
    ),
]


@pytest.mark.parametrize(("key", "given", "expected"), READ)
def test_what_is_read(key: str, given: Any, expected: Any) -> None:
    """Every documented value is taken; seconds become floats, and what may be one or several becomes a tuple."""
    value = getattr(read(**{key: given}), key.lower())
    assert (value, type(value)) == (expected, type(expected))


def test_token() -> None:
    """A token does not show in a repr. Beside a probe listener, where it can stop the process, it has 16 characters."""
    settings = read(DETAILS="token", TOKEN="hush-hush")
    assert settings.token == "hush-hush"
    assert "hush" not in repr(settings)
    assert read(PROBE_PORT=0, TOKEN="x" * 16).token == "x" * 16
    assert read(PROBE_PORT=0, TOKEN="").token is None


@pytest.mark.parametrize("path", ["/alive/", "/healthz", "/a/b-c_d.e~f", "/ops;v=1", "/@me", "/Health"])
def test_paths(path: str) -> None:
    """A path holds whatever is sent in URLs as it is written; the others stay, and so do another application's."""
    assert read(PATHS={"livez": path}, URL_PREFIX="/ops").probe_paths() == {
        "healthcheck": "/ops/healthcheck",
        "livez": f"/ops{path.rstrip('/')}",
        "readyz": "/ops/readyz",
        "startupz": "/ops/startupz",
    }
    assert read().paths["livez"] == "/livez"


def test_mappings_are_copies() -> None:
    """What the application does to its mappings after init_app changes no setting."""
    codes, headers = {"fail": 500}, {"X-Node": "a"}
    settings = read(STATUS_CODES=codes, HEADERS=headers)
    codes.clear()
    headers.clear()
    assert (settings.status_codes, settings.headers) == ({"fail": 500}, {"X-Node": "a"})
