"""Bad input: each error is one sentence, the thing and the cure, and is compared whole."""

from __future__ import annotations

import functools
import math
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as Executor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_lifecycle import Check, HealthCheckError, Lifecycle, checks
from flask_lifecycle._config import KEYS
from tests._fakes import BOUND, make_app, run_python, running, state_of, whole

NAN = math.nan


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    raise AssertionError("nobody calls it")


def nothing() -> None: ...


async def coroutine() -> None: ...


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


SECONDS = "must be a number of seconds, not {}."
POSITIVE = "must be a finite number of seconds, more than zero, not {}."
NOT_NEGATIVE = "must be a finite number of seconds, zero or more, not {}."
DELAY_SUCCEEDS = "'LIFECYCLE_SHUTDOWN_DELAY' is 'auto', which waits until failing probes have been seen, but"
NOTHING_LEFT = "leave nothing of 'LIFECYCLE_GRACE_PERIOD' (10 s) to drain in; raise the grace period or lower one of"


def told(text: str, value: Any) -> str:
    """The error for a value, which {} stands for; {last} is the last item of a list, {key} and {given} a mapping's."""
    if isinstance(value, list):
        text = text.replace("{last}", ascii(value[-1]))
    elif isinstance(value, dict):
        [(key, given)] = value.items()
        text = text.replace("{key}", ascii(key)).replace("{given}", ascii(given))
    return text.replace("{}", ascii(value))


# A setting, and values with the error that they have; see told().
# fmt: off
REFUSED: dict[type[Exception], list[tuple[str, list[Any], str]]] = {
    TypeError: [
        ("GRACE_PERIOD", ["25", True, None], SECONDS),
        ("SHUTDOWN_DELAY", [None], SECONDS),
        ("STUCK_AFTER", ["60"], SECONDS),
        ("PROBE_TIMEOUT", [None], SECONDS),
        ("REPORT_FILE", [5, "", b"/tmp/report.json"], "must be the path of a file or None, not {}."),
        *(
            (key, ["no", 1, None], "must be True or False, not {}.")
            for key in ("LOG_REMOTE_ADDR", "CASE_INSENSITIVE", "LOG_PROBES", "SELF_TEST", "METRICS")
        ),
        ("SIGNALS", [1.5], "must be a list of signal names or numbers, not {}."),
        ("TOKEN", [b"hunter2"], "must be a string or None, not bytes."),  # the secret is not in its error
        ("CONTROL_DIR", ["", b"/run", 1, "a\0b"], "must be the path of a directory or None, not {}."),
        ("PROBE_HOST", ["", None], "must be an address to listen on, such as '0.0.0.0' or '::', not {}."),
        ("PATHS", [["/livez"]], "must be a mapping from a probe to its path, not {}."),
        ("STOP_ON_CRASH", [True, 1, b"*", ["MainThread", 1], {"*": 1}],
         "must be a list of patterns of thread names such as ['MainThread', 'consumer-*'], not {}."),
        ("STATUS_CODES", [500, None, [("fail", 500)]], "must be a mapping such as {'fail': 500}, not {}."),
        ("HEADERS", ["X-Node: a", None, [("X-Node", "a")]], "must be a mapping from header names to strings, not {}."),
    ],
    ValueError: [
        ("GRACE_PERIOD", [0, -1.5], POSITIVE),
        ("GRACE_PERIOD", [1e10], POSITIVE.replace("zero", "zero and at most 604800")),
        ("SHUTDOWN_DELAY", [-1], NOT_NEGATIVE),
        ("SHUTDOWN_DELAY", ["automatic", "5"], "must be a number of seconds or 'auto', not {}."),
        ("HOOK_RESERVE", [NAN], NOT_NEGATIVE),
        ("KEEPALIVE_LINGER", [math.inf], NOT_NEGATIVE),
        ("STUCK_AFTER", [0], POSITIVE),
        ("PROBE_TIMEOUT", [0], POSITIVE),
        ("DELAY_MIN", [NAN], NOT_NEGATIVE),
        ("DELAY_MAX", [0], POSITIVE),
        ("DELAY_PROBES", [0, True, 2.5], "must be a whole number from 1 to 1000, not {}."),
        ("REPORT_FILE", ["/nowhere/report.json", "/"],
         "names {}, which is not a file in an existing directory; create the directory, or name another."),
        ("SIGNALS", [[15, name] for name in ("SIGTREM", 999, True, None)],
         "names {last}, which is not a signal on this system; use names such as 'SIGTERM'."),
        ("SIGNALS", [["SIGKILL"], ["SIGSTOP"]], "names {last}, which a process cannot catch; leave it out."),
        ("SIGNALS", [[9]], "names 'SIGKILL', which a process cannot catch; leave it out."),
        ("EXIT", ["quick"], "must be one of 'code', 'signal', not {}."),
        ("READY", [True], "must be one of 'auto', 'manual', not {}."),
        ("DRAIN_POLICY", ["drop"], "must be one of 'auto', 'serve', 'reject', not {}."),
        ("READINESS_ON_DRAIN", ["hold"], "must be one of 'fail', 'keep', not {}."),
        ("DETAILS", ["some"], "must be one of 'never', 'token', 'always', not {}."),
        ("DETAILS", ["token"], "is {} but 'LIFECYCLE_TOKEN' is not set; set it to a long secret."),
        ("TOKEN", ["from a file\n"],
         "begins or ends with a blank, or contains a line break, which a header cannot; remove it."),
        ("METRICS", [True],
         "is True but 'LIFECYCLE_PROBE_PORT' is not set, and only the probe listener serves metrics; set it to a"
         " port, or register flask_lifecycle.metrics.LifecycleCollector in a registry that you serve."),
        ("PROBE_PORT", [-1, 65536, "8000", True], "must be a port from 0 (any free one) to 65535, or None, not {}."),
        ("URL_PREFIX", ["ops", "/ops?x", "/<ops>", 3, "/größe", "/a b", "/50%"],
         "must hold paths such as '/livez', not {}."),
        ("PATHS", [{"livez": "/"}], "must hold paths such as '/livez', not '/'."),
        ("PATHS", [{"alive": "/alive"}],
         "names the probe 'alive'; the probes are 'healthcheck', 'livez', 'readyz', 'startupz'."),
        ("PATHS", [{"livez": "/readyz"}], "gives two probes the same path; each needs its own."),
        ("STOP_ON_CRASH", ["", ["a", ""]], "contains an empty pattern, which matches no thread; use '*' for all."),
        ("STATUS_CODES", [{"error": 500}, {503: 500}],
         "names the status {key}; the statuses are 'pass', 'warn' and 'fail'."),
        ("STATUS_CODES", [{"fail": code} for code in ("500", 100, 600, True, None, 500.0)],
         "must give 'fail' an HTTP status from 200 to 599, not {given}."),
        ("HEADERS", [{name: "a"} for name in ("", "X Node", "X-Node:", "X-Größe", 3, "X-Node\r\nX")],
         "names the header {key}, which is not a header name; use one such as 'X-Node'."),
        ("HEADERS", [{"X-Node": text} for text in ("a\r\nb", "größe", 3, None, b"a", "\x00")],
         "must give 'X-Node' one line of printable ASCII, not {given}."),
        ("HEADERS", [{name: "a"} for name in ("Content-Length", "transfer-encoding", "Connection")],
         "names the header {key}, which is the server's to set; leave it out."),
    ],
}

# Settings that do not go together, or that do not exist; all are a ValueError.
TOGETHER: list[tuple[dict[str, Any], str]] = [
    ({"GRACE_PEROID": 5},
     "'LIFECYCLE_GRACE_PEROID' is not a setting of flask_lifecycle; did you mean 'LIFECYCLE_GRACE_PERIOD'?"),
    ({"POLICY": "auto"},
     "'LIFECYCLE_POLICY' is not a setting of flask_lifecycle; did you mean 'LIFECYCLE_DRAIN_POLICY'?"),
    ({"SHUTDOWN_DELAY": 8, "HOOK_RESERVE": 2},
     f"'LIFECYCLE_SHUTDOWN_DELAY' (8 s) and 'LIFECYCLE_HOOK_RESERVE' (2 s) {NOTHING_LEFT} the two."),
    ({"SHUTDOWN_DELAY": "auto", "DELAY_MAX": 8, "HOOK_RESERVE": 2},
     f"'LIFECYCLE_DELAY_MAX' (8 s) and 'LIFECYCLE_HOOK_RESERVE' (2 s) {NOTHING_LEFT} the two."),
    ({"SHUTDOWN_DELAY": "auto", "DELAY_MAX": 4, "DELAY_MIN": 5},
     "'LIFECYCLE_DELAY_MIN' (5 s) is more than 'LIFECYCLE_DELAY_MAX' (4 s); lower it, or raise the maximum."),
    ({"SHUTDOWN_DELAY": "auto", "READINESS_ON_DRAIN": "keep"},
     f"{DELAY_SUCCEEDS} 'LIFECYCLE_READINESS_ON_DRAIN' is 'keep', so none fails; set the delay to a number of"
     " seconds."),
    ({"SHUTDOWN_DELAY": "auto", "STATUS_CODES": {"fail": 200}},
     f"{DELAY_SUCCEEDS} 'LIFECYCLE_STATUS_CODES' answers them with 200, which means success; give 'fail' a status of"
     " 400 or more."),
    ({"TOKEN": "x" * 15, "PROBE_PORT": 0},
     "'LIFECYCLE_TOKEN' has fewer than 16 characters, and a client that guesses it and reaches the probe listener"
     " can stop the process; set it to a long secret."),
    ({"METRICS": True, "PROBE_PORT": 0, "PATHS": {"livez": "/Metrics"}},
     "'LIFECYCLE_PATHS' gives 'livez' the path '/Metrics', where 'LIFECYCLE_METRICS' is served; give it another."),
    ({"PATHS": {"livez": "/ReadyZ"}, "CASE_INSENSITIVE": True},
     "'LIFECYCLE_PATHS' gives two probes paths that differ in their case alone, which 'LIFECYCLE_CASE_INSENSITIVE'"
     " ignores; give each its own."),
]
# fmt: on


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        *(
            ({key: value}, kind, f"'LIFECYCLE_{key}' {told(text, value)}")
            for kind, rows in REFUSED.items()
            for key, values, text in rows
            for value in values
        ),
        *((config, ValueError, message) for config, message in TOGETHER),
    ],
)
def test_settings(config: dict[str, Any], kind: type[Exception], message: str) -> None:
    """A bad setting is an error at init_app that names the key and the cure, and leaves the application as it was."""
    app = make_app(**{f"LIFECYCLE_{key}": value for key, value in config.items()})
    before = app.wsgi_app
    with pytest.raises(kind, match=whole(message)):
        Lifecycle(app)
    assert "lifecycle" not in app.extensions
    assert "lifecycle" not in app.blueprints
    assert app.wsgi_app == before


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
    "name", ["state", "draining", "remaining", "transitions", "set_ready", "set_not_ready", "shutdown", "run"]
)
def test_used_before_init_app(name: str) -> None:
    """A Lifecycle that has no application says so, whatever it is asked, and also when it is to run another one."""
    with pytest.raises(RuntimeError, match=whole(NO_APP)):
        getattr(Lifecycle(), name)(*[wsgi] * (name == "run"))
    other = Lifecycle(app := make_app())
    with pytest.raises(RuntimeError, match=whole(NO_APP)):
        other.run(Flask("other"))
    assert app.extensions


def takes_two(one: Any, two: Any) -> None: ...


def takes_keyword(*, context: Any) -> None: ...


async def numbers() -> Any:
    yield 1


NOT_CALLABLE = "The check {} is not callable; register a function, or an object with __call__."
NOT_A_NAME = "A check needs a name that is a string, not {}; pass name='...'."
MAY_TAKE = "it may take nothing, or one argument, the context."
FACTORY = "If a factory registers it for each application, register it once, outside the factory."
NO_GROUP = (
    "The check 'db' names the group {}, which does not exist; the groups are 'live', 'ready', 'startup', and"
    " lifecycle.group() adds more."
)
NO_RESOURCE = (
    "The resource 'a' is {}; register a generator function that yields once, a context manager, or a function that"
    " returns one."
)
NO_TASK = "A startup task needs a name that is a string,"
NO_WORK = "Work needs a name that is a string, not {}; what it works on goes by keyword."
NO_EXECUTOR = "submit() needs an executor, such as a ThreadPoolExecutor, not {}."
STATUS_CODE = "The status_code of a HealthCheckError must be an HTTP status from 200 to 599,"

# An option of a check, and values with the error that they have; {} stands for the value as Python writes it.
OPTIONS: dict[type[Exception], list[tuple[str, list[Any], str]]] = {
    TypeError: [
        ("groups", ["ready", None, 3, (3)], "must be a tuple of strings, not {}."),
        ("affects", ["ready", None, 3, (3)], "must be a tuple of strings, not {}."),
    ],
    ValueError: [
        ("timeout", [0, -1, NAN, math.inf, "2", True, None], "must be a number of seconds greater than zero, not {}."),
        ("timeout", [1e10], "must be a number of seconds greater than zero and at most 31536000, not {}."),
        ("interval", [0, -1, "1"], "must be a number of seconds greater than zero, not {}."),
        ("fail_interval", [math.inf], "must be a number of seconds greater than zero, not {}."),
        ("ttl", [-1, None, NAN], "must be a number of seconds zero or more, not {}."),
        ("fail_ttl", ["1"], "must be a number of seconds zero or more, not {}."),
        ("fail_for", [True], "must be a number of seconds zero or more, not {}."),
        ("fail_after", [0, 1.5, True, None], "must be a whole number from 1 to 1000000, not {}."),
        ("recover_after", [0, 1.5, True, None], "must be a whole number from 1 to 1000000, not {}."),
        ("scope", ["global"], "must be 'local' or 'shared', not {}."),
    ],
}


@pytest.mark.parametrize(
    ("option", "kind", "value", "text"),
    [
        (option, kind, value, text)
        for kind, rows in OPTIONS.items()
        for option, values, text in rows
        for value in values
    ],
)
def test_options_of_checks(option: str, kind: type[Exception], value: Any, text: str) -> None:
    """A bad value of an option is refused where the check is registered."""
    message = f"The {option} of the check 'db' {text.format(repr(value))}"
    with pytest.raises(kind, match=whole(message)):
        register_check(Lifecycle(), {option: value})


def group(name: Any = "own", **options: Any) -> Callable[[Lifecycle], object]:
    """What adds a group, of its own path unless it has another."""
    return lambda lifecycle: lifecycle.group(name, **{"path": "/own", **options})


# What is registered or begun on a Lifecycle, with the error that it has.
# fmt: off
REGISTERED: dict[type[Exception], list[tuple[Callable[[Any], object], str]]] = {
    TypeError: [
        (lambda it: it.check("db")(3), NOT_CALLABLE.format(3)),
        (lambda it: it.check(3), NOT_CALLABLE.format(3)),
        (lambda it: it.add_check("db"), NOT_CALLABLE.format("'db'")),
        (lambda it: Check("db", 3), NOT_CALLABLE.format("'db'")),  # type: ignore[arg-type]
        *((lambda it, no=no: it.add_check(Check(no, nothing)), NOT_A_NAME.format(repr(no))) for no in ("", 3, None)),
        (lambda it: it.check("db")(takes_two), f"The check 'db' takes (one: 'Any', two: 'Any') -> 'None'; {MAY_TAKE}"),
        (lambda it: it.check("db", tiemout=3)(nothing), "A check has no option 'tiemout'; did you mean 'timeout'?"),
        (lambda it: it.add_check(nothing, function=nothing),
         "A check has no option 'function'; did you mean 'timeout'?"),
        *((group(name), f"A group needs a name that is a string, not {name!r}.") for name in ("", 3, None)),
        (group(renderer="json"), "The renderer 'json' is not callable; give a function that takes the report."),
        (lambda it: it.renderer(None), "The renderer None is not callable; give a function that takes the report."),
        (lambda it: it.resource(name="a")(5), NO_RESOURCE.format(5)),
        (lambda it: it.resource(name="a")(coroutine), NO_RESOURCE.format("<coroutine>")),
        *((lambda it, no=no: it.startup_task(no), f"{NO_TASK} not {no!r}.") for no in ("", 3)),
        *((lambda it, no=no: it.work(no), NO_WORK.format(repr(no))) for no in (None, "", 5)),
        (lambda it: it.work("rows")(numbers),
         "The async generator 'numbers' cannot be decorated; use 'with lifecycle.work(...)' inside it."),
        (lambda it: it.work("rows")(5), "work() decorates functions, and 5 is not callable."),
        *((lambda it, no=no: it.submit(no, print), NO_EXECUTOR.format(repr(no))) for no in (None, print, Executor)),
    ],
    ValueError: [
        (lambda it: it.check("db", fail_interval=1)(nothing),
         "The check 'db' has a fail_interval but no interval; give it both."),
        (lambda it: it.check("db", scope="shared", groups=("ready", "live"))(nothing),
         "The check 'db' is shared and in the group 'live': restarting every replica does not repair what they"
         " share; take it out of 'live'."),
        *((lambda it, no=no: it.check("db", groups=(no,))(nothing), NO_GROUP.format(repr(no)))
          for no in ("redy", "healthcheck", "")),
        (lambda it: [it.check("db")(nothing) for _ in range(2)],
         f"The check 'db' is registered already; give this one another name. {FACTORY}"),
        *(
            (group(name), f"The group '{name}' has its path; set 'LIFECYCLE_PATHS' instead.")
            for name in ("live", "ready", "startup", "healthcheck")
        ),
        (group(path=None), "The group 'own' needs a path; pass path='/health/...'."),
        *(
            (group(path=path), f"'path' must hold paths such as '/livez', not {path!r}.")
            for path in ("own", "/", "/own?x", 3, "/<own>")
        ),
        (group(details="some"), "The details of the group 'own' must be 'never', 'token' or 'always', not 'some'."),
        (group(status_codes={"error": 500}),
         "'status_codes' names the status 'error'; the statuses are 'pass', 'warn' and 'fail'."),
        (group(headers={"Connection": "close"}),
         "'headers' names the header 'Connection', which is the server's to set; leave it out."),
        (lambda it: [it.group("own", path=path) for path in ("/one", "/two")],
         "The group 'own' is configured already; give this one another name."),
        (lambda it: [it.group(name, path="/own") for name in ("one", "two")],
         "The path '/own' has a group already; give 'two' another path."),
        (lambda it: it.on_shutdown(scope="master"),
         "The scope of an on_shutdown function must be 'process' or 'process-group', not 'master'."),
        (lambda it: it.startup_task("x", on_failure="retry"),
         "The on_failure of the startup task 'x' must be 'shutdown' or 'not_ready', not 'retry'."),
        *(
            (lambda it, code=code: HealthCheckError("down", status_code=code), f"{STATUS_CODE} not {code!r}.")
            for code in ("503", 0, 199, 600, 503.0)
        ),
    ],
}
# fmt: on


@pytest.mark.parametrize(
    ("make", "kind", "message"), [(make, kind, message) for kind, rows in REGISTERED.items() for make, message in rows]
)
def test_registrations(make: Callable[[Lifecycle], object], kind: type[Exception], message: str) -> None:
    """A bad check, group, resource, task or work item is refused where it is registered or begun, and holds nothing."""
    lifecycle = Lifecycle()
    with pytest.raises(kind, match=whole(message.replace("<coroutine>", repr(coroutine)))):
        make(lifecycle)
    assert lifecycle.work_items() == ()
    lifecycle.init_app(app := make_app())
    state_of(app).startup.run()
    assert lifecycle.state.name == "READY"


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"path": "/readyz/"}, "There is a probe at '/readyz' already; give the group 'own' another path."),
        ({"LIFECYCLE_URL_PREFIX": "/ops", "LIFECYCLE_PATHS": {"livez": "/own"}}, {"path": "/own"},
         "There is a probe at '/ops/own' already; give the group 'own' another path."),
        ({"LIFECYCLE_CASE_INSENSITIVE": True}, {"path": "/LiveZ"},
         "There is a probe at '/livez' already; give the group 'own' another path."),
        ({}, {"path": "/own", "details": "token"},
         "The details of the group 'own' are for a 'token', but 'LIFECYCLE_TOKEN' is not set;"
         " set it to a long secret."),
    ],
)  # fmt: skip
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
        assert app.test_client().get("/own").status_code == 404
    else:
        lifecycle.group("own", **options)
        with pytest.raises(ValueError, match=whole(message)):
            lifecycle.init_app(app)
        assert "lifecycle" not in app.extensions


PLAIN = "register a plain one."
TIMEOUT = "The timeout of the on_{kind} function must be a number of seconds greater than zero, not"


@pytest.mark.parametrize("kind", ["startup", "drain", "shutdown"])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda on: on(name="a")(3), TypeError, "on_{kind} was given 3, which is not callable; register a function."),
        (lambda on: on("b"), TypeError, "on_{kind} was given 'b', which is not callable; register a function."),
        (lambda on: on(coroutine), TypeError, f"on_{{kind}} was given the async function <coroutine>; {PLAIN}"),
        (lambda on: [on(nothing) for _ in range(2)], ValueError,
         "There is an on_{kind} function 'nothing' already; pass name='...' to distinguish them, or, if a factory"
         " registers it for each application, register it once, outside the factory."),
        (lambda on: on(takes_keyword), TypeError,
         f"The on_{{kind}} function 'takes_keyword' takes (*, context: 'Any') -> 'None'; {MAY_TAKE}"),
        (lambda on: on(name=5)(nothing), TypeError, "An on_{kind} function needs a name that is a string, not 5."),
        (lambda on: on(timeout=0)(nothing), ValueError, f"{TIMEOUT} 0."),
        (lambda on: on(timeout=NAN)(nothing), ValueError, f"{TIMEOUT} nan."),
    ],
)  # fmt: skip
def test_hooks(kind: str, make: Callable[[Any], object], error: type[Exception], message: str) -> None:
    """A bad hook is refused where it is registered."""
    with pytest.raises(error, match=whole(message.replace("{kind}", kind).replace("<coroutine>", repr(coroutine)))):
        make(getattr(Lifecycle(), f"on_{kind}"))


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("thread", "run() was called outside the main thread, where no signal arrives; call it in the main one."),
        ("after", "run() was called after a shutdown had begun, and a process stops once; start a new process."),
        ("twice", "run() is serving already; to serve several applications combine them into one."),
    ],
)
def test_run_where_it_cannot(why: str, message: str) -> None:
    """run() off the main thread, once a shutdown has begun, or while run() is serving, is an error."""
    lifecycle = Lifecycle(app := make_app())
    state_of(app).process.owner = "run" if why == "twice" else ""

    def call() -> None:
        with pytest.raises(RuntimeError, match=whole(message)):
            lifecycle.run(app)

    if why == "after":
        lifecycle.shutdown()
    if why == "thread":
        with running(call):
            pass
    else:
        call()
    assert state_of(app).process.owner == ("run" if why == "twice" else "")


THERE_ARE = "The servers that can be run here are waitress, werkzeug, cheroot, gevent."
TWO_ADDRESSES = "A host or port cannot be combined with 'listen', 'sockets' or 'unix_socket'; give one of them."

# fmt: off
SERVERS: list[tuple[str, dict[str, Any], str]] = [
    ("gunicron", {},
     "There is no server 'gunicron'; did you mean 'gunicorn'? The server 'gunicorn' starts itself, and init_app is"
     " enough there; start it by 'gunicorn app:app' with 'from flask_lifecycle.gunicorn import *' in"
     f" 'gunicorn.conf.py'. {THERE_ARE}"),
    ("nonsense", {}, f"There is no server 'nonsense'. {THERE_ARE}"),
    ("werkzeg", {}, f"There is no server 'werkzeg'; did you mean 'werkzeug'? {THERE_ARE}"),
    ("waitress", {"treads": 8}, "waitress has no option 'treads'; did you mean 'threads'?"),
    ("waitress", {"host": "127.0.0.1", "listen": "127.0.0.1:0"}, TWO_ADDRESSES),
    *((server, {"port": 80, "unix_socket": "/tmp/x"}, TWO_ADDRESSES) for server in ("werkzeug", "cheroot", "gevent")),
    ("werkzeug", {"threads": 8}, "werkzeug has no option 'threads'; it takes listen, unix_socket, sockets."),
    *(
        (server, {"listen": at}, f"'{at}' is no address to listen on; write it as 127.0.0.1:5000 or [::1]:5000.")
        for server in ("werkzeug", "cheroot", "gevent")
        for at in ("127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000")
    ),
    ("cheroot", {"sockets": [None], "unix_socket": "/tmp/x"},
     "'sockets' cannot be combined with 'listen' or 'unix_socket'; give one of them."),
    ("cheroot", {"treads": 8}, "cheroot has no option 'treads'; did you mean 'threads'?"),
    ("cheroot", {"timeout": "long"}, "cheroot's option 'timeout' must be a number, not 'long'."),
    ("cheroot", {"threads": 0}, "cheroot's option 'threads' must be more than 0, not 0."),
    ("gevent", {"threads": 8}, "gevent has no option 'threads'; it takes backlog, listen, unix_socket, sockets."),
    ("gevent", {"backlog": "many"}, "gevent's option 'backlog' must be a number, not 'many'."),
]
# fmt: on


@pytest.mark.parametrize(("server", "arguments", "message"), SERVERS)
def test_servers(server: str, arguments: dict[str, Any], message: str) -> None:
    """An unknown server, an unknown option or two that exclude each other are errors that name the cure."""
    app = make_app()
    lifecycle = Lifecycle(app)
    with pytest.raises(ValueError, match=whole(message)):
        lifecycle.run(app, server=server, **arguments)
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


APP = """
from flask import Flask
from flask_lifecycle import Lifecycle
app = Flask("shop")
lifecycle = Lifecycle(app)
"""
WITHOUT_WAITRESS = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "waitress" else real(name, *more)
"""


def flask(directory: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``flask lifecycle run`` in a process of its own."""
    (directory / "app.py").write_text(source)
    code = "import sys; from flask.cli import main; sys.argv[0] = 'flask'; main()"
    return run_python(code, "--app", str(directory / "app.py"), "lifecycle", "run", *arguments)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (APP, ["-o", "treads=8"], "waitress has no option 'treads'; did you mean 'threads'?"),
        (APP, ["-o", "treads"], "Invalid value for '--option' / '-o': 'treads' is not of the form KEY=VALUE."),
        (APP, ["-o", "=8"], "Invalid value for '--option' / '-o': '=8' is not of the form KEY=VALUE."),
        (APP, ["-p", "70000"], "Invalid value for '--port' / '-p': 70000 is not in the range 0<=x<=65535."),
        (APP, ["--threads", "0"], "Invalid value for '--threads': 0 is not in the range 1<=x<=10000."),
        ("from flask import Flask\napp = Flask('shop')", [],
         "The application 'shop' has no Lifecycle; give it one with Lifecycle(app)."),
        (APP.replace("lifecycle =", "app.config['LIFECYCLE_GRACE_PERIOD'] = -1\nlifecycle ="), [],
         f"'LIFECYCLE_GRACE_PERIOD' {POSITIVE.format(-1)}"),
        (APP + 2 * "lifecycle.check('again')(lambda: None)\n", [],
         "The check 'again' is registered already; give this one another name. If a factory registers it for each"
         " application, register it once, outside the factory."),
        (APP + WITHOUT_WAITRESS, [],
         "The server 'waitress' is not installed; install it with: pip install 'flask-lifecycle[waitress]'"),
    ],
)  # fmt: skip
def test_command_line(tmp_path: Path, source: str, arguments: list[str], message: str) -> None:
    """A bad option, or an application that cannot be served, is one sentence on stderr, exit 2 and no traceback."""
    done = flask(tmp_path, source, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"Error: {message}"
    assert "Traceback" not in done.stderr


def test_command_line_defect(tmp_path: Path) -> None:
    """An application that fails by itself keeps its traceback."""
    done = flask(tmp_path, "int('x')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("ValueError: invalid literal")
    assert "Traceback" in done.stderr
