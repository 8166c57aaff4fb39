"""The probes and the guard, through Flask's test client."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, abort, redirect, request, url_for
from flask.sessions import SecureCookieSessionInterface
from werkzeug import Response as BaseResponse
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, TestResponse

from flask_lifecycle import Lifecycle, State
from flask_lifecycle._state import Event, StateMachine
from flask_lifecycle._views import HEALTH_JSON, JSON, TEXT, Answer, answer, negotiate, refusal, render
from flask_lifecycle.checks import CheckReport
from tests._fakes import BOUND, FakeServer, ManualClock, finish, make_app, running, state_of, use_clock

PROBES = ("livez", "readyz", "startupz", "healthcheck")
SECRET = "postgres://admin:hunter2@db.internal"


def serve(**config: Any) -> tuple[Flask, Lifecycle]:
    """A testing application with a Lifecycle."""
    app = make_app(**config)
    return app, Lifecycle(app)


def get(app: Flask, path: str, **arguments: Any) -> TestResponse:
    """One request, its answer read and closed."""
    return app.test_client().open(path, buffered=True, **arguments)


def codes(app: Flask) -> dict[str, int]:
    return {probe: get(app, f"/{probe}").status_code for probe in PROBES}


def raises_secret() -> None:
    raise ValueError(SECRET)


# -- the table of states ------------------------------------------------------------------------------------------


def machine_in(state: State) -> StateMachine:
    machine = StateMachine(ready=True, notify=lambda *change: None)
    machine.apply(Event.STARTED)
    machine.state = state
    return machine


@pytest.mark.parametrize(
    ("state", "checks", "expected"),
    [
        (State.STARTING, "pass", (200, 503, 503, 503)),
        (State.READY, "pass", (200, 200, 200, 200)),
        (State.READY, "warn", (200, 200, 200, 200)),
        (State.READY, "fail", (200, 503, 200, 503)),
        (State.NOT_READY, "pass", (200, 503, 200, 503)),
        (State.DRAINING, "pass", (200, 503, 200, 503)),
        (State.STOPPING, "pass", (200, 503, 200, 503)),
        (State.STOPPED, "pass", (200, 503, 200, 503)),
    ],
)
def test_table_of_answers(state: State, checks: str, expected: tuple[int, ...]) -> None:
    """Each probe answers in each state as DESIGN's table has it; a check of the group ready fails or warns here."""

    def run(group: str | None) -> tuple[CheckReport, ...]:
        return (CheckReport("db", checks, 0.0),) if group in ("ready", None) else ()

    machine = machine_in(state)
    assert tuple(answer(probe, machine, run).code for probe in PROBES) == expected


def test_a_warning_is_said() -> None:
    """A check that is not critical and fails makes the answer a warning with 200."""
    result = answer("healthcheck", machine_in(State.READY), lambda group: (CheckReport("db", "warn", 0.0),))
    assert (result.status, result.code) == ("warn", 200)


@pytest.mark.parametrize(("probe", "group"), [("livez", "live"), ("readyz", "ready"), ("startupz", "startup")])
def test_each_probe_asks_its_group(probe: str, group: str) -> None:
    """A probe asks the checks of its own group, and the health check asks all."""
    asked: list[str | None] = []

    def run(group: str | None) -> tuple[CheckReport, ...]:
        asked.append(group)
        return ()

    answer(probe, machine_in(State.READY), run)
    answer("healthcheck", machine_in(State.READY), run)
    assert asked == [group, None]


@pytest.mark.parametrize("state", [State.STARTING, State.NOT_READY, State.DRAINING, State.STOPPING])
def test_no_check_is_asked_where_the_state_decides(state: State) -> None:
    """Where the state alone decides, no check is run for readiness; nor for start-up while ending."""

    def run(group: str | None) -> tuple[CheckReport, ...]:
        assert group in ("live", "startup")
        assert group == "live" or state is State.NOT_READY
        return ()

    for probe in PROBES:
        answer(probe, machine_in(state), run)


def test_states_through_the_client() -> None:
    """The probes follow the application from start to stop."""
    app, lifecycle = serve()
    hook: list[dict[str, int]] = []
    lifecycle.on_shutdown(lambda: hook.append(codes(app)), name="asks")  # type: ignore[call-overload]
    assert codes(app) == {"livez": 200, "readyz": 200, "startupz": 200, "healthcheck": 200}
    lifecycle.set_not_ready("maintenance")
    assert codes(app) == {"livez": 200, "readyz": 503, "startupz": 200, "healthcheck": 503}
    lifecycle.set_ready()
    assert codes(app)["readyz"] == 200
    lifecycle.shutdown()
    assert hook == [{"livez": 200, "readyz": 503, "startupz": 200, "healthcheck": 503}]
    assert codes(app) == {"livez": 200, "readyz": 503, "startupz": 200, "healthcheck": 503}


def test_a_live_check_fails_liveness_only_when_it_says_so() -> None:
    """Only a check that asked for the group live can fail liveness."""
    app, lifecycle = serve()
    lifecycle.add_check(raises_secret)
    assert codes(app) == {"livez": 200, "readyz": 503, "startupz": 200, "healthcheck": 503}
    lifecycle.check("self", groups=("live",))(raises_secret)
    assert codes(app)["livez"] == 503


# -- the manners of a probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/livez/", "/livez?verbose=1", "/livez/?x"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_slash_and_query(path: str, method: str) -> None:
    """A probe is answered with and without a trailing slash, whatever the query, by GET and HEAD."""
    app, _lifecycle = serve()
    response = get(app, path, method=method)
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"] == HEALTH_JSON
    assert response.headers["Content-Length"] == str(len(b'{"status": "pass"}\n'))
    assert response.data == (b"" if method == "HEAD" else b'{"status": "pass"}\n')


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods(method: str) -> None:
    """Any other method is answered 405 with what is allowed."""
    app, _lifecycle = serve()
    for path in ("/livez", "/readyz/"):
        response = get(app, path, method=method)
        assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD")
        assert response.data == b"probes answer GET and HEAD\n"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, HEALTH_JSON),
        ("", HEALTH_JSON),
        ("*/*", HEALTH_JSON),
        ("application/*", HEALTH_JSON),
        ("application/health+json", HEALTH_JSON),
        ("application/json", JSON),
        ("text/plain", TEXT),
        ("text/*", TEXT),
        ("text/plain;q=0.5, application/json", JSON),
        ("image/png", HEALTH_JSON),
        ("rubbish", HEALTH_JSON),
    ],
)
def test_accept(accept: str | None, kind: str) -> None:
    """The body is of the kind that the client likes best, and never 406."""
    app, _lifecycle = serve()
    response = get(app, "/readyz", headers={} if accept is None else {"Accept": accept})
    assert (response.status_code, response.mimetype) == (200, kind)
    assert response.data == (b"pass\n" if kind == TEXT else b'{"status": "pass"}\n')
    assert response.headers["Vary"] == "Accept, Authorization"
    assert negotiate(accept or "") == kind


def test_failing_bodies() -> None:
    """A failing probe says fail, in JSON and in text."""
    app, lifecycle = serve()
    get(app, "/work")
    lifecycle.set_not_ready("maintenance")
    assert get(app, "/readyz").json == {"status": "fail"}
    assert get(app, "/readyz", headers={"Accept": "text/plain"}).data == b"fail\n"


def test_configured_paths() -> None:
    """Paths and prefix are configurable; the default ones are the application's then."""
    app, _lifecycle = serve(LIFECYCLE_URL_PREFIX="/ops", LIFECYCLE_PATHS={"livez": "/alive"})
    assert [get(app, path).status_code for path in ("/ops/alive", "/ops/alive/", "/ops/readyz")] == [200] * 3
    assert [get(app, path).status_code for path in ("/livez", "/ops/livez", "/readyz")] == [404] * 3


def test_the_blueprint_names_the_probes() -> None:
    """url_for knows the probes."""
    app, _lifecycle = serve(LIFECYCLE_URL_PREFIX="/ops")
    with app.test_request_context():
        assert [url_for(f"lifecycle.{probe}") for probe in PROBES] == [f"/ops/{probe}" for probe in PROBES]


@pytest.mark.parametrize("path", ["/livez", "/livez/"])
def test_the_blueprint_answers_alike(path: str) -> None:
    """A probe that comes to Flask by another way than the middleware gets the same answer."""
    app, _lifecycle = serve()

    class Rewritten:
        """A proxy's rewriting inside of our middleware would do this."""

        def __call__(self, environ: Any, start_response: Any) -> Any:
            with app.request_context({**environ, "PATH_INFO": path}):
                return app.full_dispatch_request()(environ, start_response)

    response = Client(Rewritten(), Response).get("/elsewhere")
    assert (response.status_code, response.data) == (200, b'{"status": "pass"}\n')
    with app.request_context({**app.test_request_context(path).request.environ, "REQUEST_METHOD": "POST"}):
        assert app.full_dispatch_request().status_code == 405


def test_a_mounted_application() -> None:
    """Behind a dispatcher the probes are below the mount, as all of the application is."""
    app, _lifecycle = serve()
    outer = Client(DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app}), Response)
    assert outer.get("/shop/livez").status_code == 200
    assert outer.get("/livez").status_code == 404


def test_where_an_application_is_mounted_is_learned() -> None:
    """A probe under a mount is recognised by its path once one was answered there; a claimed prefix is not believed."""
    app, _lifecycle = serve()
    lane = app.extensions["lifecycle"].lane
    outer = Client(DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app}), Response)
    assert [lane("/livez"), lane("/shop/livez"), lane("/work")] == ["livez", None, None]
    outer.get("/shop/livez", environ_overrides={"REQUEST_URI": "/shop/livez?x"})
    assert [lane("/shop/livez"), lane("/shop/readyz/"), lane("/shop/livez//")] == ["livez", "readyz", None]
    Client(app.wsgi_app).get("/livez", environ_overrides={"SCRIPT_NAME": "/made/up", "REQUEST_URI": "/livez"})
    assert lane("/made/up/livez") is None


def test_probes_are_not_counted() -> None:
    """A probe is not in flight, not even the one that asks."""
    app, lifecycle = serve()
    seen: list[int] = []
    lifecycle.check("flight")(lambda: seen.append(lifecycle.in_flight))
    get(app, "/readyz")
    assert seen == [0]


# -- what an application does to requests -------------------------------------------------------------------------


def trusted_hosts(app: Flask) -> None:
    app.config["TRUSTED_HOSTS"] = ["shop.example"]


def login_guard(app: Flask) -> None:
    @app.before_request
    def login() -> None:
        abort(401)


def https_only(app: Flask) -> None:
    @app.before_request
    def https() -> BaseResponse | None:
        return None if request.is_secure else redirect(request.url.replace("http://", "https://", 1))


def broken_session(app: Flask) -> None:
    class Broken(SecureCookieSessionInterface):
        def open_session(self, app: Flask, request: Any) -> Any:
            raise ConnectionError("no session store")

    app.session_interface = Broken()


def broken_after_request(app: Flask) -> None:
    @app.after_request
    def after(response: Response) -> Response:
        raise ValueError("after")


def url_preprocessor(app: Flask) -> None:
    @app.url_value_preprocessor
    def before(endpoint: str | None, values: dict[str, Any] | None) -> None:
        raise ValueError("tenant")


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        # Flask itself reads the key from 3.1 on.
        (trusted_hosts, 400 if "TRUSTED_HOSTS" in Flask.default_config else 200),
        (login_guard, 401),
        (https_only, 302),
        (broken_session, 500),
        (broken_after_request, 500),
        (url_preprocessor, 500),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_nothing_breaks_a_probe(spoil: Callable[[Flask], None], broken: int, first: bool) -> None:
    """Whatever an application does to its requests, before or after init_app, probes are answered 200."""
    app = make_app(PROPAGATE_EXCEPTIONS=False)
    if first:
        spoil(app)
    Lifecycle(app)
    if not first:
        spoil(app)
    headers = {"Host": "10.1.2.3:8000"}
    assert [get(app, f"/{probe}", headers=headers).status_code for probe in PROBES] == [200] * 4
    assert get(app, "/work", headers=headers).status_code == broken


# -- details ------------------------------------------------------------------------------------------------------


def detailed(**config: Any) -> Flask:
    """An application with a check that fails with a secret in its text, one that hangs no one, one that has seen."""
    app, lifecycle = serve(**config)
    lifecycle.check("db", critical=False)(raises_secret)
    lifecycle.check("cache")(lambda: {"hit_rate": 0.9})
    return app


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer wrong", "Basic hush", "hush", "Bearer hüsh"])
def test_details_never(authorization: str | None) -> None:
    """By default nobody sees more than the status, whatever they send."""
    app = detailed(LIFECYCLE_TOKEN="hush")
    headers = {} if authorization is None else {"Authorization": authorization}
    assert get(app, "/healthcheck", headers=headers).json == {"status": "warn"}
    assert get(app, "/healthcheck", headers={**headers, "Accept": "text/plain"}).data == b"warn\n"


def test_details_always() -> None:
    """With 'always' everybody sees state, reason and checks, and no exception's text."""
    app = detailed(LIFECYCLE_DETAILS="always")
    response = get(app, "/healthcheck")
    assert response.json is not None
    assert {key: response.json[key] for key in ("status", "state", "reason")} == {
        "status": "warn",
        "state": "READY",
        "reason": "started",
    }
    [db], [cache] = response.json["checks"]["db"], response.json["checks"]["cache"]
    assert db.pop("observedValue") >= 0
    assert db == {"componentId": "db", "status": "warn", "observedUnit": "ms", "output": "ValueError"}
    assert (cache["status"], cache["observed"]) == ("pass", {"hit_rate": 0.9})
    text = get(app, "/healthcheck", headers={"Accept": "text/plain"}).text
    assert text == "warn\nstate READY: started\n[+]db warn\n[+]cache pass\n"
    assert SECRET not in response.text + text


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer hüsh",
        "Basic hush-hüsh",
        "hush-hüsh",
        "Bearer hush-hüsh x",
    ],
)
def test_a_wrong_token_is_like_no_token(authorization: str | None) -> None:
    """A wrong token, another scheme and no token get the same answer, the status alone."""
    app = detailed(LIFECYCLE_DETAILS="token", LIFECYCLE_TOKEN="hush-hüsh")
    headers = {} if authorization is None else {"Authorization": authorization.encode().decode("latin-1")}
    response = get(app, "/healthcheck", headers=headers)
    assert (response.status_code, response.json) == (200, {"status": "warn"})


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_token(scheme: str) -> None:
    """The right token, also one beyond ASCII, shows the details."""
    app = detailed(LIFECYCLE_DETAILS="token", LIFECYCLE_TOKEN="hush-hüsh")
    headers = {"Authorization": f"{scheme} hush-hüsh".encode().decode("latin-1")}
    response = get(app, "/healthcheck", headers=headers)
    assert response.json is not None
    assert set(response.json) == {"status", "state", "reason", "checks"}
    assert SECRET not in response.text


@pytest.mark.parametrize("accept", [HEALTH_JSON, JSON, TEXT])
@pytest.mark.parametrize("details", ["never", "always"])
def test_no_exception_text_in_any_body(accept: str, details: str) -> None:
    """What an exception says stays in the log: it may hold hosts, users and passwords."""
    app, lifecycle = serve(LIFECYCLE_DETAILS=details)
    lifecycle.check("db")(raises_secret)
    for probe in PROBES:
        text = get(app, f"/{probe}", headers={"Accept": accept}).text
        assert "hunter2" not in text
        assert "internal" not in text


@pytest.fixture
def free() -> Iterator[threading.Event]:
    """What a hanging check waits for; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_hanging_check_says_since_when(free: threading.Event) -> None:
    """A check past its timeout is shown as hanging since its run began."""
    app, lifecycle = serve(LIFECYCLE_DETAILS="always")
    lifecycle.check("db", timeout=0.001)(lambda: free.wait(BOUND))
    response = get(app, "/readyz")
    assert response.status_code == 503
    assert response.json is not None
    assert response.json["checks"]["db"][0]["output"].startswith("hanging since 0.")
    assert b"[-]db fail" in get(app, "/readyz", headers={"Accept": "text/plain"}).data


def test_observed_values_that_are_no_json() -> None:
    """What a check has seen may be anything: it is written as text rather than answered 500."""
    report = CheckReport("db", "pass", 0.0, {"version": complex(1, 2)})
    body = render(Answer("pass", State.READY, "started", (report,)), HEALTH_JSON, details=True)
    assert json.loads(body)["checks"]["db"][0]["observed"] == {"version": "(1+2j)"}


@pytest.mark.parametrize("observed", [{1: "a", (1, 2): "b"}, {"loop": float("nan")}])
def test_observed_values_of_any_keys(observed: dict[Any, Any]) -> None:
    """Keys that are no strings and numbers that are no JSON do not break the probe: the answer is JSON all the same."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report = CheckReport("db", "pass", 0.0, observed)
    body = render(Answer("pass", State.READY, "started", (report,)), HEALTH_JSON, details=True)
    assert json.loads(body, parse_constant=refuse)["status"] == "pass"


# -- the guard ----------------------------------------------------------------------------------------------------


def test_during_the_delay_everything_is_served() -> None:
    """During the delay work is served and readiness fails; after it the guard refuses."""
    clock = ManualClock()
    app, lifecycle = serve(LIFECYCLE_SHUTDOWN_DELAY=3.0)
    coordinator = use_clock(app, clock)
    with_server(app)
    assert get(app, "/work").status_code == 200
    coordinator.begin("test")
    assert clock.waits.get(timeout=BOUND) == 3.0
    assert (get(app, "/work").status_code, get(app, "/readyz").status_code) == (200, 503)
    clock.advance(3.0)
    finish(coordinator)
    assert get(app, "/work").status_code == 503
    assert lifecycle.state is State.STOPPED


def with_server(app: Flask, *, ours: bool = False) -> FakeServer:
    server = FakeServer(ours=ours)
    assert state_of(app).process.coordinator.attach(server)
    return server


class Asks(FakeServer):
    """A server that sends a request during the drain."""

    def __init__(self, app: Flask, ours: bool) -> None:
        super().__init__(ours)
        self.app = app
        self.answers: list[TestResponse] = []

    def wait_idle(self, timeout: float, linger: float) -> bool:
        self.answers.append(get(self.app, "/work"))
        return True


@pytest.mark.parametrize(
    ("policy", "ours", "code"),
    [
        ("auto", True, 200),
        ("auto", False, 503),
        ("serve", True, 200),
        ("serve", False, 200),
        ("reject", True, 503),
        ("reject", False, 503),
    ],
)
def test_drain_policies(policy: str, ours: bool, code: int) -> None:
    """In the drain auto serves where the listener is ours and closed, else refuses; the others do as they say."""
    app, lifecycle = serve(LIFECYCLE_DRAIN_POLICY=policy)
    server = Asks(app, ours)
    state_of(app).process.coordinator.attach(server)
    get(app, "/work")
    lifecycle.shutdown()
    assert [response.status_code for response in server.answers] == [code]
    assert get(app, "/work").status_code == 503


def test_a_refusal() -> None:
    """A refusal is 503 with Retry-After and problem+json, and nobody stores it."""
    app, lifecycle = serve()
    get(app, "/work")
    lifecycle.shutdown()
    response = get(app, "/work")
    assert (response.status_code, response.content_type) == (503, "application/problem+json")
    assert response.headers["Cache-Control"] == "no-store"
    assert 1 <= int(response.headers["Retry-After"]) <= 10
    assert response.json == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "This instance is shutting down and takes no new requests; try again.",
    }
    assert get(app, "/no-such-path").status_code == 503


@pytest.mark.parametrize(("remaining", "header"), [(None, "1"), (0.0, "1"), (0.2, "1"), (12.4, "12"), (25.0, "25")])
def test_retry_after(remaining: float | None, header: str) -> None:
    """Another process can be asked when this one is gone; at least a second from now."""
    assert refusal(remaining).headers["Retry-After"] == header


@pytest.mark.parametrize("late", [True, False])
def test_the_guard_is_ahead_of_the_applications_functions(late: bool) -> None:
    """A refused request reaches none of the application's before_request functions, nor its blueprints'."""
    app = make_app()
    ran: list[str] = []
    if late:
        lifecycle = Lifecycle(app)
    app.before_request(lambda: ran.append("before"))
    if not late:
        lifecycle = Lifecycle(app)
    get(app, "/work")
    assert ran == ["before"]
    lifecycle.shutdown()
    assert get(app, "/work").status_code == 503
    assert ran == ["before"]


def test_the_guard_costs_nothing_before() -> None:
    """Until work is to be refused, no function of ours stands before the application's."""
    app, lifecycle = serve()
    get(app, "/work")
    assert app.before_request_funcs.get(None, []) == []
    lifecycle.shutdown()
    assert len(app.before_request_funcs[None]) == 1


def test_a_request_under_way_keeps_its_functions() -> None:
    """The guard goes in as a new list: a request that is iterating over the old one is not refused halfway."""
    app = make_app()
    entered, go_on, codes = threading.Event(), threading.Event(), list[int]()

    @app.before_request
    def slow() -> None:
        entered.set()
        assert go_on.wait(BOUND)

    @app.before_request
    def second() -> None:
        """What comes after the one that is running when the guard goes in."""

    lifecycle = Lifecycle(app)
    with running(lambda: codes.append(get(app, "/work").status_code)):
        assert entered.wait(BOUND)
        state_of(app).refuse()
        go_on.set()
    assert codes == [200]
    lifecycle.shutdown()


def test_a_probe_is_never_refused() -> None:
    """When work is refused, probes are answered as ever."""
    app, lifecycle = serve()
    get(app, "/work")
    lifecycle.shutdown()
    assert get(app, "/livez").status_code == 200
    assert get(app, "/readyz").json == {"status": "fail"}
