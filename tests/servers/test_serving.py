"""``run``, with a server that is a fake: what it asks of the server, and what it logs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, ServerInfo, State, _servers
from flask_lifecycle._core.process import Process
from flask_lifecycle._servers.serving import Serving
from tests._fakes import BOUND, SELF_WAIT, FakeMember, FakeServer, make_app, raiser, running, until, whole


class FakeRunner(FakeServer):
    """A server of ours that serves until it is stopped, and can be told what to do meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.serving = threading.Event()
        self.stopped = threading.Event()

    def addresses(self) -> list[str]:
        return ["http://fake:1", "unix:/fake"]

    def serve(self) -> None:
        self.serving.set()
        assert self.stopped.wait(BOUND)

    def stop(self) -> None:
        super().stop()
        self.stopped.set()

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunner]:
    """The server that run() gets, whatever it asks for."""
    made = FakeRunner()
    monkeypatch.setattr(_servers, "create", lambda *arguments: made)
    yield made
    made.stopped.set()


def test_run_serves_until_stopped(runner: FakeRunner, caplog: pytest.LogCaptureFixture) -> None:
    """run() logs where it listens, starts the application, serves until a shutdown, and returns its report."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    lifecycle = Lifecycle(app := make_app())
    seen: list[Any] = [lifecycle.server]

    def stop() -> None:
        assert runner.serving.wait(BOUND)
        until(lambda: lifecycle.state is State.READY)
        seen.append(lifecycle.server)
        seen.append(lifecycle.shutdown("enough"))

    with running(stop):
        report = lifecycle.run(app)
    assert (report.reason, report.clean) == ("enough", True)
    assert seen == [None, ServerInfo("fake", "made by a test", "all connections", ""), report]
    assert runner.verbs == ["announce", "stop_accepting", "wait_idle", "stop"]
    assert caplog.messages[:4] == [
        f"listening on http://fake:1 (fake, pid {os.getpid()})",
        f"listening on unix:/fake (fake, pid {os.getpid()})",
        "server fake (made by a test): a shutdown answers every accepted connection",
        "probes at /healthcheck /livez /readyz /startupz",
    ]


def test_an_unknown_server_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever serves the application without being known carries out what it has started, and one line says so."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    serving = Serving(Process(signals=False))
    member = FakeMember()
    member.startup.succeeded = False
    serving.process.join(member, ())
    serving.attach()
    assert serving.info() is None
    member.startup.succeeded = True
    serving.attach()
    serving.attach()
    assert serving.info() == ServerInfo("unknown", "no known server detected", "started requests")
    assert caplog.messages == [
        "server unknown (no known server detected): a shutdown answers requests that the application has started"
    ]


@pytest.mark.parametrize("contained", [True, False])
def test_run_has_probes_told_from_work(runner: FakeRunner, contained: bool) -> None:
    """The server gets the function that names the worker of a probe, also of an application that another contains."""
    lifecycle = Lifecycle(app := make_app(LIFECYCLE_URL_PREFIX="/ops"))

    def outer(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    with running(lambda: runner.serving.wait(BOUND) and lifecycle.shutdown("enough")):
        assert lifecycle.run(outer if contained else app).reason == "enough"
    assert runner.probe_worker is not None
    for path, name in (("livez", "live"), ("readyz", "ready"), ("startupz", "startup"), ("healthcheck", "healthcheck")):
        assert [runner.probe_worker(at) for at in (f"/ops/{path}", f"/ops/{path}/", f"/{path}")] == [name, name, None]


def test_shutdown_in_the_servers_loop(runner: FakeRunner) -> None:
    """Waiting for the shutdown in the thread that must serve meanwhile is an error; wait=False works."""
    lifecycle = Lifecycle(app := make_app())

    def serve() -> None:
        with pytest.raises(RuntimeError, match=whole(SELF_WAIT)):
            lifecycle.shutdown()
        lifecycle.shutdown("in the loop", wait=False)
        assert runner.stopped.wait(BOUND)

    runner.serve = serve  # type: ignore[method-assign]
    assert lifecycle.run(app).reason == "in the loop"
    assert lifecycle.shutdown().reason == "in the loop"


@pytest.mark.parametrize(
    ("waits", "verbs"), [(False, ["announce", "stop_accepting", "wait_idle", "stop"]), (True, ["close"])]
)
def test_a_shutdown_while_the_server_is_made(monkeypatch: pytest.MonkeyPatch, waits: bool, verbs: list[str]) -> None:
    """A server that is being made when a shutdown begins is drained; if it is made too late, it never serves."""
    lifecycle = Lifecycle(app := make_app())
    runner = FakeRunner()

    def create(*arguments: Any) -> FakeRunner:
        lifecycle.shutdown("early") if waits else lifecycle.shutdown("early", wait=False)
        return runner

    if waits:
        monkeypatch.setattr("flask_lifecycle._core.shutdown.MAKING", 0.0)
    monkeypatch.setattr(_servers, "create", create)
    assert lifecycle.run(app).reason == "early"
    assert (runner.verbs, runner.serving.is_set()) == (verbs, not waits)


def test_a_server_that_fails(runner: FakeRunner, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that raises ends run() with its exception, and the hooks have run."""
    lifecycle, ran = Lifecycle(app := make_app()), list[str]()
    lifecycle.on_shutdown(name="hook")(lambda: ran.append("hook"))
    runner.serve = raiser(ValueError("loop"))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=whole("loop")):
        lifecycle.run(app)
    assert ran == ["hook"]
    assert lifecycle.shutdown().reason == "server failed: ValueError"
    assert "the server failed" in caplog.messages
