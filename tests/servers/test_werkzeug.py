"""Werkzeug that ``run`` has started, served in this process: what the live tests cannot force."""

from __future__ import annotations

import contextlib
import selectors
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from socketserver import BaseServer
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from werkzeug.serving import WSGIRequestHandler

from flask_lifecycle import _servers
from tests._fakes import BOUND, Served, running, served, until
from tests.live._client import Connection, get

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# More than a small client takes at once, and less than our kernel takes from us.
LARGE = b"x" * 60_000


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as the path says."""
    path = environ["PATH_INFO"]
    raised: dict[str, type[BaseException]] = {
        "/raises": ConnectionError,  # Werkzeug takes it for the client's
        "/late": TimeoutError,
        "/fails": LookupError,
        "/exits": SystemExit,
    }
    if path in raised:
        raise raised[path]
    body = LARGE if path == "/large" else b"body"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def werkzeug() -> Iterator[Served]:
    """The application above."""
    with served("werkzeug", app) as subject:
        yield subject


def test_a_stop_does_not_wait_for_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is woken by the end of its listener, and then by the stop, however long it polls.

    The bad interleaving is the usual one: the loop polls its listener when that is closed.
    """
    turn = BaseServer.serve_forever
    monkeypatch.setattr(BaseServer, "serve_forever", lambda server, poll_interval: turn(server, 10 * BOUND))
    with served("werkzeug", app) as subject:
        assert get(subject.address, "/").body == b"body"
        until(lambda: any(frame.f_code is selectors.PollSelector.select.__code__ for frame in innermost()))


def innermost() -> list[FrameType]:
    """What each thread is at."""
    return list(sys._current_frames().values())


@contextlib.contextmanager
def held_up(subject: Served) -> Iterator[None]:
    """Keep the server's loop from accepting until what is inside has been done."""
    busy, free = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(BOUND)

    subject.runner.ping(hold)
    assert busy.wait(BOUND)
    try:
        yield
    finally:
        free.set()


@pytest.mark.parametrize("path", ["/raises", "/late", "/exits", "/fails"])
def test_what_werkzeug_would_misread_is_answered(werkzeug: Served, path: str) -> None:
    """A lost database is not a lost client, and SystemExit no reason for silence: the request is answered 500."""
    assert get(werkzeug.address, path).status == 500


def test_no_answer_where_the_application_wants_none(werkzeug: Served) -> None:
    """By a ConnectionError an application that has taken its connection over, for a websocket, asks for silence."""
    with Connection(werkzeug.address) as client:
        client.ask("/raises", Upgrade="websocket", Connection="Upgrade")
        assert client.rest() == b""


def test_a_websocket_that_has_not_ended_is_hung_up() -> None:
    """A websocket that has not ended by the end of the shutdown finds its connection hung up then."""
    taken = threading.Event()

    def taking(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        taken.set()
        while environ["werkzeug.socket"].recv(100):
            pass
        raise ConnectionError

    with served("werkzeug", taking) as subject, Connection(subject.address) as client:
        client.ask("/", Upgrade="websocket", Connection="Upgrade")
        assert taken.wait(BOUND)
        subject.begin_drain()
        assert not subject.runner.wait_idle(0.0, 0.0)
        assert subject.runner.load().busy == 1
        subject.runner.stop()
        assert client.rest() == b""


def test_a_client_that_resets_in_the_accept_queue(werkzeug: Served, capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that is reset before it is accepted is let go without a word, and the next is answered."""
    # loop: is held up | client: connects, resets | loop: accepts, starts the thread | thread: its first read fails
    with held_up(werkzeug):
        Connection(werkzeug.address).reset()
    assert get(werkzeug.address, "/whole").body == b"body"
    assert "Traceback" not in capfd.readouterr().err


def test_no_thread_to_be_had(
    werkzeug: Served, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no thread can be started a connection is closed, and the next is answered."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with Connection(werkzeug.address) as client:
            assert client.rest() == b""
    assert get(werkzeug.address, "/whole").body == b"body"
    assert "RuntimeError: can't start new thread" in capfd.readouterr().err


def test_an_answered_request_is_sending(werkzeug: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is answered no longer runs: while the server reads what else comes, and when its handler ended."""
    # server: writes the answer, reads the rest | look | handler: finishes | look | client: has not read the answer yet
    looked, finished = threading.Event(), threading.Event()
    finish = WSGIRequestHandler.finish

    def read_nothing(selector: selectors.DefaultSelector, timeout: float | None = None) -> list[object]:
        assert looked.wait(BOUND)
        return []

    def finish_and_note(handler: WSGIRequestHandler) -> None:
        finish(handler)
        finished.set()

    monkeypatch.setattr(selectors.DefaultSelector, "select", read_nothing)
    monkeypatch.setattr(WSGIRequestHandler, "finish", finish_and_note)
    with Connection(werkzeug.address, slow=True) as client:
        werkzeug.runner.announce()
        client.ask("/large")
        until(lambda: [info.stage for info in werkzeug.runner.unfinished()] == ["sending"])
        looked.set()
        assert finished.wait(BOUND)
        assert [info.stage for info in werkzeug.runner.unfinished()] == ["sending"]
        assert client.answer().body == LARGE


def test_several_listeners(tmp_path: Path) -> None:
    """Each listener has a loop, a ping goes through all of them, and a stop ends all of them at once."""
    path = tmp_path / "s"
    options = {"listen": "127.0.0.1:0 127.0.0.1:0", "unix_socket": str(path)}
    runner = _servers.create("werkzeug", app, None, None, options)
    ports = [int(address.rpartition(":")[2]) for address in runner.addresses()[:2]]
    with running(runner.serve):
        back = threading.Event()
        assert runner.ping(back.set)
        assert back.wait(BOUND)
        for port in ports:
            assert get(("127.0.0.1", port), "/whole").body == b"body"
        runner.stop_accepting(BOUND)
        assert not path.exists()
        assert runner.wait_idle(BOUND, 0.0)
        runner.stop()
    until(lambda: all(thread.name != "lifecycle-werkzeug" for thread in threading.enumerate()))


def test_a_stop_before_the_loop() -> None:
    """A server that has been stopped does not begin to serve; one that still accepts can be stopped as well."""
    for begun in (False, True):
        runner = _servers.create("werkzeug", app, "127.0.0.1", 0, {})
        with contextlib.ExitStack() as stack:
            if begun:
                stack.enter_context(running(runner.serve))
                until(lambda runner=runner: runner.ping(lambda: None))  # type: ignore[misc]
            runner.stop()
            if not begun:
                began = time.monotonic()
                runner.serve()
                assert time.monotonic() - began < BOUND
