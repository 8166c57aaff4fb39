"""Bad input: each error is one sentence, the thing and the cure, and is compared whole."""

from __future__ import annotations

import functools
import importlib.util
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_lifecycle import Check, HealthCheckError, Lifecycle, checks
from flask_lifecycle._config import KEYS
from flask_lifecycle._operators.duration import parse_duration
from flask_lifecycle._servers import create
from tests._fakes import BOUND, ROOT, make_app, run_python, running, state_of, whole

NAN = math.nan


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    raise AssertionError("nobody calls it")


def nothing() -> None: ...


async def coroutine() -> None: ...


# -- absurd values ------------------------------------------------------------------------------------------------

ABSURD = (10**400, 10**5000, -(10**400), 1e10, 1e300, math.inf, -math.inf, NAN, True, "\0", "\ud800", "x" * 100_000)


def refused(set_it: Callable[[], object]) -> bool:
    """Whether a value is refused, in one sentence of bounded length that can be written anywhere."""
    try:
        set_it()
    except (TypeError, ValueError) as error:
        text = str(error)
        assert text.endswith(".")
        assert len(text) < 500
        assert "digits" not in text
        text.encode()
        return True
    return False


@pytest.mark.parametrize("key", KEYS)
def test_absurd_settings_are_refused(key: str) -> None:
    """A value that would break a thread, a file or a header later is refused at once, whatever the setting."""
    right = {
        "LIFECYCLE_STOP_ON_CRASH": ("\0", "\ud800", "x" * 100_000),  # patterns, by which no thread is called
        **dict.fromkeys(
            ("LIFECYCLE_CASE_INSENSITIVE", "LIFECYCLE_LOG_PROBES", "LIFECYCLE_SELF_TEST", "LIFECYCLE_LOG_REMOTE_ADDR"),
            (True,),
        ),
        "LIFECYCLE_METRICS": (True,),
    }.get(key, ())
    for value in ABSURD:
        config = {key: value, "LIFECYCLE_PROBE_PORT": 0} if key == "LIFECYCLE_METRICS" else {key: value}
        assert refused(functools.partial(make, config)) is (value not in right), (key, type(value))


def make(config: dict[str, Any]) -> Lifecycle:
    """An application with these settings."""
    return Lifecycle(make_app(**config))


def test_the_bound_of_a_time_is_named() -> None:
    """An error for a time that is too long says how long it may be."""
    with pytest.raises(ValueError, match=whole(
        "'LIFECYCLE_GRACE_PERIOD' must be a finite number of seconds, more than zero and at most 604800, not"
        " 10000000000.0."
    )):  # fmt: skip
        make({"LIFECYCLE_GRACE_PERIOD": 1e10})
    with pytest.raises(ValueError, match=whole(
        "The timeout of the check 'db' must be a number of seconds greater than zero and at most 31536000, not"
        " 10000000000.0."
    )):  # fmt: skip
        Lifecycle().check("db", timeout=1e10)(nothing)


def register_check(lifecycle: Lifecycle, options: dict[str, Any]) -> None:
    lifecycle.check("db", **options)(nothing)


@pytest.mark.parametrize("value", ABSURD, ids=range(len(ABSURD)))
def test_absurd_arguments_are_refused(value: Any) -> None:
    """So is each time and number that a registration takes."""
    lifecycle = Lifecycle()
    times = ("timeout", "ttl", "fail_ttl", "interval", "fail_for", "fail_after", "recover_after")
    for option in times:
        assert refused(functools.partial(register_check, lifecycle, {option: value})), option
    assert refused(lambda: lifecycle.check("db", interval=1, fail_interval=value)(nothing))
    for register in (lifecycle.on_startup, lifecycle.on_drain, lifecycle.on_shutdown):
        assert refused(functools.partial(register, timeout=value))
    assert refused(lambda: lifecycle.resource(timeout=value)(nothing))
    assert refused(lambda: lifecycle.resource(close_timeout=value)(nothing))
    for check in (
        lambda: checks.Heartbeat("beat", max_age=value),
        lambda: checks.TCPCheck("localhost", value),
        lambda: checks.TCPCheck("localhost", 80, limit=value),
        lambda: checks.HTTPCheck("http://localhost/", limit=value),
        lambda: parse_duration("for", value, 86400.0),
    ):
        assert refused(check), check


def test_a_wait_of_any_length() -> None:
    """A wait that is longer than the system can count is a very long one."""
    lifecycle = Lifecycle(app := make_app())
    stopping = threading.Thread(target=lifecycle.shutdown)
    stopping.start()
    for timeout in (10**400, 1e10, math.inf):
        assert lifecycle.draining.wait(timeout)
        assert not lifecycle.wait_ready(timeout)
    stopping.join(BOUND)
    assert app.extensions


# -- settings -----------------------------------------------------------------------------------------------------

SECONDS = "must be a finite number of seconds"


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (
            {"LIFECYCLE_GRACE_PEROID": 5},
            ValueError,
            "'LIFECYCLE_GRACE_PEROID' is not a setting of flask_lifecycle; did you mean 'LIFECYCLE_GRACE_PERIOD'?",
        ),
        (
            {"LIFECYCLE_POLICY": "auto"},
            ValueError,
            "'LIFECYCLE_POLICY' is not a setting of flask_lifecycle; did you mean 'LIFECYCLE_DRAIN_POLICY'?",
        ),
        (
            {"LIFECYCLE_GRACE_PERIOD": 0},
            ValueError,
            f"'LIFECYCLE_GRACE_PERIOD' {SECONDS}, more than zero, not 0.",
        ),
        (
            {"LIFECYCLE_GRACE_PERIOD": -1.5},
            ValueError,
            f"'LIFECYCLE_GRACE_PERIOD' {SECONDS}, more than zero, not -1.5.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": -1},
            ValueError,
            f"'LIFECYCLE_SHUTDOWN_DELAY' {SECONDS}, zero or more, not -1.",
        ),
        ({"LIFECYCLE_HOOK_RESERVE": NAN}, ValueError, f"'LIFECYCLE_HOOK_RESERVE' {SECONDS}, zero or more, not nan."),
        (
            {"LIFECYCLE_KEEPALIVE_LINGER": math.inf},
            ValueError,
            f"'LIFECYCLE_KEEPALIVE_LINGER' {SECONDS}, zero or more, not inf.",
        ),
        (
            {"LIFECYCLE_STUCK_AFTER": 0},
            ValueError,
            f"'LIFECYCLE_STUCK_AFTER' {SECONDS}, more than zero, not 0.",
        ),
        (
            {"LIFECYCLE_STUCK_AFTER": "60"},
            TypeError,
            "'LIFECYCLE_STUCK_AFTER' must be a number of seconds, not '60'.",
        ),
        (
            {"LIFECYCLE_GRACE_PERIOD": "25"},
            TypeError,
            "'LIFECYCLE_GRACE_PERIOD' must be a number of seconds, not '25'.",
        ),
        (
            {"LIFECYCLE_GRACE_PERIOD": True},
            TypeError,
            "'LIFECYCLE_GRACE_PERIOD' must be a number of seconds, not True.",
        ),
        (
            {"LIFECYCLE_GRACE_PERIOD": None},
            TypeError,
            "'LIFECYCLE_GRACE_PERIOD' must be a number of seconds, not None.",
        ),
        (
            {"LIFECYCLE_GRACE_PERIOD": 10, "LIFECYCLE_SHUTDOWN_DELAY": 8, "LIFECYCLE_HOOK_RESERVE": 2},
            ValueError,
            "'LIFECYCLE_SHUTDOWN_DELAY' (8 s) and 'LIFECYCLE_HOOK_RESERVE' (2 s) leave nothing of"
            " 'LIFECYCLE_GRACE_PERIOD' (10 s) to drain in; raise the grace period or lower one of the two.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": "automatic"},
            ValueError,
            "'LIFECYCLE_SHUTDOWN_DELAY' must be a number of seconds or 'auto', not 'automatic'.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": "5"},
            ValueError,
            "'LIFECYCLE_SHUTDOWN_DELAY' must be a number of seconds or 'auto', not '5'.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": None},
            TypeError,
            "'LIFECYCLE_SHUTDOWN_DELAY' must be a number of seconds, not None.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_DELAY_MAX": 8, "LIFECYCLE_HOOK_RESERVE": 2},
            ValueError,
            "'LIFECYCLE_DELAY_MAX' (8 s) and 'LIFECYCLE_HOOK_RESERVE' (2 s) leave nothing of"
            " 'LIFECYCLE_GRACE_PERIOD' (10 s) to drain in; raise the grace period or lower one of the two.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_DELAY_MAX": 4, "LIFECYCLE_DELAY_MIN": 5},
            ValueError,
            "'LIFECYCLE_DELAY_MIN' (5 s) is more than 'LIFECYCLE_DELAY_MAX' (4 s); lower it, or raise the maximum.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_READINESS_ON_DRAIN": "keep"},
            ValueError,
            "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until failing probes have been seen, but"
            " 'LIFECYCLE_READINESS_ON_DRAIN' is 'keep', so none fails; set the delay to a number of seconds.",
        ),
        (
            {"LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_STATUS_CODES": {"fail": 200}},
            ValueError,
            "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until failing probes have been seen, but"
            " 'LIFECYCLE_STATUS_CODES' answers them with 200, which means success; give 'fail' a status of 400"
            " or more.",
        ),
        (
            {"LIFECYCLE_REPORT_FILE": 5},
            TypeError,
            "'LIFECYCLE_REPORT_FILE' must be the path of a file or None, not 5.",
        ),
        (
            {"LIFECYCLE_REPORT_FILE": ""},
            TypeError,
            "'LIFECYCLE_REPORT_FILE' must be the path of a file or None, not ''.",
        ),
        (
            {"LIFECYCLE_REPORT_FILE": b"/tmp/report.json"},
            TypeError,
            "'LIFECYCLE_REPORT_FILE' must be the path of a file or None, not b'/tmp/report.json'.",
        ),
        (
            {"LIFECYCLE_REPORT_FILE": "/nowhere/report.json"},
            ValueError,
            "'LIFECYCLE_REPORT_FILE' names '/nowhere/report.json', which is not a file in an existing directory;"
            " create the directory, or name another.",
        ),
        (
            {"LIFECYCLE_REPORT_FILE": "/"},
            ValueError,
            "'LIFECYCLE_REPORT_FILE' names '/', which is not a file in an existing directory; create the directory,"
            " or name another.",
        ),
        (
            {"LIFECYCLE_LOG_REMOTE_ADDR": 1},
            TypeError,
            "'LIFECYCLE_LOG_REMOTE_ADDR' must be True or False, not 1.",
        ),
        (
            {"LIFECYCLE_DELAY_PROBES": 0},
            ValueError,
            "'LIFECYCLE_DELAY_PROBES' must be a whole number from 1 to 1000, not 0.",
        ),
        (
            {"LIFECYCLE_DELAY_PROBES": True},
            ValueError,
            "'LIFECYCLE_DELAY_PROBES' must be a whole number from 1 to 1000, not True.",
        ),
        (
            {"LIFECYCLE_DELAY_PROBES": 2.5},
            ValueError,
            "'LIFECYCLE_DELAY_PROBES' must be a whole number from 1 to 1000, not 2.5.",
        ),
        ({"LIFECYCLE_DELAY_MIN": NAN}, ValueError, f"'LIFECYCLE_DELAY_MIN' {SECONDS}, zero or more, not nan."),
        ({"LIFECYCLE_DELAY_MAX": 0}, ValueError, f"'LIFECYCLE_DELAY_MAX' {SECONDS}, more than zero, not 0."),
        (
            {"LIFECYCLE_SIGNALS": "SIGTREM"},
            ValueError,
            "'LIFECYCLE_SIGNALS' names 'SIGTREM', which is not a signal on this system; use names such as 'SIGTERM'.",
        ),
        (
            {"LIFECYCLE_SIGNALS": [15, 999]},
            ValueError,
            "'LIFECYCLE_SIGNALS' names 999, which is not a signal on this system; use names such as 'SIGTERM'.",
        ),
        (
            {"LIFECYCLE_SIGNALS": [True]},
            ValueError,
            "'LIFECYCLE_SIGNALS' names True, which is not a signal on this system; use names such as 'SIGTERM'.",
        ),
        (
            {"LIFECYCLE_SIGNALS": [None]},
            ValueError,
            "'LIFECYCLE_SIGNALS' names None, which is not a signal on this system; use names such as 'SIGTERM'.",
        ),
        (
            {"LIFECYCLE_SIGNALS": ["SIGKILL"]},
            ValueError,
            "'LIFECYCLE_SIGNALS' names 'SIGKILL', which a process cannot catch; leave it out.",
        ),
        (
            {"LIFECYCLE_SIGNALS": [19]},
            ValueError,
            "'LIFECYCLE_SIGNALS' names 'SIGSTOP', which a process cannot catch; leave it out.",
        ),
        (
            {"LIFECYCLE_SIGNALS": 1.5},
            TypeError,
            "'LIFECYCLE_SIGNALS' must be a list of signal names or numbers, not 1.5.",
        ),
        ({"LIFECYCLE_EXIT": "quick"}, ValueError, "'LIFECYCLE_EXIT' must be one of 'code', 'signal', not 'quick'."),
        ({"LIFECYCLE_READY": True}, ValueError, "'LIFECYCLE_READY' must be one of 'auto', 'manual', not True."),
        (
            {"LIFECYCLE_DRAIN_POLICY": "drop"},
            ValueError,
            "'LIFECYCLE_DRAIN_POLICY' must be one of 'auto', 'serve', 'reject', not 'drop'.",
        ),
        (
            {"LIFECYCLE_DETAILS": "some"},
            ValueError,
            "'LIFECYCLE_DETAILS' must be one of 'never', 'token', 'always', not 'some'.",
        ),
        (
            {"LIFECYCLE_DETAILS": "token"},
            ValueError,
            "'LIFECYCLE_DETAILS' is 'token' but 'LIFECYCLE_TOKEN' is not set; set it to a long secret.",
        ),
        ({"LIFECYCLE_TOKEN": b"hush"}, TypeError, "'LIFECYCLE_TOKEN' must be a string or None, not a bytes."),
        (
            {"LIFECYCLE_TOKEN": "from a file\n"},
            ValueError,
            "'LIFECYCLE_TOKEN' begins or ends with a blank, or contains a line break, which a header cannot; remove"
            " it.",
        ),
        (
            {"LIFECYCLE_TOKEN": "x" * 15, "LIFECYCLE_PROBE_PORT": 0},
            ValueError,
            "'LIFECYCLE_TOKEN' has fewer than 16 characters, and a client that guesses it and reaches the probe"
            " listener can stop the process; set it to a long secret.",
        ),
        *(
            (
                {"LIFECYCLE_CONTROL_DIR": path},
                TypeError,
                f"'LIFECYCLE_CONTROL_DIR' must be the path of a directory or None, not {path!r}.",
            )
            for path in ("", b"/run", 1, "a\0b")
        ),
        *(
            ({"LIFECYCLE_METRICS": value}, TypeError, f"'LIFECYCLE_METRICS' must be True or False, not {value!r}.")
            for value in (1, "yes", None)
        ),
        (
            {"LIFECYCLE_METRICS": True},
            ValueError,
            "'LIFECYCLE_METRICS' is True but 'LIFECYCLE_PROBE_PORT' is not set, and only the probe listener serves"
            " metrics; set it to a port, or register flask_lifecycle.metrics.LifecycleCollector in a registry that you"
            " serve.",
        ),
        (
            {"LIFECYCLE_METRICS": True, "LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_PATHS": {"livez": "/Metrics"}},
            ValueError,
            "'LIFECYCLE_PATHS' gives 'livez' the path '/Metrics', where 'LIFECYCLE_METRICS' is served; give it"
            " another.",
        ),
        (
            {"LIFECYCLE_PROBE_HOST": ""},
            TypeError,
            "'LIFECYCLE_PROBE_HOST' must be an address to listen on, such as '0.0.0.0' or '::', not ''.",
        ),
        (
            {"LIFECYCLE_PROBE_HOST": None},
            TypeError,
            "'LIFECYCLE_PROBE_HOST' must be an address to listen on, such as '0.0.0.0' or '::', not None.",
        ),
        *(
            (
                {"LIFECYCLE_PROBE_PORT": port},
                ValueError,
                f"'LIFECYCLE_PROBE_PORT' must be a port from 0 (any free one) to 65535, or None, not {port!r}.",
            )
            for port in (-1, 65536, "8000", True)
        ),
        *(
            (
                {"LIFECYCLE_URL_PREFIX": prefix},
                ValueError,
                f"'LIFECYCLE_URL_PREFIX' must hold paths such as '/livez', not {prefix!a}.",
            )
            for prefix in ("ops", "/ops?x", "/<ops>", 3, "/größe", "/a b", "/50%")
        ),
        (
            {"LIFECYCLE_PATHS": {"livez": "/"}},
            ValueError,
            "'LIFECYCLE_PATHS' must hold paths such as '/livez', not '/'.",
        ),
        (
            {"LIFECYCLE_PATHS": ["/livez"]},
            TypeError,
            "'LIFECYCLE_PATHS' must be a mapping from a probe to its path, not ['/livez'].",
        ),
        (
            {"LIFECYCLE_PATHS": {"alive": "/alive"}},
            ValueError,
            "'LIFECYCLE_PATHS' names the probe 'alive'; the probes are 'healthcheck', 'livez', 'readyz', 'startupz'.",
        ),
        (
            {"LIFECYCLE_PATHS": {"livez": "/readyz"}},
            ValueError,
            "'LIFECYCLE_PATHS' gives two probes the same path; each needs its own.",
        ),
        (
            {"LIFECYCLE_PATHS": {"livez": "/ReadyZ"}, "LIFECYCLE_CASE_INSENSITIVE": True},
            ValueError,
            "'LIFECYCLE_PATHS' gives two probes paths that differ in their case alone, which"
            " 'LIFECYCLE_CASE_INSENSITIVE' ignores; give each its own.",
        ),
        (
            {"LIFECYCLE_PROBE_TIMEOUT": 0},
            ValueError,
            f"'LIFECYCLE_PROBE_TIMEOUT' {SECONDS}, more than zero, not 0.",
        ),
        (
            {"LIFECYCLE_PROBE_TIMEOUT": None},
            TypeError,
            "'LIFECYCLE_PROBE_TIMEOUT' must be a number of seconds, not None.",
        ),
        *(
            ({f"LIFECYCLE_{key}": value}, TypeError, f"'LIFECYCLE_{key}' must be True or False, not {value!r}.")
            for key in ("CASE_INSENSITIVE", "LOG_PROBES", "SELF_TEST")
            for value in ("no", 1, None)
        ),
        *(
            (
                {"LIFECYCLE_STOP_ON_CRASH": value},
                TypeError,
                "'LIFECYCLE_STOP_ON_CRASH' must be a list of patterns of thread names such as"
                f" ['MainThread', 'consumer-*'], not {value!r}.",
            )
            for value in (True, 1, b"*", ["MainThread", 1], {"*": 1})
        ),
        *(
            (
                {"LIFECYCLE_STOP_ON_CRASH": value},
                ValueError,
                "'LIFECYCLE_STOP_ON_CRASH' contains an empty pattern, which matches no thread; use '*' for all.",
            )
            for value in ("", ["a", ""])
        ),
        (
            {"LIFECYCLE_READINESS_ON_DRAIN": "hold"},
            ValueError,
            "'LIFECYCLE_READINESS_ON_DRAIN' must be one of 'fail', 'keep', not 'hold'.",
        ),
        *(
            (
                {"LIFECYCLE_STATUS_CODES": codes},
                TypeError,
                f"'LIFECYCLE_STATUS_CODES' must be a mapping such as {{'fail': 500}}, not {codes!r}.",
            )
            for codes in (500, None, [("fail", 500)])
        ),
        *(
            (
                {"LIFECYCLE_STATUS_CODES": {status: 500}},
                ValueError,
                f"'LIFECYCLE_STATUS_CODES' names the status {status!r}; the statuses are 'pass', 'warn' and 'fail'.",
            )
            for status in ("error", 503)
        ),
        *(
            (
                {"LIFECYCLE_STATUS_CODES": {"fail": code}},
                ValueError,
                f"'LIFECYCLE_STATUS_CODES' must give 'fail' an HTTP status from 200 to 599, not {code!r}.",
            )
            for code in ("500", 100, 600, True, None, 500.0)
        ),
        *(
            (
                {"LIFECYCLE_HEADERS": headers},
                TypeError,
                f"'LIFECYCLE_HEADERS' must be a mapping from header names to strings, not {headers!r}.",
            )
            for headers in ("X-Node: a", None, [("X-Node", "a")])
        ),
        *(
            (
                {"LIFECYCLE_HEADERS": {name: "a"}},
                ValueError,
                f"'LIFECYCLE_HEADERS' names the header {name!a}, which is not a header name; use one such as 'X-Node'.",
            )
            for name in ("", "X Node", "X-Node:", "X-Größe", 3, "X-Node\r\nX")
        ),
        *(
            (
                {"LIFECYCLE_HEADERS": {"X-Node": text}},
                ValueError,
                f"'LIFECYCLE_HEADERS' must give 'X-Node' one line of printable ASCII, not {text!a}.",
            )
            for text in ("a\r\nb", "größe", 3, None, b"a", "\x00")
        ),
        *(
            (
                {"LIFECYCLE_HEADERS": {name: "a"}},
                ValueError,
                f"'LIFECYCLE_HEADERS' names the header '{name}', which is the server's to set; leave it out.",
            )
            for name in ("Content-Length", "transfer-encoding", "Connection")
        ),
    ],
)
def test_settings(config: dict[str, Any], kind: type[Exception], message: str) -> None:
    """A bad setting is an error at init_app that names the key and the cure, and leaves the application as it was."""
    app = make_app(**config)
    before = app.wsgi_app
    with pytest.raises(kind, match=whole(message)):
        Lifecycle(app)
    assert "lifecycle" not in app.extensions
    assert "lifecycle" not in app.blueprints
    assert app.wsgi_app == before


def test_a_secret_is_not_in_its_error() -> None:
    """A token of the wrong type is not repeated in the error."""
    with pytest.raises(TypeError, match=whole("'LIFECYCLE_TOKEN' must be a string or None, not a bytes.")):
        Lifecycle(make_app(LIFECYCLE_TOKEN=b"hunter2"))


# -- init_app -----------------------------------------------------------------------------------------------------


def test_a_second_init_app() -> None:
    """A second init_app on one application is an error, by whichever Lifecycle."""
    app = make_app()
    lifecycle = Lifecycle(app)
    message = "The application 'testing' has a Lifecycle already; call init_app once for each."
    for second in (lifecycle, Lifecycle()):
        with pytest.raises(RuntimeError, match=whole(message)):
            second.init_app(app)


NO_APP = "This Lifecycle has no application yet; call lifecycle.init_app(app) first."


@pytest.mark.parametrize(
    "use",
    [
        lambda lifecycle: lifecycle.state,
        lambda lifecycle: lifecycle.in_flight,
        lambda lifecycle: lifecycle.requests(),
        lambda lifecycle: lifecycle.draining,
        lambda lifecycle: lifecycle.remaining(),
        lambda lifecycle: lifecycle.transitions(),
        lambda lifecycle: lifecycle.set_ready(),
        lambda lifecycle: lifecycle.set_not_ready(),
        lambda lifecycle: lifecycle.shutdown(),
        lambda lifecycle: lifecycle.run(Flask("x")),
        lambda lifecycle: lifecycle.run(wsgi),
    ],
)
def test_used_before_init_app(use: Callable[[Lifecycle], object]) -> None:
    """A Lifecycle that has no application says so, whatever it is asked."""
    with pytest.raises(RuntimeError, match=whole(NO_APP)):
        use(Lifecycle())


def test_run_of_an_application_that_has_none() -> None:
    """run() with another application than the Lifecycle's own is the same error."""
    lifecycle = Lifecycle(make_app())
    with pytest.raises(RuntimeError, match=whole(NO_APP)):
        lifecycle.run(Flask("other"))


# -- checks and hooks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda lifecycle: lifecycle.check("db")(3),
            TypeError,
            "The check 3 is not callable; register a function, or an object with __call__.",
        ),
        (
            lambda lifecycle: lifecycle.check(3),
            TypeError,
            "The check 3 is not callable; register a function, or an object with __call__.",
        ),
        (
            lambda lifecycle: lifecycle.add_check("db"),
            TypeError,
            "The check 'db' is not callable; register a function, or an object with __call__.",
        ),
        (
            lambda lifecycle: Check("db", 3),  # type: ignore[arg-type]
            TypeError,
            "The check 'db' is not callable; register a function, or an object with __call__.",
        ),
        *(
            (
                lambda lifecycle, name=name: lifecycle.add_check(Check(name, nothing)),
                TypeError,
                f"A check needs a name that is a string, not {name!r}; pass name='...'.",
            )
            for name in ("", 3, None)
        ),
        (
            lambda lifecycle: lifecycle.check("db")(takes_two),
            TypeError,
            "The check 'db' takes (one: 'Any', two: 'Any') -> 'None';"
            " it may take nothing, or one argument, the context.",
        ),
        (
            lambda lifecycle: lifecycle.check("db", tiemout=3)(nothing),
            TypeError,
            "A check has no option 'tiemout'; did you mean 'timeout'?",
        ),
        (
            lambda lifecycle: lifecycle.add_check(nothing, function=nothing),
            TypeError,
            "A check has no option 'function'; did you mean 'timeout'?",
        ),
        *(
            (
                lambda lifecycle, timeout=timeout: lifecycle.check("db", timeout=timeout)(nothing),
                ValueError,
                f"The timeout of the check 'db' must be a number of seconds greater than zero, not {timeout!r}.",
            )
            for timeout in (0, -1, NAN, math.inf, "2", True, None)
        ),
        *(
            (
                lambda lifecycle, option=option, value=value: lifecycle.check("db", **{option: value})(nothing),
                ValueError,
                f"The {option} of the check 'db' must be a number of seconds zero or more, not {value!r}.",
            )
            for option, value in (("ttl", -1), ("ttl", None), ("fail_ttl", "1"), ("fail_for", True), ("ttl", NAN))
        ),
        *(
            (
                lambda lifecycle, option=option, value=value: lifecycle.check("db", **{option: value})(nothing),
                ValueError,
                f"The {option} of the check 'db' must be a number of seconds greater than zero, not {value!r}.",
            )
            for option, value in (("interval", 0), ("interval", -1), ("fail_interval", math.inf), ("interval", "1"))
        ),
        (
            lambda lifecycle: lifecycle.check("db", fail_interval=1)(nothing),
            ValueError,
            "The check 'db' has a fail_interval but no interval; give it both.",
        ),
        *(
            (
                lambda lifecycle, option=option, value=value: lifecycle.check("db", **{option: value})(nothing),
                ValueError,
                f"The {option} of the check 'db' must be a whole number from 1 to 1000000, not {value!r}.",
            )
            for option in ("fail_after", "recover_after")
            for value in (0, 1.5, True, None)
        ),
        *(
            (
                lambda lifecycle, option=option, value=value: lifecycle.check("db", **{option: value})(nothing),
                TypeError,
                f"The {option} of the check 'db' must be a tuple of strings, not {value!r}.",
            )
            for option in ("groups", "affects")
            for value in ("ready", None, 3, (3,))
        ),
        (
            lambda lifecycle: lifecycle.check("db", scope="global")(nothing),
            ValueError,
            "The scope of the check 'db' must be 'local' or 'shared', not 'global'.",
        ),
        (
            lambda lifecycle: lifecycle.check("db", scope="shared", groups=("ready", "live"))(nothing),
            ValueError,
            "The check 'db' is shared and in the group 'live': restarting every replica does not repair what they"
            " share; take it out of 'live'.",
        ),
        *(
            (
                lambda lifecycle, group=group: lifecycle.check("db", groups=(group,))(nothing),
                ValueError,
                f"The check 'db' names the group {group!r}, which does not exist; the groups are 'live', 'ready',"
                " 'startup', and lifecycle.group() adds more.",
            )
            for group in ("redy", "healthcheck", "")
        ),
        (
            lambda lifecycle: [lifecycle.check("db")(nothing) for _ in range(2)],
            ValueError,
            "The check 'db' is registered already; give this one another name. If a factory registers it for each"
            " application, register it once, outside the factory.",
        ),
    ],
)
def test_checks(make: Callable[[Lifecycle], object], kind: type[Exception], message: str) -> None:
    """A bad check is refused where it is registered."""
    with pytest.raises(kind, match=whole(message)):
        make(Lifecycle())


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        *(
            (
                lambda lifecycle, name=name: lifecycle.group(name, path="/own"),
                TypeError,
                f"A group needs a name that is a string, not {name!r}.",
            )
            for name in ("", 3, None)
        ),
        (
            lambda lifecycle: lifecycle.group("own"),
            ValueError,
            "The group 'own' needs a path; pass path='/health/...'.",
        ),
        *(
            (
                lambda lifecycle, name=name: lifecycle.group(name, path="/own"),
                ValueError,
                f"The group '{name}' has its path; set 'LIFECYCLE_PATHS' instead.",
            )
            for name in ("live", "ready", "startup", "healthcheck")
        ),
        *(
            (
                lambda lifecycle, path=path: lifecycle.group("own", path=path),
                ValueError,
                f"'path' must hold paths such as '/livez', not {path!r}.",
            )
            for path in ("own", "/", "/own?x", 3, "/<own>")
        ),
        (
            lambda lifecycle: lifecycle.group("own", path="/own", details="some"),
            ValueError,
            "The details of the group 'own' must be 'never', 'token' or 'always', not 'some'.",
        ),
        (
            lambda lifecycle: lifecycle.group("own", path="/own", status_codes={"error": 500}),
            ValueError,
            "'status_codes' names the status 'error'; the statuses are 'pass', 'warn' and 'fail'.",
        ),
        (
            lambda lifecycle: lifecycle.group("own", path="/own", headers={"Connection": "close"}),
            ValueError,
            "'headers' names the header 'Connection', which is the server's to set; leave it out.",
        ),
        (
            lambda lifecycle: lifecycle.group("own", path="/own", renderer="json"),
            TypeError,
            "The renderer 'json' is not callable; give a function that takes the report.",
        ),
        (
            lambda lifecycle: lifecycle.renderer(None),
            TypeError,
            "The renderer None is not callable; give a function that takes the report.",
        ),
        (
            lambda lifecycle: [lifecycle.group("own", path=path) for path in ("/one", "/two")],
            ValueError,
            "The group 'own' is configured already; give this one another name.",
        ),
        (
            lambda lifecycle: [lifecycle.group(name, path="/own") for name in ("one", "two")],
            ValueError,
            "The path '/own' has a group already; give 'two' another path.",
        ),
    ],
)
def test_groups(make: Callable[[Lifecycle], object], kind: type[Exception], message: str) -> None:
    """A bad group or renderer is refused where it is registered."""
    lifecycle = Lifecycle()
    with pytest.raises(kind, match=whole(message)):
        make(lifecycle)
    assert lifecycle._registered.checks.renderer is None


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            {},
            {"path": "/readyz/"},
            "There is a probe at '/readyz' already; give the group 'own' another path.",
        ),
        (
            {"LIFECYCLE_URL_PREFIX": "/ops", "LIFECYCLE_PATHS": {"livez": "/own"}},
            {"path": "/own"},
            "There is a probe at '/ops/own' already; give the group 'own' another path.",
        ),
        (
            {"LIFECYCLE_CASE_INSENSITIVE": True},
            {"path": "/LiveZ"},
            "There is a probe at '/livez' already; give the group 'own' another path.",
        ),
        (
            {},
            {"path": "/own", "details": "token"},
            "The details of the group 'own' are for a 'token', but 'LIFECYCLE_TOKEN' is not set;"
            " set it to a long secret.",
        ),
    ],
)
@pytest.mark.parametrize("late", [True, False])
def test_groups_that_settings_do_not_allow(
    config: dict[str, Any], options: dict[str, Any], message: str, late: bool
) -> None:
    """A group that an application cannot serve is refused at once, or at init_app, and leaves all as it was."""
    lifecycle, app = Lifecycle(), make_app(**config)
    if late:
        lifecycle.init_app(app)
        with pytest.raises(ValueError, match=whole(message)):
            lifecycle.group("own", **options)
        assert list(lifecycle._registered.checks.groups()) == ["live", "ready", "startup", "healthcheck"]
        assert app.test_client().get("/own").status_code == 404
    else:
        lifecycle.group("own", **options)
        with pytest.raises(ValueError, match=whole(message)):
            lifecycle.init_app(app)
        assert "lifecycle" not in app.extensions


@pytest.mark.parametrize("code", ["503", 0, 199, 600, 503.0])
def test_the_status_code_of_an_error(code: Any) -> None:
    """A HealthCheckError with a status that HTTP has not is refused where it is raised."""
    message = f"The status_code of a HealthCheckError must be an HTTP status from 200 to 599, not {code!r}."
    with pytest.raises(ValueError, match=whole(message)):
        HealthCheckError("down", status_code=code)


def test_transitions_of_several_applications() -> None:
    """What asks about one application of several wants its context."""
    lifecycle = Lifecycle()
    apps = [make_app(), make_app()]
    for app in apps:
        lifecycle.init_app(app)
    message = "This Lifecycle has several applications; use it inside the application context of one."
    with pytest.raises(RuntimeError, match=whole(message)):
        lifecycle.transitions()


def takes_two(one: Any, two: Any) -> None: ...


def takes_keyword(*, context: Any) -> None: ...


@pytest.mark.parametrize("kind", ["startup", "drain", "shutdown"])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda on: on(3), TypeError, "on_{kind} was given 3, which is not callable; register a function."),
        (
            lambda on: on(name="pool")("text"),
            TypeError,
            "on_{kind} was given 'text', which is not callable; register a function.",
        ),
        (
            lambda on: on(coroutine),
            TypeError,
            "on_{kind} was given the async function {coroutine!r}; register a plain one.",
        ),
        (
            lambda on: [on(nothing) for _ in range(2)],
            ValueError,
            "There is an on_{kind} function 'nothing' already; pass name='...' to distinguish them, or, if a factory"
            " registers it for each application, register it once, outside the factory.",
        ),
        (
            lambda on: on(takes_two),
            TypeError,
            "The on_{kind} function 'takes_two' takes (one: 'Any', two: 'Any') -> 'None';"
            " it may take nothing, or one argument, the context.",
        ),
        (
            lambda on: on(takes_keyword),
            TypeError,
            "The on_{kind} function 'takes_keyword' takes (*, context: 'Any') -> 'None';"
            " it may take nothing, or one argument, the context.",
        ),
        (
            lambda on: on(name=5)(nothing),
            TypeError,
            "An on_{kind} function needs a name that is a string, not 5.",
        ),
        (
            lambda on: on(timeout=0)(nothing),
            ValueError,
            "The timeout of the on_{kind} function must be a number of seconds greater than zero, not 0.",
        ),
        (
            lambda on: on(timeout=NAN)(nothing),
            ValueError,
            "The timeout of the on_{kind} function must be a number of seconds greater than zero, not nan.",
        ),
    ],
)
def test_hooks(kind: str, make: Callable[[Any], object], error: type[Exception], message: str) -> None:
    """A bad hook is refused where it is registered."""
    with pytest.raises(error, match=whole(message.format(kind=kind, coroutine=coroutine))):
        make(getattr(Lifecycle(), f"on_{kind}"))


def test_the_scope_of_a_hook() -> None:
    """There are two."""
    expected = "The scope of an on_shutdown function must be 'process' or 'process-group', not 'master'."
    with pytest.raises(ValueError, match=whole(expected)):
        Lifecycle().on_shutdown(scope="master")


# -- run ----------------------------------------------------------------------------------------------------------


def test_run_outside_the_main_thread() -> None:
    """run() off the main thread is an error."""
    app = make_app()
    lifecycle = Lifecycle(app)
    message = "run() was called outside the main thread, where no signal arrives; call it in the main one."

    def call() -> None:
        with pytest.raises(RuntimeError, match=whole(message)):
            lifecycle.run(app)

    with running(call):
        pass
    assert not state_of(app).process.owner


def test_run_after_a_shutdown() -> None:
    """run() once a shutdown has begun is an error."""
    app = make_app()
    lifecycle = Lifecycle(app)
    lifecycle.shutdown()
    message = "run() was called after a shutdown had begun, and a process stops once; start a new process."
    with pytest.raises(RuntimeError, match=whole(message)):
        lifecycle.run(app)


def test_run_twice() -> None:
    """run() while run() is serving is an error."""
    app = make_app()
    lifecycle = Lifecycle(app)
    state_of(app).process.owner = "run"
    message = "run() is serving already; to serve several applications combine them into one."
    with pytest.raises(RuntimeError, match=whole(message)):
        lifecycle.run(app)


SERVERS = [
    (
        {"server": "gunicron"},
        ValueError,
        "There is no server 'gunicron'; did you mean 'gunicorn'? The server 'gunicorn' starts itself, and init_app is"
        " enough there; start it by 'gunicorn app:app' with 'from flask_lifecycle.gunicorn import *' in"
        " 'gunicorn.conf.py'. The servers that can be run here are waitress, werkzeug, cheroot, gevent.",
    ),
    (
        {"server": "nonsense"},
        ValueError,
        "There is no server 'nonsense'. The servers that can be run here are waitress, werkzeug, cheroot, gevent.",
    ),
    (
        {"server": "werkzeg"},
        ValueError,
        "There is no server 'werkzeg'; did you mean 'werkzeug'?"
        " The servers that can be run here are waitress, werkzeug, cheroot, gevent.",
    ),
    (
        {"server": "waitress", "treads": 8},
        ValueError,
        "waitress has no option 'treads'; did you mean 'threads'?",
    ),
    (
        {"server": "waitress", "host": "127.0.0.1", "listen": "127.0.0.1:0"},
        ValueError,
        "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them.",
    ),
    (
        {"server": "werkzeug", "threads": 8},
        ValueError,
        "werkzeug has no option 'threads'; it takes listen, unix_socket, sockets.",
    ),
    (
        {"server": "werkzeug", "port": 80, "unix_socket": "/tmp/x"},
        ValueError,
        "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them.",
    ),
    *(
        (
            {"server": server, "listen": address},
            ValueError,
            f"'{address}' is no address to listen on; write it as 127.0.0.1:5000 or [::1]:5000.",
        )
        for server in ("werkzeug", "cheroot", "gevent")
        for address in ("127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000")
    ),
    *(
        (
            {"server": server, "port": 80, "unix_socket": "/tmp/x"},
            ValueError,
            "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them.",
        )
        for server in ("cheroot", "gevent")
    ),
    (
        {"server": "cheroot", "sockets": [None], "unix_socket": "/tmp/x"},
        ValueError,
        "'sockets' cannot be combined with 'listen' or 'unix_socket'; give one of them.",
    ),
    ({"server": "cheroot", "treads": 8}, ValueError, "cheroot has no option 'treads'; did you mean 'threads'?"),
    (
        {"server": "cheroot", "timeout": "long"},
        ValueError,
        "cheroot's option 'timeout' must be a number, not 'long'.",
    ),
    ({"server": "cheroot", "threads": 0}, ValueError, "cheroot's option 'threads' must be more than 0, not 0."),
    (
        {"server": "gevent", "threads": 8},
        ValueError,
        "gevent has no option 'threads'; it takes backlog, listen, unix_socket, sockets.",
    ),
    (
        {"server": "gevent", "backlog": "many"},
        ValueError,
        "gevent's option 'backlog' must be a number, not 'many'.",
    ),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), SERVERS)
def test_servers(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """An unknown server, an unknown option or two that exclude each other are errors that name the cure."""
    app = make_app()
    lifecycle = Lifecycle(app)
    with pytest.raises(kind, match=whole(message)):
        lifecycle.run(app, **arguments)
    assert not state_of(app).process.owner


def test_an_option_with_a_value_that_waitress_refuses() -> None:
    """What waitress says of an option's value is passed on."""
    lifecycle = Lifecycle(app := make_app())
    with pytest.raises(ValueError, match=r"^waitress refuses its options: .*'many'"):
        lifecycle.run(app, port=0, threads="many")


@pytest.mark.parametrize("server", ["waitress", "werkzeug"])
def test_port_taken(server: str) -> None:
    """A port that is taken is one sentence that says so and what to do."""
    app = make_app()
    lifecycle = Lifecycle(app)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="Cannot listen on") as caught:
            lifecycle.run(app, port=port, server=server)
    assert caught.value.strerror == (
        f"Cannot listen on 127.0.0.1:{port}: it is in use by another program; stop that program or choose another port."
    )


def test_waitress_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose package is missing names the extra to install."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "waitress" else real(name))
    message = "The server 'waitress' is not installed; install it with: pip install 'flask-lifecycle[waitress]'"
    with pytest.raises(RuntimeError, match=whole(message)):
        create("waitress", wsgi, None, None, {})


# -- the command line ---------------------------------------------------------------------------------------------

APP = """
from flask import Flask
from flask_lifecycle import Lifecycle
app = Flask(__name__)
app.config.from_prefixed_env("BAD")
Lifecycle(app)
"""


def flask(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``flask lifecycle run`` in a process of its own."""
    (directory / "app.py").write_text(APP)
    code = "import sys; from flask.cli import main; sys.argv[0] = 'flask'; main()"
    return run_python(code, "--app", str(directory / "app.py"), "lifecycle", "run", *arguments, environ=environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--server", "waitres"],
            "There is no server 'waitres'; did you mean 'waitress'?"
            " The servers that can be run here are waitress, werkzeug, cheroot, gevent.",
        ),
        (["-o", "treads=8"], "waitress has no option 'treads'; did you mean 'threads'?"),
        (["-o", "treads"], "Invalid value for '--option' / '-o': 'treads' is not of the form KEY=VALUE."),
        (["-o", "=8"], "Invalid value for '--option' / '-o': '=8' is not of the form KEY=VALUE."),
        (["-p", "70000"], "Invalid value for '--port' / '-p': 70000 is not in the range 0<=x<=65535."),
        (["--threads", "0"], "Invalid value for '--threads': 0 is not in the range 1<=x<=10000."),
        (
            ["-p", "0", "--listen", "127.0.0.1:0"],
            "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them.",
        ),
        (
            ["--server", "werkzeug", "--threads", "8"],
            "werkzeug has no option 'threads'; it takes listen, unix_socket, sockets.",
        ),
    ],
)
def test_command_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    """A bad option goes to stderr as one sentence, with exit 2 and no traceback."""
    done = flask(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"Error: {message}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("register", ["check('again')", "on_shutdown(name='again')"])
def test_command_line_registered_twice(tmp_path: Path, register: str) -> None:
    """A check or hook that is registered twice goes to stderr as one sentence, with exit 2 and no traceback."""
    twice = f"lifecycle.{register}(lambda: None)\n" * 2
    (tmp_path / "app.py").write_text(APP.replace("\nLifecycle(app)", "\nlifecycle = Lifecycle(app)") + twice)
    code = "import sys; from flask.cli import main; sys.argv[0] = 'flask'; main()"
    done = run_python(code, "--app", str(tmp_path / "app.py"), "lifecycle", "run")
    assert done.returncode == 2
    assert {"'again'", "already;"} <= set(done.stderr.splitlines()[-1].split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("which", ["main", "probe"])
def test_command_line_port_taken(tmp_path: Path, which: str) -> None:
    """A port that is taken goes to stderr as one sentence, with exit 1 and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environ = {"BAD_LIFECYCLE_PROBE_HOST": "127.0.0.1", "BAD_LIFECYCLE_PROBE_PORT": str(port)}
        done = flask(tmp_path, "-p", str(port if which == "main" else 0), **(environ if which == "probe" else {}))
    message = {
        "main": f"Cannot listen on 127.0.0.1:{port}: it is in use by another program;"
        " stop that program or choose another port.",
        "probe": f"The probe listener cannot listen on 127.0.0.1:{port} (Address already in use);"
        " set 'LIFECYCLE_PROBE_PORT' to a free port, or to 0 for any.",
    }[which]
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"Error: {message}"
    assert "Traceback" not in done.stderr


def test_command_line_bad_setting(tmp_path: Path) -> None:
    """A bad setting goes to stderr as one sentence, with exit 2 and no traceback."""
    done = flask(tmp_path, "-p", "0", BAD_LIFECYCLE_GRACE_PERIOD="-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "Error: 'LIFECYCLE_GRACE_PERIOD' must be a finite number of seconds, more than zero, not -1."
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("source", "code", "last"),
    [
        (
            "from flask import Flask\napp = Flask('shop')",
            2,
            "Error: The application 'shop' has no Lifecycle; give it one with Lifecycle(app).",
        ),
        ("from flask import Flask\napp = Flask('shop')\nint('x')", 1, "ValueError: invalid literal"),
    ],
)
def test_command_line_bad_application(tmp_path: Path, source: str, code: int, last: str) -> None:
    """An application without a Lifecycle is named; one that fails by itself keeps its traceback."""
    (tmp_path / "app.py").write_text(source)
    done = run_python("from flask.cli import main; main()", "--app", str(tmp_path / "app.py"), "lifecycle", "run")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1].startswith(last)
    assert ("Traceback" in done.stderr) == (code == 1)


def test_command_line_without_waitress(tmp_path: Path) -> None:
    """A server that is not installed goes to stderr as one sentence with the extra, exit 2 and no traceback."""
    (tmp_path / "app.py").write_text(APP)
    code = (
        "import importlib.util as u, sys; real = u.find_spec;"
        "u.find_spec = lambda name, *more: None if name == 'waitress' else real(name, *more);"
        "from flask.cli import main; main()"
    )
    done = run_python(code, "--app", str(tmp_path / "app.py"), "lifecycle", "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "Error: The server 'waitress' is not installed; install it with: pip install 'flask-lifecycle[waitress]'"
    )
    assert "Traceback" not in done.stderr


def test_the_program_is_this_one() -> None:
    """What the processes of these tests import is the package under test."""
    done = run_python("import flask_lifecycle; print(flask_lifecycle.__file__)")
    assert Path(done.stdout.strip()) == ROOT / "flask_lifecycle" / "__init__.py", sys.path
    assert threading.current_thread() is threading.main_thread()
