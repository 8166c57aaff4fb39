"""The look-out for a server that somebody else starts, so that the start-up need not wait for the first request."""

from __future__ import annotations

import contextlib
import socket
import textwrap
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from flask_lifecycle import _process
from flask_lifecycle._process import Process
from flask_lifecycle._state import logger
from flask_lifecycle.servers.found import Found, _lookout, listeners
from flask_lifecycle.servers.found._lookout import LookOut
from tests._fakes import BOUND, FakeMember, run_python, until


class World:
    """What the look-out finds, look by look; the last of each goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listening: list[frozenset[int]] = [frozenset()]
        self.servers: list[Found | None] = [None]
        self.looks = self.searches = 0
        self.most = 30
        monkeypatch.setattr(_lookout, "_FIRST", 0.0)
        monkeypatch.setattr(_lookout, "_LONGEST", 0.0)
        monkeypatch.setattr(_lookout, "listeners", self._listeners)
        monkeypatch.setattr(_lookout, "find", self._find)

    def _listeners(self) -> frozenset[int]:
        self.looks += 1
        return self.listening.pop(0) if len(self.listening) > 1 else self.listening[0]

    def _find(self) -> Found | None:
        self.searches += 1
        return self.servers.pop(0) if len(self.servers) > 1 else self.servers[0]

    def look(self) -> bool:
        """Look out until it ends by itself, or after so many looks."""
        return LookOut(lambda: self.looks < self.most, contextlib.nullcontext()).wait()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_nothing_is_searched_where_nothing_listens(world: World) -> None:
    """A process without a listening socket is spared the search, however long it lives."""
    assert not world.look()
    assert (world.looks, world.searches) == (30, 0)


def test_a_server_that_serves_ends_it(world: World) -> None:
    """A server of a kind that we know, found when it listens, is what it waits for."""
    world.listening = [frozenset(), frozenset(), frozenset({7})]
    world.servers = [Found()]
    assert world.look()
    assert (world.looks, world.searches) == (3, 1)


def test_a_server_that_does_not_serve_yet(world: World) -> None:
    """What has been found before its loop runs is not searched again, and waited for."""
    serving = iter([False, False, False, True])

    class Late(Found):
        def serving(self) -> bool:
            return next(serving)

    world.listening = [frozenset({7})]
    world.servers = [Late()]
    assert world.look()
    assert (world.looks, world.searches) == (4, 1)


def test_a_listener_of_something_else(world: World) -> None:
    """A listener under which nothing is found is given up after a few searches, until another socket listens."""
    world.listening = [frozenset({7})] * 20 + [frozenset({7, 8})]
    world.servers = [None] * 8 + [Found()]
    assert world.look()
    assert (world.looks, world.searches) == (21, 9)


def test_the_time_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look for ever."""
    monkeypatch.setattr(_lookout, "_IN_ALL", 0.0)
    assert not world.look()
    assert world.looks == 0


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is twice the one before, to a bound, and short again when a socket listens."""
    listening = [frozenset({7})] + [frozenset[int]()] * 8
    pauses: list[float] = []

    class Never:
        def wait(self, seconds: float) -> None:
            pauses.append(seconds)

    monkeypatch.setattr(threading, "Event", Never)
    monkeypatch.setattr(_lookout, "listeners", listening.pop)
    monkeypatch.setattr(_lookout, "find", lambda: None)
    assert not LookOut(lambda: bool(listening), contextlib.nullcontext()).wait()
    assert pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 0.02]


def test_listeners_are_told_apart() -> None:
    """Each listening socket has a number of its own, and one that is connected has none."""
    before = listeners()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname()):
        first = listeners() - before
        with socket.create_server(("127.0.0.1", 0)):
            assert len(listeners() - before) == 2
            assert first < listeners()
    assert listeners() == before


# -- who looks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """A process of which a test says when a server has come."""
    monkeypatch.setattr(_process, "_MOMENT", 0.0)
    return Process(signals=False)


def join(process: Process, *members: FakeMember) -> None:
    for member in members:
        member.started = False
        process._members.append(weakref.ref(member))


def looked(process: Process, monkeypatch: pytest.MonkeyPatch, came: Callable[[LookOut], bool]) -> None:
    """Look out, once, with what comes of it given."""
    monkeypatch.setattr(LookOut, "wait", came)
    process._look_out()
    until(lambda: not process._looking)
    until(lambda: not any(thread.name == "lifecycle-lookout" for thread in threading.enumerate()))


def test_every_application_is_started(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a server serves, the start-up of each application begins, whatever becomes of the others."""
    started: list[str] = []

    class Broken(FakeMember):
        def see_to_start(self) -> None:
            raise OSError("Cannot listen on there: taken; choose another.")

    class Whole(FakeMember):
        def see_to_start(self) -> None:
            started.append("whole")

    members = [Broken(), Whole()]
    join(process, *members)
    messages: list[str] = []
    monkeypatch.setattr(logger, "error", lambda text, *arguments, **more: messages.append(text % arguments))
    looked(process, monkeypatch, lambda self: True)
    assert (started, messages) == (["whole"], ["Cannot listen on there: taken; choose another."])


def test_nobody_is_started_without_a_server(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server it is the first request that begins the start-up."""
    member = FakeMember()
    join(process, member)
    looked(process, monkeypatch, lambda self: False)
    assert member.changes == []


def test_it_is_over_when_nobody_waits(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when the applications have started, a runner of ours or a master is in charge, or the stop has begun."""
    member = FakeMember()
    join(process, member)
    assert process._waits_for_server()
    process.coordinator.owned = True
    assert not process._waits_for_server()
    process.coordinator.owned, member.started = False, True
    assert not process._waits_for_server()
    member.started = False
    process.coordinator.begin("enough")
    assert not process._waits_for_server()
    assert process.coordinator.done.wait(BOUND)
    process._look_out()
    assert not process._looking


def test_one_thread_looks(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applications that join while one looks do not have another look."""
    gate = threading.Event()
    member = FakeMember()
    join(process, member)
    looks: list[int] = []

    def wait(self: LookOut) -> bool:
        looks.append(1)
        return gate.wait(BOUND)

    monkeypatch.setattr(LookOut, "wait", wait)
    process._look_out()
    process._look_out()
    gate.set()
    until(lambda: not process._looking)
    assert looks == [1]


def test_no_thread_at_the_interpreter_s_end(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started any more nobody looks."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    member = FakeMember()
    join(process, member)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    process._look_out()


HEAD = """
import logging, os, sys, threading
from flask import Flask
from flask_lifecycle import Lifecycle, State
from tests._fakes import until
from waitress.server import create_server
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
app = Flask("app")
app.config["LIFECYCLE_SELF_TEST"] = False
lifecycle = Lifecycle()
"""


def program(code: str, *more: Any) -> list[str]:
    done = run_python(HEAD + textwrap.dedent(code), *more, python=["-W", "ignore"])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


LINE = (
    "server waitress (found among the objects of this process): the full promise: whatever the kernel has accepted is"
    " answered"
)


def test_the_start_comes_with_the_server() -> None:
    """A server that begins to serve begins the start-up, before any request. From READY on a stop may come: by then the
    server is known, and what has to be in place is.
    """
    assert program(
        """
        lifecycle.on_startup(lambda: print("on_startup"))
        lifecycle.init_app(app)
        server = create_server(app, host="127.0.0.1", port=0)
        threading.Thread(target=server.run, daemon=True).start()
        until(lambda: logging.getLogger("flask_lifecycle") and app.extensions["lifecycle"]._gate.is_set())
        os._exit(0)
        """
    ) == ["on_startup", "on_startup '<lambda>' done after 0.0 s", LINE, "state STARTING -> READY"]


def test_a_server_that_is_bound_does_not_serve() -> None:
    """Between the bind and the first round of its loop the start-up has not begun."""
    assert program(
        """
        lifecycle.init_app(app)
        server = create_server(app, host="127.0.0.1", port=0)
        lookouts = [thread for thread in threading.enumerate() if thread.name == "lifecycle-lookout"]
        lookouts[0].join(0.3)
        print(lifecycle.state.value)
        threading.Thread(target=server.run, daemon=True).start()
        until(lambda: lifecycle.state is State.READY)
        os._exit(0)
        """
    )[:2] == ["STARTING", LINE]


def test_a_child_looks_for_itself() -> None:
    """A forked child does not take its parent's server for its own, and finds one that it starts itself."""
    assert program(
        """
        logging.disable()
        lifecycle.init_app(app)
        parent = create_server(app, host="127.0.0.1", port=0)
        threading.Thread(target=parent.run, daemon=True).start()
        until(lambda: lifecycle.state is State.READY)
        child = os.fork()
        if child == 0:
            [lookout] = [thread for thread in threading.enumerate() if thread.name == "lifecycle-lookout"]
            lookout.join(0.3)
            print(lifecycle._state().started)
            own = create_server(app, host="127.0.0.1", port=0)
            threading.Thread(target=own.run, daemon=True).start()
            until(lambda: lifecycle._state().started)
            print("child", lifecycle._state().started, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        os._exit(0)
        """
    ) == ["False", "child True"]


def test_a_fork_does_not_come_between() -> None:
    """A fork waits for who looks, and may be in the middle of an import; in vain it waits for a moment only."""
    assert program(
        """
        from flask_lifecycle import _process
        forks, done, hold = threading.Event(), [], threading.Event()
        os.register_at_fork(before=forks.set)
        held = threading.Event()
        def look(over):
            with _process.this_process._undisturbed:
                held.set()
                over.wait(10)
                done.append("looked")
        def fork():
            child = os.fork()
            if child == 0:
                print(done, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
        threading.Thread(target=look, args=(forks,)).start()
        held.wait(10)
        fork()
        held.clear()
        _process._UNDISTURBED = 0.01
        threading.Thread(target=look, args=(hold,)).start()
        held.wait(10)
        fork()
        hold.set()
        """
    ) == ["['looked']", "['looked']"]
