"""Discovery: a server that another program has started is found, and its start noticed."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from flask_lifecycle import _servers
from flask_lifecycle._core.process import Process
from flask_lifecycle._servers import discovery, serving, sockets
from flask_lifecycle._servers.adapter import Adapter
from tests._fakes import BOUND, in_child, raiser, run_python, running


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


def test_a_search_holds_nothing_of_other_threads() -> None:
    """A tuple that another thread is building while the objects are searched can still grow."""
    found = []

    def items() -> Iterator[int]:
        found.extend(discovery.instances(Asked))
        yield from range(100)

    asked = Asked(1)
    assert tuple(items()) == tuple(range(100))
    assert found == [asked]


class Asked:
    """A lock that tells when so many have asked for it."""

    def __init__(self, parties: int) -> None:
        self._left = parties
        self._lock = threading.RLock()
        self.all = threading.Event()

    def __enter__(self) -> None:
        self._left -= 1
        if not self._left:
            self.all.set()
        self._lock.acquire()

    def __exit__(self, *_error: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("second", [discovery.find, lambda: serving.Serving(Process(signals=False))._find_werkzeug()])
def test_two_that_search_find_one(monkeypatch: pytest.MonkeyPatch, second: Callable[[], Adapter | None]) -> None:
    """The threads that wait for a server or for ``run_simple``, and the first request, search one after the other."""
    # Interleaving: one searches; the other begins, waits, and gets what the first found. At the same time each would
    # make an adapter, and the one put in place would not be the one that is told to stop; or both would track the
    # connections of a server, each by a handler class of its own.
    searching, made = Asked(2), list[Adapter]()

    def find() -> Adapter:
        if not made:
            assert searching.all.wait(BOUND)
            made.append(Adapter())
        return made[-1]

    monkeypatch.setattr(discovery, "searching", searching)
    monkeypatch.setattr(discovery, "listens", lambda: True)
    monkeypatch.setattr(discovery, "KINDS", (("sys", "ours"),))
    monkeypatch.setitem(sys.modules, "flask_lifecycle._servers.ours", SimpleNamespace(find=find))
    others: list[Adapter | None] = []
    with running(lambda: others.append(discovery.find())):
        mine = second()
    assert others == made
    assert len(made) == 1
    assert mine is (made[0] if second is discovery.find else None)


def test_a_server_that_closes_its_listener_in_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that its server closes when the search has just seen it open is not found, and nothing is raised."""

    class Closing(socket.socket):
        def getsockname(self) -> Any:
            self.close()
            return super().getsockname()

    with socket.create_server(("127.0.0.1", 0)) as other, contextlib.closing(Closing()) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        server = make_server("127.0.0.1", 0, wsgi)
        server.socket.close()
        server.socket = sock
        monkeypatch.setattr(discovery, "KINDS", (("werkzeug.serving", "werkzeug"),))
        assert discovery.find() is None
        assert sock.fileno() == -1
        assert other.fileno() >= 0  # without it there would be no search


@contextlib.contextmanager
def held(lock: Any, until_then: threading.Event, at_end: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Another thread holds a lock until something happens, and then calls a function first."""
    holds = threading.Event()

    def hold() -> None:
        with lock:
            holds.set()
            assert until_then.wait(BOUND)
            at_end()

    with running(hold):
        assert holds.wait(BOUND)
        yield
        until_then.set()


def test_a_child_that_is_forked_in_a_search_can_search() -> None:
    """A thread that searches in the parent is not in the child, and nobody waits for it there."""
    with held(discovery.searching, threading.Event()):
        assert in_child(lambda: discovery.searching.acquire(timeout=BOUND)) == 1


def test_a_fork_does_not_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork waits for who looks, and may be in the middle of an import; in vain it waits for a moment only."""
    forks, looked = threading.Event(), list[str]()
    os.register_at_fork(before=forks.set)  # comes before ours
    with held(serving.this_serving._undisturbed, forks, lambda: looked.append("looked")):
        assert in_child(lambda: len(looked)) == 1
    monkeypatch.setattr(serving, "UNDISTURBED", 0.01)
    with held(serving.this_serving._undisturbed, threading.Event(), lambda: looked.append("looked")):
        assert in_child(lambda: len(looked)) == 1


@pytest.mark.parametrize(
    ("listening", "servers", "waits", "outcome"),
    [
        # A process without a listening socket is spared the search, however long it lives.
        ([0], [None], [], (False, 30, 0)),
        # A server of a kind that we know, found when it listens, is what it waits for.
        ([0, 0, 1], [Adapter], [True], (True, 3, 1)),
        # What has been found before its loop runs is not searched again, and waited for.
        ([1], [Adapter], [False, False, False, True], (True, 4, 1)),
        # A listener under which nothing is found is given up after a few searches, until another socket listens.
        ([1] * 20 + [2], [None] * 8 + [Adapter], [True], (True, 21, 9)),
    ],
)
def test_when_a_server_is_searched(
    monkeypatch: pytest.MonkeyPatch,
    listening: list[int], servers: list[Any], waits: list[bool], outcome: tuple[bool, int, int],
) -> None:  # fmt: skip
    """Sockets that listen are looked at again and again, and a server is searched where there is a new one."""
    looks, searches, serving = list[int](), list[Any](), iter(waits)

    def look() -> frozenset[int]:
        looks.append(listening[min(len(looks), len(listening) - 1)])
        return frozenset(range(looks[-1]))

    def search() -> Adapter | None:
        searches.append(servers[min(len(searches), len(servers) - 1)])
        return searches[-1]() if searches[-1] else None

    monkeypatch.setattr(Adapter, "serving", lambda adapter: next(serving))
    monkeypatch.setattr(discovery, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(discovery, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(discovery, "listeners", look)
    monkeypatch.setattr(discovery, "find", search)
    found = discovery.wait_for_server(lambda: len(looks) < 30, contextlib.nullcontext())
    assert (found, len(looks), len(searches)) == outcome
    monkeypatch.setattr(discovery, "BOUND", 0.0)
    assert not discovery.wait_for_server(lambda: True, contextlib.nullcontext())


def test_a_probe_listener_that_is_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe listener that another thread closes, as a test that has ended does, is no error."""

    class Closing:
        def fileno(self) -> int:
            with socket.socket() as sock:
                return sock.fileno()

    monkeypatch.setattr(sockets, "probe_listeners", {Closing()})
    with socket.create_server(("127.0.0.1", 0)) as server, discovery.main_listeners() as found:
        assert server.getsockname() in [sock.getsockname() for sock in found]


def test_listeners_are_told_apart() -> None:
    """Each listening socket has a number of its own, and one that is connected has none."""
    before = discovery.listeners()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_connection(one.getsockname()):
        first = discovery.listeners() - before
        with socket.create_server(("127.0.0.1", 0)):
            assert len(discovery.listeners() - before) == 2
            assert first < discovery.listeners()
    assert discovery.listeners() == before


# Each makes a server, which is frozen as gunicorn's users do it, and searched only then.
FROZEN = {
    "waitress": """
from waitress import create_server
server = create_server(app, host="127.0.0.1", port=0)
serve = server.run
""",
    "cheroot": """
from cheroot.wsgi import Server
server = Server(where, app)
server.prepare()
serve = server.serve
""",
    "werkzeug": """
from werkzeug.serving import make_server
server = make_server(*where, app)
serve = server.serve_forever
""",
    "gevent": """
from gevent.pywsgi import WSGIServer
server = WSGIServer(where, app)
server.start()
serve = lambda: None
""",
    "gunicorn": """
import gunicorn.config, socket
from gunicorn.workers.gthread import ThreadWorker
listener, serve = socket.create_server(where), lambda: None
worker = ThreadWorker(0, 0, [], None, 0, gunicorn.config.Config(), None)
worker.pid, worker.booted = os.getpid(), True
""",
    "uvicorn": """
import uvicorn
server = uvicorn.Server(uvicorn.Config(app, interface="wsgi", port=0, log_level="warning"))
serve = server.run
""",
}
HEAD = """
import gc, os, threading
from flask_lifecycle._servers import discovery
from tests._fakes import until
app, where = lambda environ, start_response: [], ("127.0.0.1", 0)
"""
FREEZE = """
gc.freeze()
assert not any(each is locals().get("server") for each in gc.get_objects())
threading.Thread(target=serve, daemon=True).start()
until(lambda: discovery.find() is not None)
print(discovery.find().name, gc.get_freeze_count() > 1000, gc.isenabled())
os._exit(0)
"""


@pytest.mark.parametrize("server", FROZEN)
def test_a_frozen_server_is_found(server: str) -> None:
    """A server is found although ``gc.freeze`` hides it from the garbage collector, and what was frozen stays so."""
    done = run_python(HEAD + FROZEN[server] + FREEZE, python=["-W", "ignore"])
    assert (done.returncode, done.stdout) == (0, f"{server} True True\n"), done.stderr


def test_a_server_is_found_without_a_list_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process cannot list its descriptors (no /proc) its server is found all the same."""
    gc.collect()  # servers of other tests: without a list of descriptors any of them is a candidate
    server = make_server("127.0.0.1", 0, wsgi, threaded=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", raiser(FileNotFoundError(errno.ENOENT, "No such file or directory")))
        found = discovery.find()
    assert found is not None
    assert found.name == "werkzeug"
    server.server_close()


@pytest.mark.parametrize(
    "listens",
    [
        "",
        "import socket; listener = socket.create_server(('127.0.0.1', 0))",
        "from flask_lifecycle._probes.http_server import ProbeServer; listener = ProbeServer(None, '127.0.0.1', 0)",
    ],
)
def test_what_is_no_server_we_know(listens: str) -> None:
    """No listener, one of an unknown server and our own for probes are not the server's, and looking imports none."""
    look = "import os, sys; from flask_lifecycle._servers import discovery as found"
    done = run_python(
        f"{listens}\n{look}; print(found.listens(), found.find(), 'waitress' in sys.modules, flush=True); os._exit(0)"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{bool(listens)} None False\n", "")


def test_a_closed_or_half_made_server_is_no_server() -> None:
    """Neither one closed without having served is found, nor one whose making failed halfway, which has no socket."""
    gc.collect()  # servers of other tests
    half = object.__new__(BaseWSGIServer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        runner: Any = _servers.create("waitress", wsgi, None, None, {"sockets": [listener.dup()]})
        assert isinstance(discovery.find(), type(runner))
        runner.close()
        for sock in runner.listeners():
            sock.close()
        assert discovery.find() is None
    del half
