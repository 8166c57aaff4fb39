"""uvicorn, hypercorn and granian, as far as that needs no process of its own."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import types
from multiprocessing import util
from typing import Any, cast
from unittest.mock import Mock

import pytest
from hypercorn.config import Config as HypercornConfig
from uvicorn import Config, Server

from flask_lifecycle._servers.asgi import granian, hypercorn, uvicorn
from tests._fakes import BOUND, until

# -- granian ------------------------------------------------------------------------------------------------------


class Carrier:
    """The process, as a server sees it."""

    def __init__(self) -> None:
        self.shutdown = types.SimpleNamespace(in_flight=0)
        self.signals: list[int] = []
        self.relay = types.SimpleNamespace(pass_on=self.signals.append)
        self.finished = 0
        self.exit = types.SimpleNamespace(finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1

    def applications(self) -> list[Any]:
        return [types.SimpleNamespace(settings=types.SimpleNamespace(grace_period=25.0))]


def handler_of(event: Any) -> Any:
    """granian's, as it is made."""
    signal_event = event

    def signal_handler(signum: int, frame: object) -> None:
        signal_event.set()

    return signal_handler


def cell_of(handler: Any) -> Any:
    """Where granian's handler has its event."""
    return handler.__closure__[0]


def test_granians_handler_tells_us_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler's event is ours until the delay is over, then granian is told; it is waited for until it returns."""
    event = threading.Event()
    handler, process = handler_of(event), Carrier()
    subject = granian.Granian(cell_of(handler))
    finalizers: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda thing, callback, exitpriority: finalizers.append(callback))
    subject.begin(cast("Any", process))
    handler(signal.SIGTERM, None)
    assert (process.signals, event.is_set(), subject.guarantee) == ([signal.SIGTERM], False, "accepted requests")
    assert not subject.unfinished()
    subject.stop_accepting(BOUND)
    assert event.is_set()
    assert [info.stage for info in subject.unfinished()] == ["receiving"]
    assert not subject.wait_idle(0.0, 0.0)
    finalizers[0]()
    assert (process.finished, subject.wait_idle(0.0, 0.0), list(subject.unfinished())) == (1, True, [])
    assert subject.end()


def test_granians_main_thread_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A main thread that waits without a timeout runs its handlers all the same, until granian has returned."""
    woken = threading.Event()
    finalizers: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda thing, callback, exitpriority: finalizers.append(callback))
    monkeypatch.setattr(granian, "_AWAKE", 0.01)
    before = signal.signal(signal.SIGURG, lambda signum, frame: woken.set())
    try:
        granian.Granian(cell_of(handler_of(threading.Event()))).begin(cast("Any", Carrier()))
        assert woken.wait(BOUND)
        finalizers[0]()
        until(lambda: "lifecycle-granian" not in [thread.name for thread in threading.enumerate()])
    finally:
        signal.signal(signal.SIGURG, before)


@pytest.mark.parametrize(
    ("arguments", "variable", "limit"),
    [
        ([], None, None),
        (["--workers-kill-timeout", "5", "app"], None, 5.0),
        (["--workers-kill-timeout=6.5"], "7", 6.5),
        ([], "7", 7.0),
        (["--workers-kill-timeout"], None, None),
        (["--workers-kill-timeout", "soon"], None, None),
    ],
)
def test_granians_kill_timeout_is_found(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str | None, limit: float | None
) -> None:
    """It is read from where granian has it: its arguments or the environment."""
    monkeypatch.setattr(sys, "argv", ["granian", *arguments])
    if variable is not None:
        monkeypatch.setenv("GRANIAN_WORKERS_KILL_TIMEOUT", variable)
    assert granian._kill_timeout() == limit


# -- versions that are not known ----------------------------------------------------------------------------------


def served_by_uvicorn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of uvicorn that has begun to serve."""
    server = Server(Config(lambda scope: None, interface="wsgi", http="h11"))
    server.config.load()
    server.started, server.servers = True, [Mock(sockets=())]
    monkeypatch.setattr(uvicorn, "instances", lambda kind: [server])
    return server


def served_by_hypercorn(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A coroutine of hypercorn that serves."""
    names = {"servers": [Mock(sockets=())], "loop": Mock(), "shutdown_trigger": Mock(), "config": HypercornConfig()}
    serving = Mock(cr_frame=Mock(f_locals=names))
    monkeypatch.setattr(hypercorn, "made_from", lambda code: [serving])
    monkeypatch.setattr(hypercorn, "_adapter", None)


def served_by_granian(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker of granian."""
    monkeypatch.setattr(multiprocessing, "parent_process", Mock)
    monkeypatch.setattr(signal, "getsignal", lambda signum: handler_of(Mock()))
    monkeypatch.setattr(granian, "_adapter", None)


@pytest.mark.parametrize("lacks", [False, True])
@pytest.mark.parametrize(
    ("module", "serve", "used"),
    [
        (uvicorn, served_by_uvicorn, "_OF_SERVER"),
        (uvicorn, served_by_uvicorn, "_OF_CONNECTION"),
        (hypercorn, served_by_hypercorn, "_OF_SERVING"),
        (hypercorn, served_by_hypercorn, "_OF_CONNECTION"),
        (granian, served_by_granian, "_OF_RUNNER"),
    ],
)
def test_a_server_that_lacks_what_its_adapter_uses(
    module: Any, serve: Any, used: str, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a new version has changed lowers the guarantee, and the log says which it is."""
    serve(monkeypatch)
    if lacks:
        monkeypatch.setattr(module, used, (*getattr(module, used), "changed"))
    adapter = module.find()
    assert adapter is not None
    assert (adapter.guarantee == "started requests") is lacks
    assert ("'changed'" in adapter.advice) is lacks
    assert adapter.ours is not lacks
