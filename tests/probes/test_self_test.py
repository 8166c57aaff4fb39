"""The self-test: what answers a kubelet's probe in the place of the application is named, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_lifecycle import State
from flask_lifecycle._probes import self_test
from tests._fakes import run_python, serve, state_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Middleware = Callable[["WSGIApplication"], "WSGIApplication"]


class Layer:
    """A middleware, wrapped around the application as extensions do it; it may answer by itself."""

    def __init__(self, app: Any, answer: Any = None) -> None:
        self.app = app
        self.answer = answer or app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        return self.answer(environ, start_response)


class HostCheck(Layer):
    """Knows its one host."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        if environ["HTTP_HOST"] == "shop.example":
            return super().__call__(environ, start_response)
        start_response("400 BAD REQUEST", [])
        return [b"bad host"]


def https_redirect(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("301 MOVED PERMANENTLY", [("location", f"https://{environ['HTTP_HOST']}{environ['PATH_INFO']}")])
    return [b""]


def late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ.clear()
    start_response("401 UNAUTHORIZED", [])
    yield b"who are you?"


def raises(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise LookupError("a secret")


def raises_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    yield from raises(environ, start_response)


def silent(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return []


def copies(app: WSGIApplication) -> WSGIApplication:
    """A middleware that hands on a copy of the environ."""
    return lambda environ, start_response: app(dict(environ), start_response)


def wrapped(*middlewares: Middleware, **config: Any) -> Flask:
    """An application with a Lifecycle and, wrapped around it later, these, the last one outermost."""
    app, _lifecycle = serve(**config)
    for middleware in middlewares:
        app.wsgi_app = middleware(app.wsgi_app)  # type: ignore[method-assign,assignment]
    return app


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (https_redirect, "is answered 301 MOVED PERMANENTLY to https://10.0.0.1:8080/livez"),
        (late, "is answered 401 UNAUTHORIZED"),
        (raises, "fails with LookupError"),
        (raises_late, "fails with LookupError"),
        (silent, "is not answered at all"),
    ],
)
def test_an_obstacle(answer: WSGIApplication, what: str) -> None:
    """What answers in the probe's place is named with its answer, and with the layers around it."""
    app = wrapped(lambda inner: Layer(inner, answer))
    assert self_test.obstacle(app, "/livez") == f"{what} by Flask around Layer"
    function = wrapped(lambda inner: answer)  # which does not show what it is around
    assert self_test.obstacle(function, "/livez") == f"{what} by Flask around {answer.__name__}"


@pytest.mark.parametrize("middlewares", [(), (Layer,), (ProxyFix, Layer), (copies,)])
def test_no_obstacle(middlewares: tuple[Middleware, ...], caplog: pytest.LogCaptureFixture) -> None:
    """If the probe is reached nothing is logged, whatever is around or inside the application."""
    app = wrapped(*middlewares, TRUSTED_HOSTS=["shop.example"])
    app.before_request(lambda: abort(401))
    state_of(app).startup.run()
    state_of(app).machine.state = State.NOT_READY
    caplog.clear()
    assert (self_test.obstacle(app, "/livez"), self_test.obstacle(app, "/readyz")) == ("", "")
    self_test.SelfTest(state_of(app)).run()
    assert caplog.records == []


def test_around_the_application() -> None:
    """Layers are named from the outside, also those around the Flask application as a whole; at most ten of them."""
    bad = "is answered 400 BAD REQUEST by"
    app = wrapped(Layer)
    inside = wrapped(HostCheck, Layer, ProxyFix)
    outer = DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app})
    circle = Layer(Flask("inner"), silent)
    circle.app = circle
    assert self_test.obstacle(inside, "/livez") == f"{bad} Flask around ProxyFix around Layer around HostCheck"
    assert self_test.obstacle(HostCheck(app), "/livez") == f"{bad} HostCheck around Flask around Layer"
    nowhere = "is answered 404 NOT FOUND by DispatcherMiddleware around Flask.wsgi_app"
    assert self_test.obstacle(outer, "/livez") == nowhere
    assert self_test.obstacle(outer, "/shop/livez") == ""
    assert self_test.obstacle(circle, "/livez").count("Layer") == 10


@pytest.mark.parametrize("fails", [True, False])
def test_the_result_is_closed(fails: bool) -> None:
    """The answer is closed as a server does it, even if it fails."""
    closed: list[str] = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            if fails:
                raise LookupError("odd")
            return iter([b"a", b"b"])

        def close(self) -> None:
            closed.append("closed")

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Result:
        start_response("200 OK", [])(b"by the old way")
        return Result()

    self_test.obstacle(app, "/livez")
    assert closed == ["closed"]


def test_one_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An obstacle is one warning, which names the path, the answer, the layers and the cure; none in testing mode."""
    # Under run() the probe goes through the whole of what is served, not through the Flask application alone.
    app = wrapped(HostCheck, LIFECYCLE_URL_PREFIX="/ops", LIFECYCLE_PATHS={"livez": "/alive"})
    state_of(app).startup.run()
    assert caplog.records == []
    self_test.SelfTest(state_of(app)).run()
    app, lifecycle = serve()
    monkeypatch.setattr(state_of(app).serving, "run", lambda *arguments: self_test.SelfTest(state_of(app)).run())
    lifecycle.run(HostCheck(app))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            f"A probe as a kubelet sends it (GET {path} to an IP address, by http, without cookies) is answered 400 BAD"
            f" REQUEST by {layers}; exempt the probes there, or wrap the application before init_app.",
        )
        for path, layers in (("/ops/alive", "Flask around HostCheck"), ("/livez", "HostCheck around Flask"))
    ]
    assert caplog.records[0].__dict__["lifecycle_path"] == "/ops/alive"


@pytest.mark.parametrize("wished", [True, False])
def test_in_a_process(wished: bool) -> None:
    """Outside of testing mode it is a feature of an application, if the setting asks for it."""
    code = (
        "from flask import Flask; from flask_lifecycle import Lifecycle; app = Flask('shop');"
        f"app.config['LIFECYCLE_SELF_TEST'] = {wished}; Lifecycle(app);"
        "print('self-test' in app.extensions['lifecycle'].features)"
    )
    assert run_python(code).stdout == f"{wished}\n"
    assert "self-test" not in state_of(wrapped(LIFECYCLE_SELF_TEST=wished)).features
