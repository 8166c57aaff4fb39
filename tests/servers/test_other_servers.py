"""Servers that others start, as far as that needs no process of its own, and the wrapper of their application."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import signal
import socket
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from hypercorn.config import Config as HypercornConfig
from uvicorn import Config, Server

from flask_lifecycle._servers import asgi
from flask_lifecycle._servers.wsgi import WSGIWrapper
from tests._fakes import BOUND, running
from tests.core.test_inflight import Chunks


def module_of(name: str) -> Any:
    """The module of an adapter."""
    return importlib.import_module(f"flask_lifecycle._servers.{name}")


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
    assert module_of("asgi.granian").kill_timeout() == limit


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
    """One with bytes that were not read yet stays; the end of what a client sends is no request."""
    # Interleaving: the drain finds the connection idle; its next request arrives; the loop comes to hang it up.
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


def serve_by_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of uvicorn that has begun to serve."""
    server = Server(Config(lambda scope: None, interface="wsgi", http="h11"))
    server.config.load()
    server.started, server.servers = True, [Mock(sockets=())]
    monkeypatch.setattr(module_of("asgi.uvicorn"), "instances", lambda kind: [server])


def serve_by_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine of hypercorn that serves."""
    names = {"servers": [Mock(sockets=())], "loop": Mock(), "shutdown_trigger": Mock(), "config": HypercornConfig()}
    serving = Mock(cr_frame=Mock(f_locals=names))
    monkeypatch.setattr(module_of("asgi.hypercorn"), "made_from", lambda code: [serving])
    monkeypatch.setattr(module_of("asgi.hypercorn"), "attached", None)


def serve_by_granian(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of granian, with its handler of SIGTERM as it is made."""
    signal_event = Mock()

    def signal_handler(signum: int, frame: object) -> None:
        signal_event.set()

    monkeypatch.setattr(multiprocessing, "parent_process", Mock)
    monkeypatch.setattr(signal, "getsignal", lambda signum: signal_handler)
    monkeypatch.setattr(module_of("asgi.granian"), "attached", None)


@pytest.mark.parametrize("lacks", [False, True])
@pytest.mark.parametrize(
    ("name", "serve", "used"),
    [
        ("uvicorn", serve_by_uvicorn, "_OF_SERVER"),
        ("uvicorn", serve_by_uvicorn, "_OF_CONNECTION"),
        ("hypercorn", serve_by_hypercorn, "_OF_SERVING"),
        ("hypercorn", serve_by_hypercorn, "_OF_CONNECTION"),
        ("granian", serve_by_granian, "_OF_RUNNER"),
    ],
)
def test_a_server_that_lacks_what_its_adapter_uses(
    name: str, serve: Any, used: str, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a new version has changed lowers the guarantee, and the log says which it is."""
    module = module_of(f"asgi.{name}")
    serve(monkeypatch)
    if lacks:
        monkeypatch.setattr(module, used, (*getattr(module, used), "changed"))
    adapter = module.find()
    assert adapter is not None
    assert (adapter.guarantee == "started requests") is lacks
    assert ("'changed'" in adapter.advice) is lacks
    assert adapter.ours is not lacks


WHOLE = {
    "master": True,
    "enable-threads": True,
    "lazy-apps": True,
    "hook-master-start": b"unix_signal:15 gracefully_kill_them_all",
}


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module for uWSGI, in the first of its workers."""
    theirs = types.SimpleNamespace(opt=dict(WHOLE), worker_id=lambda: 1, masterpid=lambda: 1)
    monkeypatch.setitem(sys.modules, "uwsgi", theirs)
    yield module_of("uwsgi")
    del sys.modules["flask_lifecycle._servers.uwsgi"]


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({}, []),
        ({"enable-threads": None, "threads": b"4", "lazy-apps": None, "py-call-osafterfork": True}, []),
        ({"master": None}, ["'master = true'"]),
        ({"enable-threads": None}, ["'enable-threads = true'"]),
        ({"lazy-apps": None}, ["'lazy-apps = true'"]),
        ({"hook-master-start": b"x"}, ["'hook-master-start = unix_signal:15 gracefully_kill_them_all'"]),
        ({"die-on-term": True}, ["no 'die-on-term'"]),
    ],
)
def test_what_a_configuration_of_uwsgi_lacks(uwsgi: Any, change: dict[str, Any], lacking: list[str]) -> None:
    """Each option without which a stop loses what runs is named."""
    assert uwsgi.missing({**WHOLE, **change}) == lacking


def test_uwsgis_queue_is_waited_for(uwsgi: Any) -> None:
    """The drain goes on when nobody has waited in the queue for a while, or at its bound."""
    subject, looks = uwsgi.Uwsgi(), iter([1, 1])
    uwsgi.uwsgi.listen_queue = lambda: next(looks, 0)
    subject.stop_accepting(BOUND)
    assert next(looks, None) is None
    uwsgi.uwsgi.listen_queue = lambda: 1
    subject.stop_accepting(0.05)


@pytest.mark.parametrize(("group", "guarantee"), [("shop", "accepted requests"), ("", "started requests")])
def test_an_embedded_mod_wsgi_guarantees_less(monkeypatch: pytest.MonkeyPatch, group: str, guarantee: str) -> None:
    """What Apache's own processes hold may be ended with them at any time."""
    monkeypatch.setitem(sys.modules, "mod_wsgi", types.SimpleNamespace(process_group=group))
    module = module_of("mod_wsgi")
    assert module.find().guarantee == guarantee
    del sys.modules["flask_lifecycle._servers.mod_wsgi"]


@pytest.mark.parametrize("end", ["iterated", "closed", "both", "dropped"])
def test_a_body_is_closed_once(end: str) -> None:
    """However a server treats a body, it is closed, and once."""
    subject, result = WSGIWrapper(), Chunks(b"x")
    called: Any = subject.wrap(lambda environ, start_response: result)
    body = called({}, None)
    assert len(subject.running) == 1
    if end == "dropped":
        begun = iter(body)
        next(begun)
        del begun
    if end in ("iterated", "both"):
        assert list(body) == [b"x"]
    if end in ("closed", "both"):
        body.close()
    assert (result.closed, len(subject.running)) == (1, 0)


def test_an_application_that_raises_has_ended() -> None:
    """A request whose application raises before it returns a body is not running any more."""
    subject = WSGIWrapper()
    called: Any = subject.wrap(lambda environ, start_response: [][0])
    with pytest.raises(IndexError, match="out of range"):
        called({}, None)
    assert not subject.running
