"""The probe listener that the applications of a process share."""

from __future__ import annotations

import contextlib
import gc
import http.client
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from flask_lifecycle import Lifecycle, State
from tests._fakes import BOUND, FakeServer, make_app, state_of, until
from tests.live._client import free_port

TOKEN = "0123456789abcdef"


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    return free_port()


@pytest.fixture
def serve(port: int) -> Iterator[Any]:
    """Start applications that all name this port; they are ended when the test is over."""
    apps: list[Flask] = []

    def start(**config: Any) -> Lifecycle:
        app = make_app(**{"LIFECYCLE_PROBE_HOST": "127.0.0.1", "LIFECYCLE_PROBE_PORT": port, **config})
        apps.append(app)
        lifecycle = Lifecycle(app)
        app.test_client().get("/work", buffered=True)
        return lifecycle

    yield start
    for app in apps:
        state_of(app).end()


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1", **headers: str) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=BOUND)) as connection:
        connection.request(method, path, body=b"x" if method == "POST" else None, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_it_answers_for_all(serve: Any, port: int) -> None:
    """The process is ready when all its applications are, and live when all are; one that has ended does not count."""
    first, second = serve(), serve()
    assert first.probe_address == second.probe_address == ("127.0.0.1", port)
    assert ask(port, "/readyz")[0] == 200
    for lifecycle in (first, second):
        lifecycle.set_not_ready("busy")
        assert (ask(port, "/readyz")[0], ask(port, "/livez")[0]) == (503, 200)
        lifecycle.set_ready()
    assert ask(port, "/nothing")[0] == 404
    second.shutdown()
    state_of(second._apps.pop()).end()
    assert ask(port, "/readyz")[0] == 200


def test_what_only_one_has(serve: Any, port: int) -> None:
    """A check or a prefix that one application has is answered by that one; an excluded check leaves the others."""
    first, second = (serve(LIFECYCLE_DETAILS="always") for _ in range(2))
    serve(LIFECYCLE_URL_PREFIX="/a").set_not_ready("busy")
    second.check("database")(lambda: False)
    serve().check("hidden")(lambda: None)
    paths = ("/a/readyz", "/a/livez", "/healthcheck/-/status.css", "/healthcheck/database")
    assert [ask(port, path)[0] for path in paths] == [503, 200, 200, 503]
    # A caller who sees the checks of one application learns no names of another one's.
    assert {ask(port, f"/readyz?exclude={name}")[0] for name in ("other", "hidden")} == {404}
    assert ask(port, "/readyz?exclude=database")[0] == 200
    first.set_not_ready("busy")
    assert ask(port, "/readyz?exclude=database")[0] == 503


@pytest.mark.parametrize(
    "config",
    [
        {"LIFECYCLE_PATHS": {"readyz": "/-/ready"}},  # as GitLab's and Prometheus' are; not a part of a status page
        {"LIFECYCLE_STATUS_CODES": {"fail": 404}},  # not "there is no such path"
    ],
)
def test_a_failure_is_told(serve: Any, port: int, config: dict[str, Any]) -> None:
    """A failure of one application counts, whatever its path and its status."""
    serve(**config)
    serve(**config).set_not_ready("busy")
    path = config.get("LIFECYCLE_PATHS", {}).get("readyz", "/readyz")
    assert ask(port, path)[0] == config.get("LIFECYCLE_STATUS_CODES", {}).get("fail", 503)


def test_collected_applications(serve: Any, port: int) -> None:
    """Applications that were collected before their end, as in tests, leave no listener and no time for answers."""
    for number in (port, 0, 0):
        app = make_app(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=number)
        Lifecycle(app)
        app.test_client().get("/work", buffered=True)
        del app
    gc.collect()
    serve()
    until(lambda: [thread.name for thread in threading.enumerate()].count("lifecycle-probes") == 1)
    assert ask(port, "/readyz")[0] == 200


def test_operators_mean_all(serve: Any, port: int) -> None:
    """A cordon holds for every application that lets operators in; without the token there is nothing."""
    lets_in = [serve(LIFECYCLE_TOKEN=TOKEN), serve(), serve(LIFECYCLE_TOKEN=TOKEN)]
    assert ask(port, "/lifecycle/cordon?by=me&for=60", "POST")[0] == 404
    assert ask(port, "/lifecycle/cordon?by=me&for=60", "POST", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert [each.state for each in lets_in] == [State.NOT_READY, State.READY, State.NOT_READY]


def test_the_last_closes_it(serve: Any, port: int) -> None:
    """The listener stays until its last application has ended, and can then be opened anew."""
    first, second = serve(), serve()
    for lifecycle in (first, second):
        assert ask(port, "/livez")[0] == 200
        state_of(lifecycle._apps.pop()).end()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        ask(port, "/livez")
    serve()
    assert ask(port, "/livez")[0] == 200


def test_port_0_is_not_shared(serve: Any) -> None:
    """With port 0 each application has a listener of its own."""
    first, second = (serve(LIFECYCLE_PROBE_PORT=0).probe_address for _ in range(2))
    assert None not in (first, second)
    assert first != second


def test_it_waits_for_the_slowest_start(port: int) -> None:
    """If a server serves several applications, their listener says not ready while one of them still starts."""
    apps = [make_app(LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_PROBE_PORT=port) for _ in range(2)]
    lifecycles = [Lifecycle(app) for app in apps]
    go = threading.Event()
    lifecycles[1].on_startup(lambda: go.wait(BOUND), name="slow")  # type: ignore[call-overload]
    first, second = map(state_of, apps)
    first.process.join(second, ())
    first.process.shutdown.server = FakeServer()
    try:
        first.startup.run()
        assert [lifecycle.state for lifecycle in lifecycles] == [State.READY, State.STARTING]
        assert ask(port, "/readyz")[0] == 503
        go.set()
        until(lambda: ask(port, "/readyz")[0] == 200)
    finally:
        go.set()
        first.end()
        second.end()
