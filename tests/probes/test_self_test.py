"""The self-test: what stands in the way of a kubelet's probe is named, once, and nothing else is said."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask, abort
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_lifecycle import Lifecycle
from flask_lifecycle._app import Application
from flask_lifecycle._core.process import Process
from flask_lifecycle._core.state import Event
from flask_lifecycle._probes.self_test import SelfTest, obstacle
from flask_lifecycle._servers.serving import Serving
from tests._fakes import make_app, run_python, state_of, until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Middleware = Callable[["WSGIApplication"], "WSGIApplication"]


class Layer:
    """A middleware, wrapped around the application as extensions do it."""

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(environ, start_response)


class HttpsRedirect(Layer):
    """Sends everybody to https."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["wsgi.url_scheme"] == "https":
            return super().__call__(environ, start_response)
        where = f"https://{environ['HTTP_HOST']}{environ['PATH_INFO']}"
        start_response("301 MOVED PERMANENTLY", [("location", where)])
        return [b""]


class HostCheck(Layer):
    """Knows its one host."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["HTTP_HOST"] == "shop.example":
            return super().__call__(environ, start_response)
        start_response("400 BAD REQUEST", [])
        return [b"bad host"]


class Login(Layer):
    """Answers when it is iterated over, and not before."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "HTTP_COOKIE" in environ:
            return super().__call__(environ, start_response)

        def answer() -> Iterator[bytes]:
            start_response("401 UNAUTHORIZED", [])
            yield b"who are you?"

        return answer()


class Raises(Layer):
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        raise LookupError("a secret")


class RaisesLate(Layer):
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return self.broken()

    def broken(self) -> Iterator[bytes]:
        yield from ()
        raise LookupError("a secret")


class Silent(Layer):
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return []


class Empties(Layer):
    """Goes on with an environ that it makes its own, and answers itself."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.clear()
        start_response("500 INTERNAL SERVER ERROR", [])
        return []


class Copies(Layer):
    """Hands on a copy of the environ."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.app(dict(environ), start_response)


def plain(app: WSGIApplication) -> WSGIApplication:
    """A middleware that is a function, which does not show what it is around."""

    def teapot(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("418 I'M A TEAPOT", [])
        return []

    return teapot


def wrapped(*middlewares: Middleware, **config: Any) -> Flask:
    """An application with a Lifecycle and, wrapped around it later, these, the last one outermost."""
    app = make_app(**config)
    Lifecycle(app)
    for middleware in middlewares:
        app.wsgi_app = middleware(app.wsgi_app)  # type: ignore[method-assign,assignment]
    return app


BAD = "is answered 400 BAD REQUEST"
HTTPS = "https://10.0.0.1:8080/livez"


@pytest.mark.parametrize(
    ("middlewares", "what"),
    [
        ((HttpsRedirect,), f"is answered 301 MOVED PERMANENTLY to {HTTPS} by Flask around HttpsRedirect"),
        ((HostCheck,), f"{BAD} by Flask around HostCheck"),
        ((Login,), "is answered 401 UNAUTHORIZED by Flask around Login"),
        ((Raises,), "fails with LookupError by Flask around Raises"),
        ((RaisesLate,), "fails with LookupError by Flask around RaisesLate"),
        ((Silent,), "is not answered at all by Flask around Silent"),
        ((Empties,), "is answered 500 INTERNAL SERVER ERROR by Flask around Empties"),
        ((plain,), "is answered 418 I'M A TEAPOT by Flask around plain.<locals>.teapot"),
        ((HostCheck, Layer, ProxyFix), f"{BAD} by Flask around ProxyFix around Layer around HostCheck"),
    ],
)
def test_what_stands_in_the_way(middlewares: tuple[Middleware, ...], what: str) -> None:
    """Whatever answers in the probe's place is told with its answer, and with the layers in which it is."""
    assert obstacle(wrapped(*middlewares), "/livez") == what


@pytest.mark.parametrize("middlewares", [(), (Layer,), (ProxyFix, Layer), (Copies,)])
def test_nothing_in_the_way(middlewares: tuple[Middleware, ...]) -> None:
    """Where the probe is reached nothing is told, whatever it is wrapped in and whatever it says."""
    app = wrapped(*middlewares)
    state_of(app).startup.run()
    state_of(app).machine.apply(Event.SET_NOT_READY, "maintenance")
    assert obstacle(app, "/livez") == ""
    assert obstacle(app, "/readyz") == ""


def test_what_an_application_does_to_requests_is_not_in_the_way() -> None:
    """A login guard or a check of hosts inside the application is behind the probes, and is not told."""
    app = make_app(TRUSTED_HOSTS=["shop.example"])
    app.before_request(lambda: abort(401))
    Lifecycle(app)
    assert obstacle(app, "/livez") == ""


def test_around_the_application() -> None:
    """What is around the Flask application as a whole is seen as well, as what run() is given."""
    app = wrapped(Layer)
    assert obstacle(HostCheck(app), "/livez") == "is answered 400 BAD REQUEST by HostCheck around Flask around Layer"
    outer = DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app})
    assert obstacle(outer, "/livez") == "is answered 404 NOT FOUND by DispatcherMiddleware around Flask.wsgi_app"
    assert obstacle(outer, "/shop/livez") == ""


def test_layers_that_go_round_in_circles() -> None:
    """Layers that are around each other are named ten times, and no more."""
    layer = Silent(Flask("inner"))
    layer.app = layer
    assert obstacle(layer, "/livez").count("Silent") == 10


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

        obstacle(app, "/livez")
    assert closed == ["closed", "closed"]


# -- at the start-up ----------------------------------------------------------------------------------------------

WARNING = (
    "A probe as a kubelet sends it (GET {} to an IP address, by http, without cookies) is answered 400 BAD REQUEST by"
    " Flask around HostCheck; exempt the probes there, or wrap the application before init_app."
)


def test_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """What is in the way is one warning, which names the path, the answer, the layers and the cure."""
    app = wrapped(HostCheck, LIFECYCLE_URL_PREFIX="/ops", LIFECYCLE_PATHS={"livez": "/alive"})
    SelfTest(state_of(app)).run()
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, WARNING.format("/ops/alive"))
    assert record.__dict__["lifecycle_path"] == "/ops/alive"


def test_no_word_where_nothing_is_in_the_way(caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing is in the way nothing is logged."""
    caplog.set_level(logging.DEBUG, "flask_lifecycle")
    app = wrapped()
    state_of(app).startup.run()
    caplog.clear()
    SelfTest(state_of(app)).run()
    assert caplog.records == []


def test_what_run_is_given_is_tested(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under run() the test goes through the whole of what is served, and not through the Flask application alone."""
    lifecycle = Lifecycle(app := make_app())
    monkeypatch.setattr(state_of(app).serving, "run", lambda *arguments: SelfTest(state_of(app)).run())
    lifecycle.run(HostCheck(app))
    [record] = caplog.records
    assert record.getMessage() == WARNING.format("/livez").replace("Flask around HostCheck", "HostCheck around Flask")


class Served(Process):
    """A process that may touch signals, says it, and does not."""

    def __init__(self) -> None:
        super().__init__(signals=False)
        self.signals = True


@pytest.mark.parametrize(
    ("served", "config", "tested"),
    [(True, {}, True), (True, {"LIFECYCLE_SELF_TEST": False}, False), (False, {}, False)],
)
def test_once_at_the_start_up(
    served: bool, config: dict[str, Any], tested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs once the start-up is over, in a thread of its own; not in testing mode, nor where it is not wished."""
    app = wrapped(HostCheck, **config)
    state = state_of(app)
    if served:
        state = Application(app, state.settings, state.registered, Serving(Served()))
    for _ in range(2):
        state.startup.run()
    until(lambda: "lifecycle-self-test" not in [thread.name for thread in threading.enumerate()])
    warnings = [(record.threadName, record.getMessage()) for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [("lifecycle-self-test", WARNING.format("/livez"))] * tested
    state.health.engine.stop()


PROGRAM = """
import sys, logging, threading
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
from flask import Flask
from flask_lifecycle import Lifecycle
app = Flask("shop")
app.config.update(LIFECYCLE_SELF_TEST=sys.argv[1] == "on", LIFECYCLE_GRACE_PERIOD=5.0)
lifecycle = Lifecycle(app)
class HostCheck:
    def __init__(self, app):
        self.app = app
    def __call__(self, environ, start_response):
        if environ.get("HTTP_HOST") == "localhost":
            return self.app(environ, start_response)
        start_response("400 BAD REQUEST", [])
        return [b""]
app.wsgi_app = HostCheck(app.wsgi_app)
code = app.test_client().get("/work", buffered=True).status_code
for thread in threading.enumerate():
    if thread.name == "lifecycle-self-test":
        thread.join(10)
print(code)
"""


@pytest.mark.parametrize("wished", ["on", "off"])
def test_in_a_process(wished: str) -> None:
    """In a process that serves, the first request's start-up tests the probe's path, if it is wished."""
    done = run_python(PROGRAM, wished, environ={"KUBERNETES_SERVICE_HOST": ""})
    assert (done.returncode, done.stderr) == (0, "")
    warning = f"WARNING {WARNING.format('/livez')}"
    assert done.stdout.splitlines() == [warning] * (wished == "on") + ["404"]
