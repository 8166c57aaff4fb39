"""uvicorn, hypercorn and granian, as far as that needs no process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
import socket
import sys
from typing import Any
from unittest.mock import Mock

import pytest
from hypercorn.config import Config as HypercornConfig
from uvicorn import Config, Server

from flask_lifecycle._servers import asgi
from flask_lifecycle._servers.asgi import granian, hypercorn, uvicorn
from tests._fakes import BOUND, running

# -- granian ------------------------------------------------------------------------------------------------------


def handler_of(event: Any) -> Any:
    """granian's, as it is made."""
    signal_event = event

    def signal_handler(signum: int, frame: object) -> None:
        signal_event.set()

    return signal_handler


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


# -- idle connections ---------------------------------------------------------------------------------------------


class Looping(asgi.LoopAdapter):
    """A server in a loop, whose connections are transports."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *there: Any) -> None:
        super().__init__(loop, [], alone=True)
        self.there = list(there)

    def connections(self) -> list[Any]:
        return self.there[:]

    def under_way(self, connection: Any) -> list[Any]:
        return []

    def transport(self, connection: Any) -> Any:
        return connection

    def close_idle(self, connection: Any) -> None:
        self.there.remove(connection)


def test_an_idle_connection_is_hung_up_unless_a_request_comes() -> None:
    """One with bytes that were not read yet stays; the end of what a client sends is no request.

    Interleaving: the drain finds the connection idle; its next request arrives; the loop comes to hang it up.
    """
    loop = asyncio.new_event_loop()
    ours, theirs = socket.socketpair()
    transport = Mock(get_extra_info={"socket": ours}.get)
    subject = Looping(loop, transport)
    with contextlib.closing(loop), ours, running(loop.run_forever):
        with theirs:
            theirs.send(b"G")
            assert not subject.wait_idle(0.1, 0.0)
            assert subject.there == [transport]
            ours.recv(1)
        assert subject.wait_idle(BOUND, 0.0)
        loop.call_soon_threadsafe(loop.stop)


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
