"""The settings: defaults, units and rules. Bad values have their texts in test_bad_input."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from flask_lifecycle._config import KEYS, PREFIX, Settings
from tests._fakes import whole


def read(**keys: Any) -> Settings:
    """The settings from keys without their prefix, in capitals."""
    return Settings.from_mapping({f"{PREFIX}{key}": value for key, value in keys.items()})


def test_defaults() -> None:
    """Without any key the settings are those of DESIGN's table, outside a cluster."""
    assert read() == Settings(
        grace_period=25.0,
        shutdown_delay=0.0,
        delay_probes=3,
        delay_min=0.0,
        delay_max=15.0,
        hook_reserve=5.0,
        keepalive_linger=0.25,
        signals=None,
        exit="code",
        ready="auto",
        drain_policy="auto",
        probe_host=None,
        probe_port=None,
        details="never",
        token=None,
        url_prefix="",
        paths={"healthcheck": "/healthcheck", "livez": "/livez", "readyz": "/readyz", "startupz": "/startupz"},
        probe_timeout=5.0,
        status_codes={},
        headers={},
        readiness_on_drain="fail",
        case_insensitive=False,
        log_probes=False,
        self_test=True,
        stop_on_crash=(),
        metrics=False,
    )


def test_every_key_has_an_attribute_and_every_attribute_a_key() -> None:
    """The table of keys and the fields of Settings name the same things."""
    assert {key.attribute for key in KEYS.values()} == set(Settings.__annotations__)


def test_keys_of_others_are_left_alone() -> None:
    """A configuration may hold whatever else it likes, also keys that are no strings."""
    assert Settings.from_mapping({"SECRET_KEY": "x", "lifecycle_ready": "no", 7: 7}) == read()  # type: ignore[dict-item]


def test_patterns_of_threads() -> None:
    """One pattern may be given as it is, several as any plain collection, and none by None."""
    assert read(STOP_ON_CRASH="*").stop_on_crash == ("*",)
    assert read(STOP_ON_CRASH=["MainThread", "a-*"]).stop_on_crash == ("MainThread", "a-*")
    assert read(STOP_ON_CRASH=None).stop_on_crash == read(STOP_ON_CRASH=()).stop_on_crash == ()


def test_settings_are_frozen() -> None:
    """Nothing can change a setting once it was read."""
    with pytest.raises(
        AttributeError, match=whole("Settings are read once, so 'grace_period' cannot be set; make others.")
    ):
        read().grace_period = 1.0


def test_settings_that_there_are_not() -> None:
    """What is no setting is none of ``Settings`` either, and two that say the same are equal."""
    with pytest.raises(TypeError, match=whole("There is no setting 'grace'.")):
        Settings(grace=1.0)
    assert Settings() == Settings(grace_period=25.0) != Settings(grace_period=1.0)
    assert Settings() != ()


def test_delay_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default of the delay looks at the process's own environment, and a configured one wins."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert read().shutdown_delay == 5.0
    assert read(SHUTDOWN_DELAY=1).shutdown_delay == 1.0
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "")
    assert read().shutdown_delay == 0.0


def test_the_minimum_of_an_automatic_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a cluster it is what the delay is there, or the maximum if that is less; a configured one wins."""
    assert read().delay_min == 0.0
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert read(SHUTDOWN_DELAY="auto").delay_min == 5.0
    assert read(SHUTDOWN_DELAY="auto", GRACE_PERIOD=8).delay_min == pytest.approx(4.8)
    assert read(SHUTDOWN_DELAY="auto", DELAY_MIN=0).delay_min == 0.0


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


def test_seconds_are_floats() -> None:
    """A whole number of seconds is read as a float."""
    settings = read(GRACE_PERIOD=10, SHUTDOWN_DELAY=1, HOOK_RESERVE=2, KEEPALIVE_LINGER=0, PROBE_TIMEOUT=3)
    times = [settings.grace_period, settings.shutdown_delay, settings.hook_reserve, settings.keepalive_linger]
    times.append(settings.probe_timeout)
    assert times == [10.0, 1.0, 2.0, 0.0, 3.0]
    assert all(type(time) is float for time in times)


def test_zero_reserve_and_delay_are_allowed() -> None:
    """Only the grace period must be more than zero."""
    assert read(GRACE_PERIOD=0.1, SHUTDOWN_DELAY=0, HOOK_RESERVE=0).hook_reserve == 0.0


@pytest.mark.parametrize("given", ["SIGTERM", "term", " sigterm ", 15, signal.SIGTERM])
def test_a_signal_by_name_or_number(given: Any) -> None:
    """A signal may be given by name with or without SIG, by number or as a member."""
    assert read(SIGNALS=given).signals == (signal.SIGTERM,)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("SIGTERM", (signal.SIGTERM,)),
        (2, (signal.SIGINT,)),
        (["SIGTERM", 15, "int"], (signal.SIGTERM, signal.SIGINT)),
        (("SIGHUP",), (signal.SIGHUP,)),
        ([], ()),
    ],
)
def test_signals(given: Any, expected: tuple[signal.Signals, ...] | None) -> None:
    """Signals come as one or as a list, each once."""
    assert read(SIGNALS=given).signals == expected


@pytest.mark.parametrize("kind", [set, frozenset])
def test_signals_from_a_set(kind: Any) -> None:
    """A set of signals is as good as a list."""
    assert set(read(SIGNALS=kind({"SIGTERM", "SIGINT"})).signals or ()) == {signal.SIGTERM, signal.SIGINT}


@pytest.mark.parametrize(
    ("key", "attribute", "values"),
    [
        ("EXIT", "exit", ("code", "signal")),
        ("READY", "ready", ("auto", "manual")),
        ("DRAIN_POLICY", "drain_policy", ("auto", "serve", "reject")),
        ("PROBE_PORT", "probe_port", (None, 0, 65535)),
        ("PROBE_HOST", "probe_host", ("127.0.0.1", "::")),
        ("DETAILS", "details", ("never", "always")),
        ("READINESS_ON_DRAIN", "readiness_on_drain", ("fail", "keep")),
        ("CASE_INSENSITIVE", "case_insensitive", (True, False)),
        ("LOG_PROBES", "log_probes", (True, False)),
        ("SELF_TEST", "self_test", (True, False)),
        ("CONTROL_DIR", "control_dir", (None, "/run/shop", "relative/is checked later")),
        ("STUCK_AFTER", "stuck_after", (None, 60.0)),
        ("STATUS_CODES", "status_codes", ({}, {"fail": 500, "warn": 207}, {"pass": 204})),
        ("HEADERS", "headers", ({}, {"X-Node": "a b", "x!": ""})),
    ],
)
def test_choices(key: str, attribute: str, values: tuple[Any, ...]) -> None:
    """Every documented value of a key is taken as it is."""
    assert tuple(getattr(read(**{key: value}), attribute) for value in values) == values


def test_a_token_that_can_stop_the_process_is_long() -> None:
    """With a probe listener a token has 16 characters at least; an empty one still is none."""
    assert read(PROBE_PORT=0, TOKEN="x" * 16).token == "x" * 16
    assert read(PROBE_PORT=0, TOKEN="").token is None


def test_token() -> None:
    """A token is kept, an empty one is none, and none of it shows in a repr."""
    settings = read(DETAILS="token", TOKEN="hush-hush")
    assert settings.token == "hush-hush"
    assert "hush" not in repr(settings)
    assert read(TOKEN="").token is None


@pytest.mark.parametrize(
    ("given", "prefix"), [("", ""), (None, ""), ("/", ""), ("/ops", "/ops"), ("/ops/", "/ops"), ("/a/b", "/a/b")]
)
def test_prefix(given: Any, prefix: str) -> None:
    """The prefix stands before every path, without a slash at its end."""
    assert read(URL_PREFIX=given).probe_paths()["livez"] == f"{prefix}/livez"


def test_paths() -> None:
    """Each path can be given by itself; the others stay."""
    settings = read(PATHS={"livez": "/alive/"}, URL_PREFIX="/ops")
    assert settings.probe_paths() == {
        "healthcheck": "/ops/healthcheck",
        "livez": "/ops/alive",
        "readyz": "/ops/readyz",
        "startupz": "/ops/startupz",
    }


def test_reading_paths_does_not_change_the_defaults() -> None:
    """One application's paths are not another's."""
    read(PATHS={"livez": "/alive"})
    assert read().paths["livez"] == "/livez"


def test_mappings_are_copies() -> None:
    """What the application does to its mappings after init_app changes no setting."""
    codes, headers = {"fail": 500}, {"X-Node": "a"}
    settings = read(STATUS_CODES=codes, HEADERS=headers)
    codes.clear()
    headers.clear()
    assert (settings.status_codes, settings.headers) == ({"fail": 500}, {"X-Node": "a"})


@pytest.mark.parametrize("path", ["/healthz", "/a/b-c_d.e~f", "/ops;v=1", "/@me", "/Health"])
def test_paths_as_they_are_sent(path: str) -> None:
    """A path may hold whatever is sent in URLs as it is written."""
    assert read(PATHS={"livez": path}).paths["livez"] == path


def test_every_default_is_said_as_it_is() -> None:
    """The default that a key's row tells the documents agrees with what is read without the key."""
    settings = read()
    for key, row in KEYS.items():
        if re.fullmatch(r"None|\d+(\.\d+)?|\".*\"", row.default):
            assert row.default.strip('"') == str(getattr(settings, row.attribute)), key


def test_how_often_probers_are_told() -> None:
    """How many answers a prober has to fetch is a plain number."""
    assert read(DELAY_PROBES=5).delay_probes == 5
