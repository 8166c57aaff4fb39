"""The probes and the guard, through Flask's test client and the probe listener's application."""

from __future__ import annotations

import http
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, Response, abort, redirect, url_for
from flask.sessions import SecureCookieSessionInterface
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, create_environ

from flask_lifecycle import CheckResult, HealthCheckError, HealthReport, Lifecycle, State, probe_refused
from tests._fakes import BOUND, FakeServer, get, in_child, listener_of, make_app, raiser, running, serve, state_of

PROBES = ("/livez", "/readyz", "/startupz", "/healthcheck")
HEALTH_JSON, JSON, TEXT, HTML = "application/health+json", "application/json", "text/plain", "text/html"
SECRET = "postgres://admin:hunter2@db.internal"
TOKEN = "x7Qm2pKdLw9vTr4n"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def codes(app: Flask, *paths: str, **arguments: Any) -> list[int]:
    """The status codes of some paths, or of all probes."""
    return [get(app, path, **arguments).status_code for path in paths or PROBES]


raises_secret = raiser(ValueError(SECRET))


@pytest.mark.parametrize(
    ("state", "status", "expected"),
    [
        (State.STARTING, "pass", [200, 503, 503, 503]),
        (State.READY, "pass", [200, 200, 200, 200]),
        (State.READY, "warn", [200, 200, 200, 200]),
        (State.READY, "fail", [200, 503, 200, 503]),
        *((state, "pass", [200, 503, 200, 503]) for state in State if state not in (State.STARTING, State.READY)),
    ],
)
def test_table_of_answers(state: State, status: str, expected: list[int]) -> None:
    """Each probe answers by the state, and by the checks of its group where the state does not decide."""
    app, lifecycle = serve()
    lifecycle.check("db")(lambda: CheckResult(status))
    get(app, "/work")
    state_of(app).machine.state = state
    assert codes(app) == expected


def test_each_probe_asks_its_group() -> None:
    """A probe asks the checks of its own group, the health check asks all, and no probe counts as in flight."""
    app, lifecycle = serve()
    asked: list[tuple[str, int]] = []
    get(app, "/work")
    for name in ("live", "ready", "startup"):
        lifecycle.check(name, groups=(name,), ttl=0)(lambda name=name: asked.append((name, lifecycle.in_flight)))
    for path in PROBES[:3]:
        get(app, path)
    assert asked == [("live", 0), ("ready", 0), ("startup", 0)]
    get(app, "/healthcheck")
    assert sorted(asked[3:]) == sorted(asked[:3])


@pytest.mark.parametrize("path", ["/livez", "/livez/", "/livez?x=1&verbosely", "/livez/?x"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_slash_and_query(path: str, method: str) -> None:
    """A probe answers GET and HEAD with and without a trailing slash, whatever the query."""
    app, _lifecycle = serve()
    response, body = get(app, path, method=method), b'{"status": "pass"}\n'
    assert (response.status_code, response.data) == (200, b"" if method == "HEAD" else body)
    headers = {"Cache-Control": "no-store", "Content-Type": HEALTH_JSON, "Content-Length": str(len(body))}
    assert headers.items() <= dict(response.headers).items()


@pytest.mark.parametrize("path", ["/livez", "/readyz/", "/healthcheck?verbose"])
def test_other_methods(path: str) -> None:
    """Another method gets 405 with the allowed ones, OPTIONS these alone, and no check is run."""
    app, lifecycle = serve()
    asked: list[str] = []
    lifecycle.check("db", groups=("live", "ready"))(lambda: asked.append("db"))
    lifecycle.set_not_ready()
    for method in ("POST", "PUT", "DELETE", "TRACE", "PATCH"):
        response = get(app, path, method="POST", environ_overrides={"REQUEST_METHOD": method})
        assert (response.status_code, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert response.data == b"probes answer GET and HEAD\n"
    response = get(app, path, method="OPTIONS")
    assert (response.status, response.data) == ("204 NO CONTENT", b"")
    assert dict(response.headers) == {
        "Allow": "GET, HEAD, OPTIONS",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    assert asked == []


def test_methods_of_the_applications_own_route() -> None:
    """A method that a probe does not have goes to the application's route at that path, if it has that method."""
    app, _lifecycle = serve()
    app.add_url_rule("/healthcheck", "own", lambda: "own", methods=["GET", "POST"])
    app.add_url_rule("/livez", "gets", lambda: "own")
    answers = [get(app, "/healthcheck", method=method) for method in ("GET", "POST", "PUT")]
    assert [(answer.status_code, answer.data == b"own") for answer in answers] == [
        (200, False), (200, True), (405, False),
    ]  # fmt: skip
    assert codes(app, "/livez", method="POST") == [405]
    assert Client(listener_of(app)).post("/healthcheck").status_code == 405  # the probe listener has no such route


def test_warnings_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """Routes that probes replace are named once, and so are settings that came too late."""
    app, lifecycle = serve(LIFECYCLE_GRACE_PERIOD=8, LIFECYCLE_LOG_PROBES=True)
    lifecycle.check("db")(lambda: None)
    app.config.update(LIFECYCLE_GRACE_PERIOD=9, LIFECYCLE_LOG_PROBES=True, LIFECYCLE_PROBE_PORT=8081, OTHER=1)
    for rule in ("/healthcheck", "/readyz/", "/healthcheck/<name>", "/healthcheck/db", "/<path:rest>"):
        app.add_url_rule(rule, rule, lambda **values: "own")
    app.add_url_rule("/startupz", "posts", lambda: "own", methods=["POST"])
    codes(app, "/readyz", "/work", "/readyz", "/work")
    assert sorted(caplog.messages) == [
        "'LIFECYCLE_GRACE_PERIOD' 'LIFECYCLE_PROBE_PORT' was set after init_app, which reads the settings once, and has"
        " no effect; set it before.",
        "A probe answers GET at /healthcheck /readyz/ in place of the application's route; move the probe by"
        " 'LIFECYCLE_PATHS' or 'LIFECYCLE_URL_PREFIX', or remove the route.",
    ]


@pytest.mark.parametrize(
    ("accept", "kind", "verbose"),
    [
        *((accept, HEALTH_JSON, TEXT) for accept in (None, "", "*/*")),
        *((accept, HEALTH_JSON, HEALTH_JSON) for accept in ("application/*", HEALTH_JSON)),
        *((accept, JSON, JSON) for accept in (JSON, "text/plain;q=0.5, application/json")),
        *((accept, TEXT, TEXT) for accept in (TEXT, "text/*")),
        (HTML, HTML, HTML),
        # What a browser sends, and axios.
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", HTML, HTML),
        ("application/json, text/plain, */*", JSON, JSON),
        *((accept, HEALTH_JSON, None) for accept in ("text/plain;q=many", ";;,,;q=", "image/png", "rubbish")),
        # One of more than 300 characters is not read, and no reason to refuse an answer.
        ("text/html".rjust(300), HTML, HTML),
        ("text/html".rjust(301), HEALTH_JSON, None),
    ],
)
def test_accept(accept: str | None, kind: str, verbose: str | None) -> None:
    """The body has the type that the client prefers, never 406; ?verbose is text for clients that accept anything."""
    app, _lifecycle = serve()
    headers = {} if accept is None else {"Accept": accept}
    response = get(app, "/readyz", headers=headers)
    assert (response.status_code, response.mimetype) == (200, kind)
    assert response.content_type == (f"{kind}; charset=utf-8" if kind in (TEXT, HTML) else kind)
    if kind == HTML:
        assert "<h1>pass</h1>" in response.text
    else:
        assert response.data == (b"pass\n" if kind == TEXT else b'{"status": "pass"}\n')
    assert response.headers["Vary"] == "Accept, Authorization"
    if verbose:
        assert get(app, "/readyz?verbose", headers=headers).mimetype == verbose


def test_configured_paths() -> None:
    """Paths and prefix are settings, and the default paths are the application's then; case matters by default."""
    # A probe that reaches Flask past the middleware, as one rewritten inside, is answered alike.
    app, _lifecycle = serve(LIFECYCLE_URL_PREFIX="/ops", LIFECYCLE_PATHS={"livez": "/alive"})
    assert codes(app, "/ops/alive", "/ops/alive/", "/ops/readyz") == [200] * 3
    assert codes(app, "/livez", "/ops/livez", "/readyz", "/ops/Alive") == [404] * 4
    for path, method, code in (("/ops/alive", "GET", 200), ("/ops/alive/", "GET", 200), ("/ops/alive", "POST", 405)):
        with app.test_request_context(path, method=method):
            assert app.full_dispatch_request().status_code == code
    app, _lifecycle = grouped(LIFECYCLE_CASE_INSENSITIVE=True, LIFECYCLE_PATHS={"livez": "/LiveZ"})
    assert codes(app, "/LIVEZ", "/livez", "/Health/Data/", "/healthcheck/DB", "/WORK") == [200, 200, 500, 503, 404]
    assert state_of(app).probe_worker("/READYZ") == "ready"


def test_where_an_application_is_mounted_is_learned() -> None:
    """A probe under a mount is recognised by its path once one was answered there; a claimed prefix is not believed."""
    # Where clients choose the mount, as a tenant's, only some are remembered.
    app, _lifecycle = serve()
    probe_worker = state_of(app).probe_worker
    outer = Client(DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app}), Response)
    assert [probe_worker("/livez"), probe_worker("/shop/livez"), probe_worker("/work")] == ["live", None, None]
    outer.get("/shop/livez", environ_overrides={"REQUEST_URI": "/shop/livez?x"})
    found = {"/shop/livez": "live", "/shop/readyz/": "ready", "/shop/livez//": None, "/livez": "live"}
    found |= dict.fromkeys(("/shoplivez", "/shop/work"))
    assert {path: probe_worker(path) for path in found} == found
    client = Client(app.wsgi_app)
    client.get("/livez", environ_overrides={"SCRIPT_NAME": "/made/up", "REQUEST_URI": "/livez"})
    assert probe_worker("/made/up/livez") is None
    mounts = [f"/tenant{number}" for number in range(100)]
    for mount in mounts:
        overrides = {"SCRIPT_NAME": mount, "REQUEST_URI": f"{mount}/livez"}
        assert client.get("/livez", environ_overrides=overrides).status_code == 200
    assert [probe_worker(f"{mount}/livez") for mount in mounts].count("live") == 15


def breaks(*arguments: Any) -> Any:
    raise ValueError("tenant")


BrokenSession = type("BrokenSession", (SecureCookieSessionInterface,), {"open_session": breaks})


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        # Flask itself reads the key from 3.1 on.
        (
            lambda app: app.config.update(TRUSTED_HOSTS=["shop.example"]),
            400 if "TRUSTED_HOSTS" in Flask.default_config else 200,
        ),
        (lambda app: app.before_request(lambda: abort(401)), 401),
        (lambda app: app.before_request(lambda: redirect("https://shop.example")), 302),
        (lambda app: setattr(app, "session_interface", BrokenSession()), 500),
        (lambda app: app.after_request(breaks), 500),
        (lambda app: app.url_value_preprocessor(breaks), 500),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_nothing_breaks_a_probe(spoil: Callable[[Flask], Any], broken: int, first: bool) -> None:
    """Whatever an application does to its requests, before or after init_app, probes are answered 200."""
    app = make_app(PROPAGATE_EXCEPTIONS=False)
    if first:
        spoil(app)
    Lifecycle(app)
    if not first:
        spoil(app)
    headers = {"Host": "10.1.2.3:8000"}
    assert codes(app, *PROBES, "/work", headers=headers) == [200] * 4 + [broken]


@pytest.mark.parametrize(
    ("details", "authorization", "shown"),
    [
        ("never", "Bearer hush-hüsh", False),
        *(("token", value, False) for value in ("", "Bearer", "Bearer ", "Bearer wrong", "Bearer hüsh")),
        *(("token", value, False) for value in ("Basic hush-hüsh", "hush-hüsh", "Bearer hush-hüsh x")),
        *(("token", f"{scheme} hush-hüsh", True) for scheme in ("Bearer", "bearer", "BEARER")),
        ("always", "", True),
    ],
)
def test_who_sees_details(details: str, authorization: str, shown: bool) -> None:
    """Only callers allowed to see details see more than the status; no caller sees the text of an exception."""
    app, lifecycle = serve(LIFECYCLE_DETAILS=details, LIFECYCLE_TOKEN="hush-hüsh")
    lifecycle.check("db", critical=False, affects=("/orders",))(raises_secret)
    lifecycle.check("cache")(lambda: {"hit_rate": 0.9})
    lifecycle.check("disk")(lambda: CheckResult("warn", "nearly full", {"path": "/data"}, 97, "%"))
    headers = {"Authorization": authorization.encode().decode("latin-1")} if authorization else {}
    bodies = {}
    for query in ("", "?verbose", "?verbose=1"):
        for kind in (JSON, HEALTH_JSON, TEXT, HTML):
            response = get(app, f"/healthcheck{query}", headers=headers | {"Accept": kind})
            assert response.status_code == 200
            assert not any(word in response.text for word in ("hunter2", "internal"))
            bodies[kind, query] = response.text
    if shown:
        document = json.loads(bodies[HEALTH_JSON, ""])
        assert list(document.pop("checks")) == ["db", "cache", "disk"]
        assert document == {"status": "warn", "state": "READY", "reason": "started"}
        assert bodies[TEXT, "?verbose"].startswith("[+]state READY: started\n[!]db warning: ValueError\n")
        assert "nearly full" in bodies[HTML, ""]
        return
    pages = {body for (kind, _query), body in bodies.items() if kind == HTML}
    assert {body for body in bodies.values() if body not in pages} == {'{"status": "warn"}\n', "warn\n"}
    for page in pages:
        assert page.count("warn") == 2
        assert not any(word in page for word in ("db", "cache", "disk", "READY", "started"))


def grouped(**config: Any) -> tuple[Flask, Lifecycle]:
    """An application with details for everybody and a group of its own, with a check that is shared and fails."""
    app, lifecycle = serve(**{"LIFECYCLE_DETAILS": "always", **config})
    lifecycle.group("data", path="/health/data", status_codes={"fail": 500}, headers={"X-Group": "data"})
    lifecycle.check("db", groups=("ready", "data"), scope="shared")(raises_secret)
    lifecycle.check("cache", groups=("data",))(lambda: None)
    return app, lifecycle


@pytest.mark.parametrize(
    ("path", "code", "status", "names"),
    [
        ("/readyz", 200, "warn", ["db"]),
        ("/healthcheck", 200, "warn", ["db", "cache"]),
        ("/health/data", 500, "fail", ["db", "cache"]),
        ("/health/data/", 500, "fail", ["db", "cache"]),
        ("/health/data?exclude=db", 200, "pass", ["cache"]),
        ("/health/data?exclude=db&exclude=cache", 200, "pass", []),
        ("/healthcheck/db", 503, "fail", ["db"]),
        ("/healthcheck/db/?exclude=db", 503, "fail", ["db"]),
        ("/readyz/db", 503, "fail", ["db"]),
        ("/health/data/db", 500, "fail", ["db"]),
        ("/health/data/cache", 200, "pass", ["cache"]),
        # There is no component of a group that does not ask it, and nothing else below a probe.
        *((path, 404, "", []) for path in ("/readyz/cache", "/healthcheck/other", "/livez/db", "/health")),
        ("/health/data/db/x", 404, "", []),
    ],
)
def test_what_is_asked(path: str, code: int, status: str, names: list[str]) -> None:
    """A group asks its checks except excluded ones, a component's URL that one; what is shared warns or fails."""
    response = get(grouped()[0], path)
    assert response.status_code == code
    if code != 404:
        document = json.loads(response.data)
        assert (document["status"], list(document["checks"])) == (status, names)


def test_exclusion_is_for_those_who_see_the_checks() -> None:
    """A caller who sees the checks is told of an unknown one; for others exclude would reveal which check fails."""
    response = get(grouped()[0], "/healthcheck?exclude=db&exclude=other")
    assert (response.status_code, response.text) == (404, "there is no check 'other' to exclude\n")
    app, lifecycle = serve()
    lifecycle.check("db")(raises_secret)
    for name in ("db", "other"):
        response = get(app, f"/readyz?exclude={name}")
        assert (response.status_code, response.json) == (503, {"status": "fail"})


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_hidden_component_is_not_there(method: str, headers: dict[str, str]) -> None:
    """For a caller who may not see details, a component is answered exactly as a path that does not exist."""
    # If the application has a route there, such a caller gets that.
    app, lifecycle = grouped(LIFECYCLE_DETAILS="token", LIFECYCLE_TOKEN=TOKEN)
    for group in ("/healthcheck", "/health/data"):
        answers = [get(app, f"{group}/{name}", method=method, headers=headers) for name in ("db", "no")]
        there, not_there = ((answer.status_code, answer.data, dict(answer.headers)) for answer in answers)
        assert there == not_there
        assert there[0] == 404
    assert codes(app, "/healthcheck/db", headers=BEARER) == [503]
    assert lifecycle.in_flight == 0
    app, lifecycle = grouped(LIFECYCLE_DETAILS="never")
    app.add_url_rule("/healthcheck/<name>", "own", lambda name: f"{name}, {lifecycle.in_flight}", methods=[method])
    response = get(app, "/healthcheck/db", method=method, headers=headers)
    assert (response.status_code, response.text) == (200, "" if method == "HEAD" else "db, 1")


def test_a_groups_own_details() -> None:
    """A group may show its details to everybody, or to nobody, whatever the others do."""
    app, lifecycle = serve(LIFECYCLE_TOKEN=TOKEN)
    lifecycle.group("open", path="/open", details="always")
    lifecycle.group("keyed", path="/keyed", details="token")
    lifecycle.group("ready", details="always")
    with pytest.raises(ValueError, match=r"^The group 'ready' is configured already; configure it in one call\.$"):
        lifecycle.group("ready", details="never")
    lifecycle.group("closed", path="/closed")
    lifecycle.check("db", groups=("open", "keyed", "ready", "closed"))(lambda: None)
    paths = ("/open", "/keyed", "/readyz", "/closed")
    assert ["checks" in get(app, path).text for path in paths] == [True, False, True, False]
    assert "checks" in get(app, "/keyed", headers=BEARER).text
    assert codes(app, "/open/db", "/keyed/db", "/closed/db") == [200, 404, 404]


@pytest.mark.parametrize("late", [True, False])
def test_groups_and_components_before_or_after_init_app(late: bool) -> None:
    """Groups and checks are served whether they come before or after init_app; a group goes before a component."""
    lifecycle, app = Lifecycle(), make_app(LIFECYCLE_DETAILS="always", LIFECYCLE_URL_PREFIX="/ops")
    if late:
        lifecycle.init_app(app)
    lifecycle.check("db")(raises_secret)
    lifecycle.group("other", path="/healthcheck/db")
    lifecycle.check("new", groups=("other",))(lambda: None)
    if not late:
        lifecycle.init_app(app)
    assert codes(app, "/ops/healthcheck/db", "/ops/readyz/db", "/ops/healthcheck/db/new") == [200, 503, 200]


@pytest.mark.parametrize("name", ["größe", "main db", "db/primary", "50%", "🌍", "a+b"])
def test_components_of_any_name(name: str) -> None:
    """A check is asked by its URL whatever its name."""
    app, lifecycle = serve(LIFECYCLE_DETAILS="always")
    lifecycle.check(name)(lambda: None)
    with app.test_request_context():
        path = url_for("lifecycle.healthcheck") + "/" + quote(name)
    assert list(json.loads(get(app, path).data)["checks"]) == [name]
    assert get(app, f"/readyz?verbose&exclude={quote(name)}").text.count("]") == 1


def test_probe_workers() -> None:
    """Each probe and own group has a dedicated worker, all components share one, and work has none."""
    # A hidden check has none: its path is answered no sooner than one that does not exist.
    workers = {"/livez": "live", "/readyz/": "ready", "/startupz": "startup", "/healthcheck": "healthcheck"}
    workers |= dict.fromkeys(("/health/data", "/health/data/"), "data")
    workers |= dict.fromkeys(("/healthcheck/db", "/health/data/cache/"), "component")
    others = dict.fromkeys(("/work", "/livez/db", "/health", "", "/healthcheck/other"))
    app, _lifecycle = grouped()
    assert {path: state_of(app).probe_worker(path) for path in workers | others} == workers | others
    for details in ("token", "never"):
        app, _lifecycle = grouped(LIFECYCLE_DETAILS=details, LIFECYCLE_TOKEN=TOKEN)
        assert state_of(app).probe_worker("/healthcheck/db") is None
        assert state_of(app).probes.is_probe("/healthcheck/db")
        assert not state_of(app).probes.is_probe("/work")


def test_the_probe_listener_serves_the_same() -> None:
    """The probe listener serves probes, components and what only it has, and 404 for all else."""
    app, _lifecycle = grouped(LIFECYCLE_DETAILS="token", LIFECYCLE_TOKEN=TOKEN, LIFECYCLE_HEADERS={"X-Node": "a"})
    state_of(app).probes.listener_only["/figures"] = lambda request: Response("figures")
    client = Client(listener_of(app), Response)
    assert [client.get(path).status_code for path in ("/livez", "/readyz/", "/health/data")] == [200, 200, 500]
    assert client.get("/healthcheck/db", headers=BEARER).status_code == 503
    assert client.get("/figures").data == b"figures"
    assert codes(app, "/figures") == [404]
    for path in ("/work", "/healthcheck/db", "/healthcheck/other", "/"):
        for method in ("GET", "POST"):
            response = client.open(path, method=method)
            assert (response.status_code, response.data) == (404, b"not found: only probes are answered here\n")
            assert response.headers["X-Node"] == "a"


def test_status_codes() -> None:
    """Given status codes override, globally and over that in a group; the rest of the defaults stay."""
    app, lifecycle = serve(LIFECYCLE_STATUS_CODES={"fail": 500, "warn": 207})
    lifecycle.group("own", path="/own", status_codes={"warn": http.HTTPStatus.ALREADY_REPORTED, "pass": 299})
    status = ["pass"]
    lifecycle.check("db", groups=("ready", "own"), ttl=0)(lambda: CheckResult(status[0]))
    told = {}
    for status[0] in ("pass", "warn", "fail"):
        told[status[0]] = (get(app, "/readyz").status_code, get(app, "/own").status)
    assert told == {
        "pass": (200, "299 UNKNOWN"),  # a code that HTTP does not name is sent all the same
        "warn": (207, "208 ALREADY REPORTED"),
        "fail": (500, "500 INTERNAL SERVER ERROR"),
    }
    lifecycle.set_not_ready()
    assert codes(app, "/readyz") == [500]
    lifecycle.shutdown()
    assert codes(app, "/livez", "/readyz", "/own") == [200, 500, 500]


@pytest.mark.parametrize(("code", "length"), [(204, None), (304, None), (205, "0")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_status_without_a_body(code: int, length: str | None, method: str) -> None:
    """With a status that allows no body none is sent: a client would read it as the next answer."""
    app, lifecycle = serve(LIFECYCLE_STATUS_CODES={"pass": code})
    lifecycle.renderer(lambda report: "text")
    response = get(app, "/livez", method=method)
    assert (response.status_code, response.data, response.headers.get("Content-Length")) == (code, b"", length)


def test_headers() -> None:
    """Configured headers come with every answer in every state, a group's own over them, and both over ours."""
    app, lifecycle = serve(LIFECYCLE_HEADERS={"X-Node": "a", "cache-control": "max-age=1"}, LIFECYCLE_DETAILS="always")
    lifecycle.group("own", path="/own", headers={"x-node": "b", "X-More": "c", "content-type": "application/own"})
    lifecycle.check("db", groups=("own",))(lambda: None)
    names = ("X-Node", "X-More", "Cache-Control")
    for _ in range(2):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            for path in (*PROBES, "/own", "/own/db"):
                headers = get(app, path, method=method).headers
                sent = [headers.getlist(name) for name in names]
                assert sent == ([["b"], ["c"], ["max-age=1"]] if "own" in path else [["a"], [], ["max-age=1"]])
            assert get(app, "/own", method=method).headers.getlist("Content-Type") == ["application/own"]
        lifecycle.shutdown()
    assert codes(app, "/own") == [503]


@pytest.mark.parametrize(
    ("made", "kind", "body"),
    [
        ({"ok": True}, "application/json", b'{"ok": true}\n'),
        (["ok"], "application/json", b'["ok"]\n'),
        ("gut", "text/plain; charset=utf-8", b"gut"),
        (b"\x00", "application/octet-stream", b"\x00"),
        (("<ok/>", "application/xml"), "application/xml", b"<ok/>"),
        (({"ok": True}, "application/vnd.own+json"), "application/vnd.own+json", b'{"ok": true}\n'),
        ("", "text/plain; charset=utf-8", b""),
    ],
)
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_renderer(made: Any, kind: str, body: bytes, everywhere: bool) -> None:
    """A renderer makes the bodies, of all probes or of its group; the status stays ours."""
    app, lifecycle = serve()
    lifecycle.group("own", path="/own", renderer=None if everywhere else lambda report: made)
    if everywhere:
        lifecycle.renderer(lambda report: made)
    for code in (200, 503):
        response = get(app, "/own", headers={"Accept": "text/html"})
        assert (response.status_code, response.content_type, response.data) == (code, kind, body)
        lifecycle.shutdown()
    assert get(app, "/livez").data == (body if everywhere else b'{"status": "pass"}\n')


NO_TYPE = "The content type of a body must be one line of printable ASCII, not {}."
NO_BODY = "The body of a probe is a mapping, a list, a text or bytes, or one of them with its content type, not {}."


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, None),
        (LookupError("broken"), "broken"),
        (3, NO_BODY.format("3")),
        ({"set"}, NO_BODY.format("{'set'}")),
        (("text", 503), NO_BODY.format("('text', 503)")),
        ((None, "text/plain"), NO_BODY.format("None")),
        (("body", "text/\u20ac"), NO_TYPE.format(r"'text/€'")),
        (("body", "text/plain\r\nX-More: 1"), NO_TYPE.format(r"'text/plain\r\nX-More: 1'")),
    ],
)
def test_a_renderer_without_a_body(returned: Any, message: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """The default is sent for a renderer that returns None, raises, or returns what is no body: logged once a group."""
    # A renderer gets the whole report, which says whether the caller is allowed to see details.
    app, lifecycle = serve(LIFECYCLE_DETAILS="token", LIFECYCLE_TOKEN=TOKEN)
    reports: list[HealthReport] = []

    @lifecycle.renderer
    def renderer(report: HealthReport) -> Any:
        reports.append(report)
        if isinstance(returned, Exception):
            raise returned
        return returned

    lifecycle.check("db")(lambda: None)
    for _ in range(2):
        assert get(app, "/livez").json == get(app, "/readyz").json == {"status": "pass"}
    assert codes(app, "/readyz/db", headers=BEARER) == [200]
    hidden, shown = reports[-2:]
    assert (hidden.group, hidden.component, hidden.status, hidden.state, hidden.details) == (
        "ready", None, "pass", State.READY, False,
    )  # fmt: skip
    assert (shown.group, shown.component, shown.details) == ("ready", "db", True)
    assert [check.name for check in hidden.checks] == ["db"]
    said = "the body of '{}' could not be made; the default one is sent in its place"
    assert caplog.messages == [said.format(group) for group in ("live", "ready") if message is not None]
    for record in caplog.records:
        assert record.exc_info is not None
        assert str(record.exc_info[1]) == message


def raises(**options: Any) -> Callable[[], None]:
    """A check that fails with a status code or a body for the probe."""
    return raiser(HealthCheckError("down", **options))


def test_a_check_that_says_how_its_probe_fails() -> None:
    """A HealthCheckError may have the status code and the body of the probe that fails because of it."""
    app, lifecycle = serve(LIFECYCLE_STATUS_CODES={"fail": 500})
    lifecycle.renderer(lambda report: "rendered")
    lifecycle.group("own", path="/own", status_codes={"fail": 501})
    answers = []
    options: list[dict[str, Any]] = [{}, {"status_code": 502}, {"status_code": 504, "response": {"why": "down"}}]
    for number, each in enumerate(options):
        lifecycle.check(f"check {number}", groups=("own",))(raises(**each))
        answers.append(get(app, "/own"))
    lifecycle.shutdown()
    assert [(answer.status_code, answer.data) for answer in (*answers, get(app, "/own"))] == [
        (501, b"rendered"), (502, b"rendered"), (502, b'{"why": "down"}\n'), (501, b"rendered"),
    ]  # fmt: skip


@pytest.mark.parametrize("options", [{"critical": False}, {"scope": "shared"}, {"fail_after": 2}])
def test_a_check_that_does_not_fail_the_probe_says_nothing(options: dict[str, Any]) -> None:
    """If a failure only warns, or does not count yet, its own status code and body are not sent."""
    app, lifecycle = serve()
    runs: list[Callable[[], None]] = [raises(status_code=500, response="down"), lambda: None]
    lifecycle.check("db", ttl=0, **options)(lambda: runs.pop()())
    get(app, "/readyz")
    status = "pass" if "fail_after" in options else "warn"
    response = get(app, "/readyz")
    assert (response.status_code, response.json) == (200, {"status": status})


@pytest.mark.parametrize(("code", "sent"), [(501, 501), ("teapot", 503), (1000, 503), ([], 503)])
def test_a_subclass_with_a_status_code(code: Any, sent: int) -> None:
    """A subclass of HealthCheckError may have a status code and a body of its own; an invalid code is not sent."""
    app, lifecycle = serve()
    kind = type("Gone", (HealthCheckError,), {"status_code": code, "response": "gone"})
    lifecycle.check("db")(raiser(kind("down")))
    response = get(app, "/readyz")
    assert (response.status_code, response.data) == (sent, b"gone")


def test_probes_that_the_drain_refuses() -> None:
    """The signal probe_refused is sent for each probe that fails because of the drain, and for no other."""
    app, lifecycle = serve()
    heard: list[tuple[Any, str]] = []
    lifecycle.group("own", path="/own")
    lifecycle.check("db", groups=("own",))(raises_secret)

    def receiver(sender: Any, group: str) -> None:
        heard.append((sender, group))
        raise LookupError("odd")

    with probe_refused.connected_to(receiver, app):
        lifecycle.set_not_ready()
        codes(app, *PROBES, "/own")
        assert heard == []
        lifecycle.shutdown()
        get(app, "/own", method="OPTIONS")
        assert codes(app, *PROBES, "/own") == [200, 503, 200, 503, 503]
    assert heard == [(app, "ready"), (app, "healthcheck"), (app, "own")]


@pytest.mark.parametrize(
    ("policy", "ours", "code"),
    [
        ("auto", True, 200),
        ("auto", False, 503),
        *(("serve", ours, 200) for ours in (True, False)),
        *(("reject", ours, 503) for ours in (True, False)),
    ],
)
def test_drain_policies(policy: str, ours: bool, code: int) -> None:
    """In the drain, auto serves if the listener is ours and closed, else refuses; the others do as they say."""
    app, lifecycle = serve(LIFECYCLE_DRAIN_POLICY=policy)
    answers: list[int] = []

    class Asks(FakeServer):
        def wait_idle(self, timeout: float, linger: float) -> bool:
            answers.extend(codes(app, "/work"))
            return True

    state_of(app).process.shutdown.attach(Asks(ours))
    get(app, "/work")
    lifecycle.shutdown()
    assert answers + codes(app, "/work") == [code, 503]


@pytest.mark.parametrize(("grace_period", "retry_after"), [(0.2, "1"), (12.4, "12")])
def test_a_refusal(grace_period: float, retry_after: str) -> None:
    """A refusal is 503 with problem+json, not cached, and says when this process is gone, in a second or more."""
    # It comes before all functions of the application, whether they were registered before or after init_app.
    app = make_app(LIFECYCLE_GRACE_PERIOD=grace_period)
    ran: list[str] = []
    app.before_request(lambda: ran.append("early"))
    lifecycle = Lifecycle(app)
    app.before_request(lambda: ran.append("late"))
    get(app, "/work")
    lifecycle.shutdown()
    response = get(app, "/work")
    assert (response.status_code, response.content_type) == (503, "application/problem+json")
    assert {"Cache-Control": "no-store", "Retry-After": retry_after}.items() <= dict(response.headers).items()
    assert response.json == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "This instance is shutting down and takes no new requests; try again.",
    }
    assert codes(app, "/no-such-path") == [503]
    assert ran == ["early", "late"]


def test_a_request_under_way_keeps_its_functions() -> None:
    """The guard goes in as a new list: a request that is iterating over the old one is not refused halfway."""
    app = make_app()
    entered, go_on, answers = threading.Event(), threading.Event(), list[list[int]]()

    @app.before_request
    def slow() -> None:
        entered.set()
        assert go_on.wait(BOUND)

    @app.before_request
    def second() -> None:
        """What comes after the one that is running when the guard goes in."""

    lifecycle = Lifecycle(app)
    with running(lambda: answers.append(codes(app, "/work"))):
        assert entered.wait(BOUND)
        state_of(app).refuse()
        go_on.set()
    assert answers == [[200]]
    lifecycle.shutdown()


def test_probes_are_counted_by_group_and_status() -> None:
    """Each answer of a probe counts by group and status; work and unknown paths do not."""
    # In a forked child the counts begin anew, even if another thread counts at that moment.
    app, lifecycle = serve(LIFECYCLE_DETAILS="always")
    lifecycle.check("db")(raises_secret)
    codes(app, "/work", "/nowhere", "/livez", "/livez", "/readyz", "/readyz/db")
    get(app, "/livez", method="POST")
    probes = state_of(app).probes
    counts = {("live", 200): 2, ("ready", 503): 2, ("live", 405): 1}
    assert probes.counts() == counts
    with probes._counting:
        assert in_child(lambda: len(probes.counts())) == 0
    assert probes.counts() == counts


SIGNED = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
LONG = 200_000  # characters: waitress lets 256 KB of headers in


def calls_of(function: Callable[[], object]) -> int:
    """How many functions a call makes this thread call, in Python and in C."""
    counted = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counted


EXPENSIVE = {
    "Accept of blanks": {"HTTP_ACCEPT": f"a/b{' ' * 30_000}x"},
    "Accept of types": {"HTTP_ACCEPT": "a/b," * (LONG // 4)},
    "Accept of parameters": {"HTTP_ACCEPT": "a/b" + ";a=b" * (LONG // 4)},
    "Accept of a sign-in": {"HTTP_ACCEPT": "a/b," * (LONG // 4), "QUERY_STRING": "login"},
    "query of parameters": {"QUERY_STRING": "a&" * (LONG // 2)},
    "query of escapes": {"QUERY_STRING": "a=" + "%41" * (LONG // 3)},
    "exclude": {"QUERY_STRING": "exclude=db&" * (LONG // 11), **SIGNED},
    "bearer": {"HTTP_AUTHORIZATION": "Bearer " + "\xff" * LONG},
    "basic": {"HTTP_AUTHORIZATION": "Basic " + "QUJD" * (LONG // 4)},
    "cookies": {"HTTP_COOKIE": "a=b; " * (LONG // 5)},
    "Accept-Language": {"HTTP_ACCEPT_LANGUAGE": "de," * (LONG // 3)},
    "Host": {"HTTP_HOST": "a." * (LONG // 2)},
    "User-Agent": {"HTTP_USER_AGENT": "a/b " * (LONG // 4)},
    "forwarded address": {"REMOTE_ADDR": "1." * (LONG // 2), "SERVER_PORT": "1" * LONG, "HTTP_VIA": "x" * LONG},
    "mount": {"SCRIPT_NAME": "/a" * (LONG // 2), "REQUEST_URI": "/%61" * (LONG // 2) + "/healthcheck"},
}


@pytest.mark.parametrize("path", ["/livez", "/healthcheck", "/healthcheck/-/feed", "/lifecycle/cordon"])
@pytest.mark.parametrize("more", EXPENSIVE.values(), ids=EXPENSIVE.keys())
def test_no_request_is_expensive(path: str, more: dict[str, str]) -> None:
    """What a client sends makes a probe neither call functions by its length, nor take noticeable time."""
    app, lifecycle = serve(LIFECYCLE_TOKEN=TOKEN, LIFECYCLE_DETAILS="token", LIFECYCLE_PROBE_PORT=0)
    lifecycle.check("db")(lambda: None)
    listener = listener_of(app)
    state_of(app).open = lambda: None  # type: ignore[method-assign]  # what it serves is called here

    def ask(**more: str) -> None:
        environ = create_environ(path, method="POST" if "cordon" in path else "GET", environ_overrides=more)
        for _piece in listener(environ, lambda *_: lambda _data: None):
            pass

    signed = SIGNED if "cordon" in path or SIGNED.items() <= more.items() else {}
    ask(**signed)
    usual = min(calls_of(lambda: ask(**signed)) for _ in range(2))
    began = time.thread_time()
    assert calls_of(lambda: ask(**signed | more)) < usual + 500
    assert time.thread_time() - began < 0.5  # without a bound the blanks take seconds


@pytest.mark.parametrize(
    ("longest", "more"), [("&".join(["exclude=db"] * 128), "&exclude=db"), ("verbose&" + "x" * 2040, "x")]
)
def test_a_query_has_a_length(longest: str, more: str) -> None:
    """A query of more than 2,048 characters or 128 parameters is refused: half of it would be another question."""
    app, lifecycle = serve(LIFECYCLE_DETAILS="always")
    lifecycle.check("db")(lambda: None)
    assert codes(app, f"/healthcheck?{longest}") == [200]
    answer = get(app, f"/healthcheck?{longest}{more}")
    assert (answer.status_code, answer.text) == (414, "the query string is too long\n")
