"""A prober that hangs up before its answer: found on real connections, and what only looks like one is not."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from flask_lifecycle import Lifecycle, _hangup, _views
from flask_lifecycle._hangup import HangUp, hang_up, impatience
from flask_lifecycle._probe_server import ProbeServer
from flask_lifecycle._probers import Prober
from tests._fakes import BOUND, make_app, served, state_of, until

KUBELET = Prober("ready", "kube-probe/1.30", "10.0.0.1", "8000")


def probe(agent: str = "kube-probe/1.30", method: str = "GET") -> bytes:
    return f"{method} /readyz HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n\r\n".encode()


class Slow:
    """An application whose readiness takes as long as a test wants."""

    def __init__(self, **config: object) -> None:
        self.app = make_app(**config)
        self.lifecycle = Lifecycle(self.app)
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.address = ("", 0)
        self.lifecycle.check("slow", timeout=2 * BOUND, ttl=0)(self._check)
        self.app.test_client().get("/work")  # the start-up

    def _check(self) -> None:
        self.began.set()
        assert self.go_on.wait(BOUND)
        self.go_on.clear()

    @contextlib.contextmanager
    def asked(self, *requests: bytes, patience: float = 0.1) -> Iterator[socket.socket]:
        """A client that has sent these, and whose first is being answered, for so long; it goes on afterwards."""
        visits = self.visits()
        with socket.create_connection(self.address, timeout=BOUND) as client:
            client.sendall(b"".join(requests))
            assert self.began.wait(BOUND)
            self.began.clear()
            threading.Event().wait(patience)
            yield client
            self.go_on.set()
            until(lambda: self.visits() > visits)
            self.go_on.clear()

    def visits(self) -> int:
        return sum(prober.count for prober in self.lifecycle.probers())


@pytest.fixture(params=["waitress", "werkzeug", "probe listener"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """Served for real; what is slow, and what is at once, is measured by less than seconds."""
    monkeypatch.setattr(_views, "_SLOW", 0.05)
    monkeypatch.setattr(_hangup, "_AT_ONCE", 0.2)
    subject = Slow()
    if request.param == "probe listener":
        listener = ProbeServer(state_of(subject.app).probes, "127.0.0.1", 0)
        listener.start()
        subject.address = ("127.0.0.1", listener.port)
        yield subject
        listener.close()
    else:
        with served(request.param, subject.app) as server:
            subject.address = server.address
            yield subject


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "hung up" in record.getMessage()]


@pytest.mark.parametrize(("leave", "waited"), [(socket.socket.close, r"waited \d"), (reset, r"waited less than \d")])
def test_a_prober_that_hangs_up(
    slow: Slow, caplog: pytest.LogCaptureFixture, leave: Callable[[socket.socket], None], waited: str
) -> None:
    """Who hangs up on slow answers twice is named, once, with what to set: on each server and on the probe listener."""
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        with slow.asked(probe(), patience=0.25) as client:
            leave(client)
        assert warnings(caplog) == []
        for _ in range(2):
            with slow.asked(probe(), patience=0.25) as client:
                leave(client)
        until(lambda: warnings(caplog) != [])
    (warning,) = warnings(caplog)
    assert re.fullmatch(
        rf"The prober 'kube-probe/1\.30' at 127\.0\.0\.1 {waited}\.\d s for '/readyz' and hung up before its answer,"
        r" which took \d\.\d s; set 'LIFECYCLE_PROBE_TIMEOUT' to [\d.]+, or give the prober a longer timeout\.",
        warning,
    )


def heard(client: socket.socket) -> bytes:
    """The whole answer to a HEAD, or the head of one to a GET."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(4096)
        assert more
        data += more
    return data


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_who_waits_is_not_named(slow: Slow, caplog: pytest.LogCaptureFixture, method: str) -> None:
    """A prober that waits has its answer, by HEAD as well, and nobody is named."""
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        for _ in range(3):
            with slow.asked(probe(method=method)) as client:
                slow.go_on.set()
                assert b" 200 " in heard(client)
    assert warnings(caplog) == []


def test_a_pipelined_request_is_no_sign(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """What a client sends behind its probe is not taken for its end, and stays where it is."""
    livez = probe().replace(b"/readyz", b"/livez")
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        for _ in range(3):
            with slow.asked(probe(), livez) as client:
                slow.go_on.set()
                assert b" 200 " in heard(client)
    assert warnings(caplog) == []


def test_who_shuts_down_its_side_at_once_still_waits(slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    """A client that says by an orderly end that it sends no more has not hung up."""
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        for _ in range(3):
            visits = slow.visits()
            with socket.create_connection(slow.address, timeout=BOUND) as client:
                client.sendall(probe())
                client.shutdown(socket.SHUT_WR)
                assert slow.began.wait(BOUND)
                slow.began.clear()
                threading.Event().wait(0.25)
                slow.go_on.set()
                assert b" 200 " in heard(client)
            until(lambda visits=visits: slow.visits() > visits)  # type: ignore[misc]
    assert warnings(caplog) == []


@pytest.mark.parametrize("agent", ["Mozilla/5.0 (X11)", "flask-lifecycle/0.1"])
def test_people_are_not_probers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, agent: str) -> None:
    """Nobody is told of a browser whose tab was closed, or of our own command line."""
    monkeypatch.setattr(_views, "_SLOW", 0.0)
    monkeypatch.setattr(_hangup, "hang_up", lambda environ, took: HangUp(0.1, known=True))
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        app = ask_three_times(agent)
    assert warnings(caplog) == []
    assert state_of(app).probes._impatience_told is False


def ask_three_times(agent: str = "", **config: object) -> Flask:
    app = make_app(**config)
    Lifecycle(app)
    for _ in range(3):
        app.test_client().get("/readyz", headers={"User-Agent": agent})
    return app


def test_a_prober_that_waits_longer_than_we_do_is_not_told_of_our_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the answer is late although our timeout is shorter, another one would not help."""
    monkeypatch.setattr(_views, "_SLOW", 0.0)
    monkeypatch.setattr(_hangup, "hang_up", lambda environ, took: HangUp(2.0, known=True))
    with caplog.at_level(logging.WARNING, "flask_lifecycle"):
        ask_three_times(LIFECYCLE_PROBE_TIMEOUT=1.0)
    assert warnings(caplog) == []


def test_a_log_that_blocks_does_not_hold_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning is written in a thread of its own."""
    monkeypatch.setattr(_views, "_SLOW", 0.0)
    monkeypatch.setattr(_hangup, "hang_up", lambda environ, took: HangUp(0.5, known=True))
    blocked, released = threading.Event(), threading.Event()

    def block(record: logging.LogRecord) -> bool:
        blocked.set()
        return released.wait(BOUND)

    logger = logging.getLogger("flask_lifecycle")
    logger.addFilter(block)
    try:
        ask_three_times()
        assert blocked.wait(BOUND)
        assert not released.is_set()
    finally:
        released.set()
        logger.removeFilter(block)


def test_a_lack_of_threads_is_no_trouble(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where no thread is to be had, the warning is left out and the probe is answered."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_views, "_SLOW", 0.0)
    monkeypatch.setattr(_hangup, "hang_up", lambda environ, took: HangUp(0.5, known=True))
    app = make_app()
    Lifecycle(app)
    app.test_client().get("/readyz")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert app.test_client().get("/readyz").status_code == 200
    assert warnings(caplog) == []


# -- what is told, and what cannot be told -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "words", "value"),
    [
        (HangUp(1.0, known=True), "1.0 s", "0.8"),
        (HangUp(10.0, known=True), "10.0 s", "8"),
        (HangUp(0.05, known=True), "0.1 s", "0.1"),
        (HangUp(3.0, known=False), "less than 3.0 s", "1.5"),
    ],
)
def test_what_is_said(found: HangUp, words: str, value: str) -> None:
    """The sentence names the prober, its patience as far as it is known, and a timeout that fits."""
    assert impatience(KUBELET, "/readyz", found, 3.2) == (
        f"The prober 'kube-probe/1.30' at 10.0.0.1 waited {words} for '/readyz' and hung up before its answer, which"
        f" took 3.2 s; set 'LIFECYCLE_PROBE_TIMEOUT' to {value}, or give the prober a longer timeout."
    )


def test_where_nothing_can_be_seen() -> None:
    """Without a connection, with one that is closed, and over a Unix socket nothing is found."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.close()
        assert hang_up({}, 5.0) is None
        assert hang_up({"werkzeug.socket": ours}, 5.0) in (None, HangUp(5.0, known=False))
        ours.close()
        assert hang_up({"gunicorn.socket": ours}, 5.0) is None
