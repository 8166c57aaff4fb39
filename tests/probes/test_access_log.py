"""The access logs: what servers log of a probe is dropped, and everything else stays."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from flask_lifecycle import Lifecycle
from tests._fakes import make_app, serve, state_of

LOG = logging.getLogger("werkzeug")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the servers' access logs let through."""
    for name in ("werkzeug", "gunicorn.access"):
        caplog.set_level(logging.INFO, name)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)  # gunicorn's own set-up ends it
    return caplog


def werkzeug(*targets: str) -> None:
    """Log requests as Werkzeug does."""
    for target in targets:
        LOG.info('10.0.0.2 - - [today] "%s" %s %s', f"GET {target} HTTP/1.1", 200, "-")


def gunicorn(path: str, query: str = "") -> None:
    """Log a request as gunicorn does: a format, and one mapping with the fields."""
    target = f"{path}?{query}" if query else path
    fields = {"h": "10.0.0.2", "r": f"GET {target} HTTP/1.1", "s": "200", "m": "GET", "U": path, "q": query}
    logging.getLogger("gunicorn.access").info('%(h)s "%(r)s" %(s)s', fields)


def targets(log: pytest.LogCaptureFixture) -> list[str]:
    """The targets of the request lines."""
    return [line.split('"')[1].split(" ")[1] for line in log.messages]


def test_probes_are_not_logged(log: pytest.LogCaptureFixture) -> None:
    """Werkzeug logs no probe, whatever its query or slash, and however its path is quoted; gunicorn logs the path."""
    _app, lifecycle = serve(LIFECYCLE_DETAILS="always")  # the filter holds it weakly
    for name in ("größe", "main db"):
        lifecycle.check(name)(lambda: None)
    werkzeug("/livez", "/readyz", "/healthcheck/?verbose&exclude=db", "/%6civez")
    werkzeug("/healthcheck/gr%C3%B6%C3%9Fe", "/healthcheck/main%20db")
    assert log.messages == []
    work = ["/work", "/work?to=/livez", "/livezz", "/w%6frk"]
    werkzeug(*work)
    assert targets(log) == work
    log.clear()
    for path, query in [("/livez", ""), ("/readyz/", "verbose"), ("/work", ""), ("/work", "/livez"), ("-", "")]:
        gunicorn(path, query)
    assert targets(log) == ["/work", "/work?/livez", "-"]


def test_under_a_mount(log: pytest.LogCaptureFixture) -> None:
    """Behind a dispatcher the whole path is in the log, and the probe is dropped all the same."""
    app, _lifecycle = serve()
    outer = Client(DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app}))
    outer.get("/shop/livez", environ_overrides={"REQUEST_URI": "/shop/livez"})
    werkzeug("/shop/livez?verbose", "/shop/readyz/", "/shop/work")
    assert targets(log) == ["/shop/work"]


def test_other_lines_stay(log: pytest.LogCaptureFixture) -> None:
    """What else the servers log is let through, of whatever shape it is; a colour is no part of a path."""
    _app = serve()  # kept, as the filter forgets an application that is gone
    LOG.info("Running on /livez")
    LOG.info("%s", '"GET /livez HTTP/1.1"')
    LOG.info("%s threads", 3)
    LOG.info("%(of)s", {"of": "GET /livez HTTP/1.1"})
    logging.getLogger("gunicorn.access").info("%(U)s", {"U": None})
    assert log.messages == ["Running on /livez", '"GET /livez HTTP/1.1"', "3 threads", "GET /livez HTTP/1.1", "None"]
    log.clear()
    colours = ("\x1b[33m", "\x1b[31m\x1b[1m", "\x1b[35m\x1b[1m")  # as Werkzeug colours a 404, a 405 and a 500
    for colour in colours:
        for path in ("/livez", "/work"):
            LOG.info('"%s" %s %s', f"{colour}GET {path} HTTP/1.1\x1b[0m", 404, "-")
    assert log.messages == [f'"{colour}GET /work HTTP/1.1\x1b[0m" 404 -' for colour in colours]


def test_settings(log: pytest.LogCaptureFixture) -> None:
    """A probe in another case is dropped, if it is answered; with LIFECYCLE_LOG_PROBES a probe is logged."""
    one, other = make_app(LIFECYCLE_CASE_INSENSITIVE=True), make_app(LIFECYCLE_URL_PREFIX="/other")
    other.config["LIFECYCLE_LOG_PROBES"] = True
    lifecycle = Lifecycle(one)
    lifecycle.init_app(other)
    werkzeug("/LiveZ", "/WORK", "/other/livez")
    gunicorn("/other/livez")
    assert targets(log) == ["/WORK", "/other/livez", "/other/livez"]


def test_an_application_that_is_gone(log: pytest.LogCaptureFixture) -> None:
    """The filter keeps no application alive, and of one that is gone it drops nothing."""

    def make() -> weakref.ref[Flask]:
        app, _lifecycle = serve(LIFECYCLE_URL_PREFIX="/gone")
        gunicorn("/gone/livez")
        return weakref.ref(app)

    gone = make()
    gc.collect()
    assert (gone(), log.messages) == (None, [])
    gunicorn("/gone/livez")
    assert len(log.messages) == 1


def test_an_application_that_comes_while_a_line_is_logged(log: pytest.LogCaptureFixture) -> None:
    """A line that is being looked at goes on with the applications that there were."""
    # Interleaving: the filter asks each of two applications, and meanwhile another one is initialised.
    kept = [serve()[0], serve()[0]]

    def asks(path: str) -> bool:
        kept.append(serve()[0])
        return False

    for app in kept[:2]:
        state_of(app).probes.is_probe = asks  # type: ignore[method-assign]
    gunicorn("/work")
    assert (len(log.messages), len(kept)) == (1, 4)
