"""The self-test: what stands in the way of a kubelet's probe is named, once, and nothing else is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_lifecycle import Lifecycle
from flask_lifecycle._core.state import Event
from flask_lifecycle._probes import self_test
from tests._fakes import make_app, run_python, state_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Middleware = Callable[["WSGIApplication"], "WSGIApplication"]


class Layer:
    """A middleware, wrapped around the application as extensions do it."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(environ, start_response)


class HostCheck(Layer):
    """Knows its one host."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["HTTP_HOST"] == "shop.example":
            return super().__call__(environ, start_response)
        start_response("400 BAD REQUEST", [])
        return [b"bad host"]


class Answers(Layer):
    """Answers in the place of the application."""

    def __init__(self, app: WSGIApplication, answer: WSGIApplication) -> None:
        super().__init__(app)
        self.answer = answer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.answer(environ, start_response)


def https_redirect(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("301 MOVED PERMANENTLY", [("location", f"https://{environ['HTTP_HOST']}{environ['PATH_INFO']}")])
    return [b""]


def late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answers when it is iterated over, and not before."""
    start_response("401 UNAUTHORIZED", [])
    yield b"who are you?"


def raises(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise LookupError("a secret")


def raises_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    yield from ()
    raise LookupError("a secret")


def silent(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return []


def empties(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Makes the environ its own."""
    environ.clear()
    start_response("500 INTERNAL SERVER ERROR", [])
    return []


class Copies(Layer):
    """Hands on a copy of the environ."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(dict(environ), start_response)


def wrapped(*middlewares: Middleware, **config: Any) -> Flask:
    """An application with a Lifecycle and, wrapped around it later, these, the last one outermost."""
    app = make_app(**config)
    Lifecycle(app)
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
        (empties, "is answered 500 INTERNAL SERVER ERROR"),
    ],
)
def test_what_stands_in_the_way(answer: WSGIApplication, what: str) -> None:
    """Whatever answers in the probe's place is told with its answer, and with the layer in which it is."""
    app = wrapped(lambda inner: Answers(inner, answer))
    assert self_test.obstacle(app, "/livez") == f"{what} by Flask around Answers"
    function = wrapped(lambda inner: answer)  # which does not show what it is around
    assert self_test.obstacle(function, "/livez") == f"{what} by Flask around {answer.__name__}"


@pytest.mark.parametrize("middlewares", [(), (Layer,), (ProxyFix, Layer), (Copies,)])
def test_nothing_in_the_way(middlewares: tuple[Middleware, ...], caplog: pytest.LogCaptureFixture) -> None:
    """Where the probe is reached nothing is told or logged, whatever is around or inside the application."""
    app = wrapped(*middlewares, TRUSTED_HOSTS=["shop.example"])
    app.before_request(lambda: abort(401))
    state_of(app).startup.run()
    state_of(app).machine.apply(Event.SET_NOT_READY, "maintenance")
    caplog.clear()
    assert self_test.obstacle(app, "/livez") == ""
    assert self_test.obstacle(app, "/readyz") == ""
    self_test.SelfTest(state_of(app)).run()
    assert caplog.records == []


def test_around_the_application() -> None:
    """Layers are told from the outside, also those around the Flask application as a whole; at most ten of them."""
    bad = "is answered 400 BAD REQUEST by"
    app = wrapped(Layer)
    inside = wrapped(HostCheck, Layer, ProxyFix)
    outer = DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app})
    circle = Answers(Flask("inner"), silent)
    circle.app = circle
    assert self_test.obstacle(inside, "/livez") == f"{bad} Flask around ProxyFix around Layer around HostCheck"
    assert self_test.obstacle(HostCheck(app), "/livez") == f"{bad} HostCheck around Flask around Layer"
    assert (
        self_test.obstacle(outer, "/livez") == "is answered 404 NOT FOUND by DispatcherMiddleware around Flask.wsgi_app"
    )
    assert self_test.obstacle(outer, "/shop/livez") == ""
    assert self_test.obstacle(circle, "/livez").count("Answers") == 10


def test_the_result_is_closed() -> None:
    """What answers is closed as a server does it, also where it fails."""
    closed: list[str] = []

    class Result:
        def __init__(self, error: Exception | None) -> None:
            self.error = error

        def __iter__(self) -> Iterator[bytes]:
            if self.error is not None:
                raise self.error
            return iter([b"a", b"b"])

        def close(self) -> None:
            closed.append("closed")

    for error in (None, LookupError("odd")):

        def app(environ: WSGIEnvironment, start_response: StartResponse, error: Exception | None = error) -> Result:
            start_response("200 OK", [])(b"by the old way")
            return Result(error)

        self_test.obstacle(app, "/livez")
    assert closed == ["closed", "closed"]


# -- at the start-up ----------------------------------------------------------------------------------------------

WARNING = (
    "A probe as a kubelet sends it (GET {} to an IP address, by http, without cookies) is answered 400 BAD REQUEST by"
    " Flask around HostCheck; exempt the probes there, or wrap the application before init_app."
)


def test_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """What is in the way is one warning, which names the path, the answer, the layers and the cure; none in tests."""
    app = wrapped(HostCheck, LIFECYCLE_URL_PREFIX="/ops", LIFECYCLE_PATHS={"livez": "/alive"})
    state_of(app).startup.run()
    assert caplog.records == []
    self_test.SelfTest(state_of(app)).run()
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, WARNING.format("/ops/alive"))
    assert record.__dict__["lifecycle_path"] == "/ops/alive"


def test_what_run_is_given_is_tested(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under run() the test goes through the whole of what is served, and not through the Flask application alone."""
    lifecycle = Lifecycle(app := make_app())
    monkeypatch.setattr(state_of(app).serving, "run", lambda *arguments: self_test.SelfTest(state_of(app)).run())
    lifecycle.run(HostCheck(app))
    [record] = caplog.records
    assert record.getMessage() == WARNING.format("/livez").replace("Flask around HostCheck", "HostCheck around Flask")


@pytest.mark.parametrize("wished", [True, False])
def test_in_a_process(wished: bool) -> None:
    """Outside of testing mode it is a feature of an application, if it is wished."""
    code = (
        "from flask import Flask; from flask_lifecycle import Lifecycle; app = Flask('shop');"
        f"app.config['LIFECYCLE_SELF_TEST'] = {wished}; Lifecycle(app);"
        "print('self-test' in app.extensions['lifecycle'].features)"
    )
    assert run_python(code).stdout == f"{wished}\n"
    assert "self-test" not in state_of(wrapped(LIFECYCLE_SELF_TEST=wished)).features
