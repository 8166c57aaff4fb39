"""The access logs: what real servers log of a probe is dropped, and everything else stays."""

from __future__ import annotations

import gc
import http.client
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import make_server

from flask_lifecycle import Lifecycle
from flask_lifecycle._probes.access_log import _filter, silence
from tests._fakes import BOUND, make_app, running


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the applications of this test are silent."""
    monkeypatch.setattr(_filter, "silent", weakref.WeakSet())


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the servers' access logs let through."""
    passed: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            passed.append(record.getMessage())

    handler = Handler()
    for name in ("werkzeug", "gunicorn.access"):
        caplog.set_level(logging.INFO, name)
        logging.getLogger(name).addHandler(handler)
    yield passed
    for name in ("werkzeug", "gunicorn.access"):
        logging.getLogger(name).removeHandler(handler)


def ask(app: Any, *targets: str, method: str = "GET") -> list[int]:
    """Send real requests to a real Werkzeug server."""
    server = make_server("127.0.0.1", 0, app)
    codes = []
    with running(server.serve_forever):
        try:
            for target in targets:
                connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=BOUND)
                connection.request(method, target)
                codes.append(connection.getresponse().status)
                connection.close()
        finally:
            server.shutdown()
    server.server_close()
    return codes


def requested(lines: list[str]) -> list[str]:
    """The request lines, without the address and the time."""
    return [line.split('"')[1] for line in lines]


def test_werkzeug_logs_no_probe(lines: list[str]) -> None:
    """Of a probe Werkzeug logs nothing, whatever its query, its slash or its answer; of work it logs as ever."""
    lifecycle = Lifecycle(app := make_app())
    lifecycle.set_not_ready("maintenance")
    targets = ("/livez", "/readyz", "/healthcheck/?verbose&exclude=db", "/work", "/work?to=/livez", "/livezz")
    assert ask(app, *targets) == [200, 503, 503, 200, 200, 404]
    assert [line.split(" ")[1] for line in requested(lines)] == ["/work", "/work?to=/livez", "/livezz"]


def test_other_ways_to_write_a_path(lines: list[str]) -> None:
    """A probe is recognised however a client quotes its path, and behind a dispatcher that logs the whole path."""
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_DETAILS="always"))
    for name in ("größe", "main db"):
        lifecycle.check(name)(lambda: None)
    assert ask(app, "/healthcheck/gr%C3%B6%C3%9Fe", "/healthcheck/main%20db", "/%6civez", "/w%6frk") == [200] * 4
    outer = DispatcherMiddleware(Flask("outer").wsgi_app, {"/shop": app.wsgi_app})
    assert ask(outer, "/shop/livez?verbose", "/shop/readyz/", "/shop/work") == [200] * 3
    assert requested(lines) == ["GET /work HTTP/1.1", "GET /shop/work HTTP/1.1"]


def gunicorn(path: str, query: str = "") -> None:
    """Log a request as gunicorn does: a format, and one mapping with the fields."""
    target = f"{path}?{query}" if query else path
    fields = {"h": "10.0.0.2", "r": f"GET {target} HTTP/1.1", "s": "200", "m": "GET", "U": path, "q": query}
    logging.getLogger("gunicorn.access").info('%(h)s "%(r)s" %(s)s', fields)


def test_gunicorn_logs_no_probe(lines: list[str]) -> None:
    """Of gunicorn's fields the path alone decides, not the query."""
    Lifecycle(make_app())
    for path, query in [("/livez", ""), ("/readyz/", "verbose"), ("/work", ""), ("/work", "/livez")]:
        gunicorn(path, query)
    gunicorn("-")
    assert lines == [
        '10.0.0.2 "GET /work HTTP/1.1" 200',
        '10.0.0.2 "GET /work?/livez HTTP/1.1" 200',
        '10.0.0.2 "GET - HTTP/1.1" 200',
    ]


def test_other_lines_stay(lines: list[str]) -> None:
    """What else the servers log is let through, of whatever shape it is; a colour is no part of a path."""
    Lifecycle(make_app())
    log = logging.getLogger("werkzeug")
    log.info("Running on /livez")
    log.info("%s", '"GET /livez HTTP/1.1"')
    log.info("%s threads", 3)
    log.info("%(of)s", {"of": "GET /livez HTTP/1.1"})
    logging.getLogger("gunicorn.access").info("%(U)s", {"U": None})
    assert lines == ["Running on /livez", '"GET /livez HTTP/1.1"', "3 threads", "GET /livez HTTP/1.1", "None"]
    lines.clear()
    colours = ("\x1b[33m", "\x1b[31m\x1b[1m", "\x1b[35m\x1b[1m")  # as Werkzeug colours a 404, a 405 and a 500
    for colour in colours:
        for path in ("/livez", "/work"):
            log.info('"%s" %s %s', f"{colour}GET {path} HTTP/1.1\x1b[0m", 404, "-")
    assert lines == [f'"{colour}GET /work HTTP/1.1\x1b[0m" 404 -' for colour in colours]


def test_settings(lines: list[str]) -> None:
    """A probe in another case is dropped, if it is answered; with LIFECYCLE_LOG_PROBES a probe is logged."""
    Lifecycle(app := make_app(LIFECYCLE_CASE_INSENSITIVE=True))
    assert ask(app, "/LiveZ", "/WORK") == [200, 404]
    assert len(lines) == 1
    lines.clear()
    Lifecycle(other := make_app(LIFECYCLE_LOG_PROBES=True, LIFECYCLE_URL_PREFIX="/other"))
    ask(other, "/other/livez")
    gunicorn("/other/livez")
    assert requested(lines) == ["GET /other/livez HTTP/1.1"] * 2


def test_an_application_that_is_gone(lines: list[str]) -> None:
    """The filter keeps no application alive, and of one that is gone it drops nothing."""

    def make() -> weakref.ref[Flask]:
        app = make_app()
        Lifecycle(app)
        return weakref.ref(app)

    gone = make()
    gc.collect()
    assert gone() is None
    gunicorn("/livez")
    assert len(lines) == 1


def test_an_application_that_comes_while_a_line_is_logged() -> None:
    """A line that is being looked at goes on with the applications that there were.

    Interleaving: the filter asks the first of two applications, and meanwhile a third one is initialised.
    """

    class Asks:
        def is_probe(self, path: str) -> bool:
            silence(others.pop())  # type: ignore[arg-type]
            return False

    class Silent:
        def is_probe(self, path: str) -> bool:
            return False

    others = [Silent(), Silent()]
    kept = [*others, one := Asks(), two := Asks()]
    silence(one)  # type: ignore[arg-type]
    silence(two)  # type: ignore[arg-type]
    record = logging.LogRecord("gunicorn.access", logging.INFO, "", 0, "", ({"U": "/work"},), None)
    assert _filter.filter(record)
    assert len(_filter.silent) == len(kept)
