"""``lifecycle_server``: an application, or a server's command, in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle.testing import ServerFactory
from tests._fakes import until, whole

pytestmark = pytest.mark.live

SHOP = """
import os
import subprocess
import sys
import time

from flask import Flask, Response, request
from flask_lifecycle import Lifecycle

lifecycle = Lifecycle()


def create_app():
    app = Flask(__name__)
    app.config["LIFECYCLE_GRACE_PERIOD"] = 9
    lifecycle.init_app(app)

    @app.get("/about")
    def about():
        settings = {key: value for key, value in app.config.items() if key.startswith("LIFECYCLE_")}
        return {**settings, **os.environ}

    @app.post("/echo")
    def echo():
        return request.headers["X-Shop"] + request.get_data(as_text=True)

    @app.get("/slow")
    def slow():
        print("slow has begun", flush=True)
        lifecycle.draining.wait()
        time.sleep(float(request.args.get("seconds", "0.2")))
        return "done"

    @app.get("/ticks")
    def ticks():
        def stream():
            for _ in range(6000):
                yield "tick\\n"
                time.sleep(0.01)

        return Response(stream())

    @app.get("/child")
    def child():
        code = "import os, time; os.setsid(); time.sleep(600)"
        return str(subprocess.Popen([sys.executable, "-c", code]).pid)

    return app


@lifecycle.on_startup
def open_pool():
    print("pool opened", flush=True)


@lifecycle.on_shutdown
def close_pool():
    print("pool closed", flush=True)
"""
BACKGROUND = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An application that this test could import."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    return "shop:create_app"


def test_an_application_is_served_and_stopped(lifecycle_server: ServerFactory, shop: str) -> None:
    """It answers at its URL; after SIGTERM the exit code, the whole log and the report are there."""
    server = lifecycle_server(shop)
    assert server.url == f"http://127.0.0.1:{server.port}"
    with server.open("/echo", "POST", b" and body", {"X-Shop": "header"}) as response:
        assert (response.status, response.read()) == (200, b"header and body")
    assert server.stop() == 0
    assert "pool closed" in server.log
    assert (server.report["reason"], server.report["exit_code"]) == ("SIGTERM", 0)
    assert [hook["name"] for hook in server.report["hooks"]] == ["open_pool", "close_pool"]


def test_a_request_runs_while_the_server_is_signalled(lifecycle_server: ServerFactory, shop: str) -> None:
    """start_request() does not wait, and its future has the whole response."""
    server = lifecycle_server(shop)
    slow = server.start_request("/slow")
    assert server.wait_log("slow (.*)")[1] == "has begun"
    assert not slow.done()
    server.signal()
    response = slow.result()
    assert (response.status_code, response.text) == (200, "done")
    assert server.wait() == 0


def test_a_lost_request_raises(lifecycle_server: ServerFactory, shop: str) -> None:
    """A request without a response, and a stream that is cut off, raise; a killed process has no report."""
    server = lifecycle_server(shop)
    slow = server.start_request("/slow")
    server.wait_log("slow has begun")
    stream = server.open("/ticks")
    assert stream.readline() == b"tick\n"
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        slow.result()
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        stream.read()
    with pytest.raises(AssertionError, match=r"^There are no shutdown reports; it ended with -9\. The log of"):
        _ = server.report
    with pytest.raises(ConnectionRefusedError, match="refused"):
        server.get("/")


def test_waits_are_bounded(lifecycle_server: ServerFactory, shop: str) -> None:
    """Waiting for an exit, a log line, a status or a response that does not come raises, with the log."""
    server = lifecycle_server(shop)
    server.timeout = 0.2
    slow = server.start_request("/slow")
    with pytest.raises(AssertionError, match=r"^The server has not ended within 0\.2 s\. The log of (.|\n)* -> READY"):
        server.wait()
    with pytest.raises(AssertionError, match=r"^The log has no 'never'\. The log of"):
        server.wait_log("never")
    with pytest.raises(
        AssertionError, match=r"^'/readyz' was not answered with 503, but with (200|TimeoutError)\. The log of"
    ):
        server.wait_status("/readyz", 503)
    for request in (slow, server.start_request("/ticks")):
        with pytest.raises((TimeoutError, FutureTimeoutError)):  # the same from Python 3.11 on
            request.result()


def test_settings_override_those_of_the_application(
    lifecycle_server: ServerFactory, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings and variables are those of the test; what the test's own surroundings say of a cluster is not."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    server = lifecycle_server(
        shop, settings={"LIFECYCLE_GRACE_PERIOD": 4, "LIFECYCLE_PROBE_PORT": 0}, env={"SHOP_MODE": "test"}
    )
    about = server.get("/about").json
    assert about is not None
    assert (about["LIFECYCLE_GRACE_PERIOD"], about["LIFECYCLE_PROBE_PORT"]) == (4, server.probe_port)
    assert (about["SHOP_MODE"], "KUBERNETES_SERVICE_HOST" in about) == ("test", False)
    server.wait_status("/readyz", port=server.probe_port)
    assert "LIFECYCLE_TEST_SETTINGS" not in os.environ


def test_a_server_that_does_not_become_ready(lifecycle_server: ServerFactory, shop: str) -> None:
    """The error says how the process ended, with its log; with ready_path=None there is no wait."""
    with pytest.raises(AssertionError, match=r"^'/readyz' was not answered .*; it ended with 2\. The log of"):
        lifecycle_server("nowhere:app")
    with pytest.raises(AssertionError, match="did you mean 'LIFECYCLE_GRACE_PERIOD'"):
        lifecycle_server(shop, settings={"LIFECYCLE_GRACE_PERIO": 4})
    with pytest.raises(AssertionError, match=r"^'/readyz' was not answered with 200, but with \w+\. The log of"):
        lifecycle_server(shop, settings={"LIFECYCLE_READY": "manual"}, timeout=2)
    server = lifecycle_server(shop, settings={"LIFECYCLE_READY": "manual"}, ready_path=None)
    server.wait_status("/readyz", 503)


def test_any_server(lifecycle_server: ServerFactory) -> None:
    """A command without a Lifecycle is served as well; it has no report."""
    server = lifecycle_server(command=BACKGROUND, ready_path="/")
    assert server.get("/").status_code == 200
    assert server.stop(signal.SIGTERM) == -signal.SIGTERM
    assert server.reports == []


def test_every_process_has_its_report(lifecycle_server: ServerFactory) -> None:
    """A gunicorn with two workers has two reports; its command is found beside the interpreter."""
    server = lifecycle_server(
        command=[
            "gunicorn", "--no-control-socket", "--config", "python:flask_lifecycle.gunicorn", "--workers", "2",
            "--worker-class", "gthread", "--bind", "127.0.0.1:{port}", "shop:create_app()",
        ],
        env={"PATH": os.defpath + os.pathsep + os.path.dirname(sys.executable)},
    )  # fmt: skip
    server.wait_log("(?s)pool opened.*pool opened")
    assert server.stop() == 0
    assert [report["exit_code"] for report in server.reports] == [0, 0]
    with pytest.raises(AssertionError, match=r"^There are 2 shutdown reports; it ended with 0\. The log of gunicorn"):
        _ = server.report


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Give lifecycle_server either an application, as 'shop:create_app', or command=[...]."),
        (
            {"app": "shop:app", "command": ["x", "{port}"]}, ValueError,
            "Give lifecycle_server either an application, as 'shop:create_app', or command=[...].",
        ),
        (
            {"command": "waitress-serve --port={port}"}, ValueError,
            "The command must be a list of words, such as ['waitress-serve', '--port={port}', ...].",
        ),
        (
            {"command": ["waitress-serve", "shop:app"]}, ValueError,
            "The command has no '{port}', which is replaced by a free port; write it there.",
        ),
        (
            {"command": ["no-such-server", "{port}"]}, AssertionError,
            "The command 'no-such-server' cannot be started: No such file or directory.",
        ),
    ],
    ids=["nothing", "both", "a string", "no port", "no command"],
)  # fmt: skip
def test_misuse(
    lifecycle_server: ServerFactory, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """An error says in one sentence what to give."""
    with pytest.raises(error, match=whole(message)):
        lifecycle_server(**arguments)


def test_nothing_outlives_the_test(shop: str, tmp_path: Path) -> None:
    """At the end, the process and a child that has left its session are killed, and a request that waits has failed."""
    shown: list[tuple[str, str]] = []
    home = tmp_path / "home"
    home.mkdir()
    with contextlib.closing(ServerFactory(home, lambda name, text: shown.append((name, text)))) as start:
        server = start(shop)
        child = int(server.get("/child").text)
        slow = server.start_request("/slow")
        server.wait_log("slow has begun")
        os.kill(child, 0)
    assert server.wait() == -signal.SIGKILL
    until(lambda: not os.path.exists(f"/proc/{child}") or "\nState:\tZ" in Path(f"/proc/{child}/status").read_text())
    assert slow.exception(0) is not None
    ((name, text),) = shown
    assert name == f"log of {' '.join(server.command)}"
    assert "slow has begun" in text
