"""What a stop does to the requests that run, and how the process ends."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from ._client import Connection, get, refuses
from ._process import BIG, Running, Starter

each_signal = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def assert_clean(running: Running, code: int) -> None:
    """Assert that a stop lost nothing: code 0, the log says so, hooks ran once, last in first."""
    assert code == 0
    assert "clean, exit 0" in running.log
    assert running.hooks() == ["last", "first"]


@each_signal
def test_idle_stop(live: Starter, full_server: str, number: int) -> None:
    """An idle process that gets the signal runs its hooks once, last in first, and exits 0."""
    running = live.serve(full_server)
    assert_clean(running, running.stop(number))
    assert f"shutdown begins: {signal.Signals(number).name}" in running.log


@each_signal
def test_request_in_flight(live: Starter, full_server: str, number: int) -> None:
    """A request that runs when the signal comes is answered whole, and the hooks run after it."""
    running = live.serve(full_server)
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        running.begin_stop(number)
        running.wait_log("listener closed")
        assert running.hooks() == []
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
    assert_clean(running, running.wait_gone())
    assert running.told("end live a") < running.told("shutdown last")


def test_request_in_flight_may_use_a_thread_pool(live: Starter, full_server: str) -> None:
    """A request that runs during the drain may still start threads, as the main thread has not
    returned.
    """
    running = live.serve(full_server)
    with Connection(running.address) as connection:
        connection.ask("/pool/a")
        running.wait_event("begin live a")
        running.begin_stop()
        running.wait_log("listener closed")
        running.open_gate("a")
        assert connection.answer().body == b"from the pool"
    assert_clean(running, running.wait_gone())


def test_stream_to_its_last_chunk(live: Starter, full_server: str) -> None:
    """A streamed answer goes on to its last chunk, and the hooks run after it."""
    running = live.serve(full_server)
    with Connection(running.address) as connection:
        connection.ask("/stream?gate=a")
        running.wait_event("begin stream")
        running.begin_stop()
        running.wait_log("listener closed")
        assert running.hooks() == []
        running.open_gate("a")
        body = connection.answer().body
    assert body == b"".join(b"chunk %02d\n" % number for number in range(12))
    assert_clean(running, running.wait_gone())
    assert running.told("end stream") < running.told("shutdown last")


def test_stream_that_notices_the_drain(live: Starter, server: str) -> None:
    """A stream that looks at `draining` learns at once that it should end, and ends its answer
    itself.
    """
    running = live.serve(server)
    with Connection(running.address) as connection:
        connection.ask("/until-drain")
        running.wait_event("begin until-drain")
        running.send(signal.SIGTERM)
        assert connection.answer().body.endswith(b"tick\ndrained\n")
    assert_clean(running, running.wait_gone())


def test_more_requests_than_threads(live: Starter, full_server: str) -> None:
    """With more requests than threads the queued ones are all answered, and the hooks run after
    them.
    """
    running = live.serve(full_server, threads=2)
    connections = [Connection(running.address) for _ in range(8)]
    for number, connection in enumerate(connections):
        connection.ask(f"/gate/g{number}")
        if number < 2:
            running.wait_event(f"begin live g{number}")
    # Whoever connects later is accepted later: this answer tells that the server has the eight.
    assert get(running.address, "/livez").status == 200
    running.begin_stop()
    running.wait_log("listener closed")
    for number in range(8):
        running.open_gate(f"g{number}")
    bodies = [connection.answer().body for connection in connections]
    assert bodies == [f"passed g{number}".encode() for number in range(8)]
    assert_clean(running, running.wait_gone())
    last_end = max(running.told(f"end live g{number}")[0] for number in range(8))
    assert last_end < running.told("shutdown last")[0]
    for connection in connections:
        connection.sock.close()


def test_client_gone_and_raising_body_leave_nothing(live: Starter, server: str) -> None:
    """A client that leaves in mid-stream and a body that raises leave nothing in flight."""
    running = live.serve(server, excuse="raised in the body")
    with Connection(running.address) as connection:
        connection.ask("/stream?gate=a")
        running.wait_event("begin stream")
        connection.reset()
    running.open_gate("a")
    running.wait_event("end stream")
    with Connection(running.address) as connection:
        connection.ask("/raise-in-body")
        connection.head()
        connection.sock.settimeout(5.0)
        assert b"one chunk" in connection.rest()
    # The count goes down after the last byte has gone out, so look until it has.
    running.wait_for(lambda: get(running.address, "/in-flight").body == b"1", "only the asking request in flight")
    assert_clean(running, running.stop())


def test_shutdown_asked_by_a_request(live: Starter, full_server: str) -> None:
    """A request may ask for the shutdown; it is answered whole, and the process exits as on a
    signal.
    """
    running = live.serve(full_server)
    with Connection(running.address) as connection:
        connection.ask("/stop", "POST")
        assert connection.answer().body == b"stopping"
    assert_clean(running, running.wait_gone())
    assert "asked by a request" in running.log


def test_new_connections_during_and_after_the_delay(live: Starter, full_server: str) -> None:
    """During the delay readiness is 503 and all else is served; after it new connections are
    refused.
    """
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 3.0, "LIFECYCLE_GRACE_PERIOD": 30.0}
    running = live.serve(full_server, settings=settings)
    assert get(running.address, "/readyz").status == 200
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        running.begin_stop()
        paths = ["/readyz", "/healthcheck", "/livez", "/startupz", "/fast"]
        answers = [get(running.address, path) for path in paths]
        assert "listener closed" not in running.log
        assert [answer.status for answer in answers] == [503, 503, 200, 200, 200]
        assert all(answer.says_close for answer in answers)
        running.wait_log("listener closed")
        assert refuses(running.address)
        running.open_gate("a")
        assert connection.answer().status == 200
    assert_clean(running, running.wait_gone())


def test_an_on_drain_function_holds_the_listener(live: Starter, full_server: str) -> None:
    """Without any delay everything is served until a function that holds the listener open has returned."""
    plan = {"hooks": {"drain": [["registry", "hold", None]]}}
    running = live.serve(full_server, plan=plan, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0})
    running.begin_stop()
    running.wait_log("delay goes on while an on_drain function holds the listener open")
    answers = [get(running.address, path) for path in ("/readyz", "/fast")]
    assert [answer.status for answer in answers] == [503, 200]
    assert "listener closed" not in running.log
    running.open_gate("registry")
    assert_clean(running, running.wait_gone())


def test_work_arriving_in_the_delay_is_drained(live: Starter, full_server: str) -> None:
    """A request that comes during the delay and outlasts it is answered whole."""
    running = live.serve(full_server, settings={"LIFECYCLE_SHUTDOWN_DELAY": 1.0})
    running.begin_stop()
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        running.wait_log("listener closed")
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
    assert_clean(running, running.wait_gone())


def test_exit_by_the_signal(live: Starter, full_server: str) -> None:
    """With LIFECYCLE_EXIT "signal" the process dies by the signal that came, after its hooks."""
    running = live.serve(full_server, settings={"LIFECYCLE_EXIT": "signal"})
    assert running.stop() == -signal.SIGTERM
    assert running.hooks() == ["last", "first"]


def test_signals_of_the_settings(live: Starter, server: str) -> None:
    """LIFECYCLE_SIGNALS names the signals that stop the process."""
    running = live.serve(server, settings={"LIFECYCLE_SIGNALS": ["SIGTERM", "SIGUSR1"]})
    assert_clean(running, running.stop(signal.SIGUSR1))
    assert "shutdown begins: SIGUSR1" in running.log


def test_ctrl_c_on_a_terminal(live: Starter, server: str) -> None:
    """Ctrl-C on a terminal in the middle of a request: a line tells what is awaited, and it is
    answered.
    """
    running = live.serve(server, terminal=True)
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        running.type(b"\x03")
        running.wait_log(r"1 (request )?in flight.*again to force")
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
    assert_clean(running, running.wait_gone())


def test_ctrl_c_twice_on_a_terminal(live: Starter, server: str) -> None:
    """A second Ctrl-C on a terminal forces the exit."""
    running = live.serve(server, terminal=True)
    with Connection(running.address) as connection:
        connection.ask("/gate/never")
        running.wait_event("begin live never")
        running.type(b"\x03")
        running.wait_log("again to force")
        assert not running.gone.wait(0.2)
        running.type(b"\x03")
        assert running.wait_gone() == 128 + signal.SIGINT


def test_drain_hooks_run_when_the_shutdown_begins(live: Starter, server: str) -> None:
    """The on_drain functions run at once, while requests are still in flight."""
    running = live.serve(server, plan={"hooks": {"drain": [["consumer", "ok", None]]}})
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        running.send(signal.SIGTERM)
        running.wait_event("drain consumer")
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
    assert_clean(running, running.wait_gone())


def test_report_of_run(live: Starter, server: str) -> None:
    """`run` returns a report of the whole stop; the program has its own handlers back."""
    plan = {"run": {"server": server}, "logging": True}
    running = live.start(sys.executable, "live_app.py", plan=plan)
    running.wait_log("STARTING -> READY")
    assert get(running.address, "/fast").body == b"fast"
    assert running.stop() == 0
    report = json.loads((running.home / "report.json").read_text())
    assert report["signal"] == signal.SIGTERM
    assert report["clean"] is True
    assert report["exit_code"] == 0
    assert report["abandoned"] == []
    assert report["hooks"] == [["last", "shutdown", "ok"], ["first", "shutdown", "ok"]]
    assert 0 < report["duration"] < running.lasted
    assert len(report["phases"]) == len(set(report["phases"])) > 1
    assert running.told("restored True")


@pytest.mark.parametrize("path", ["/big", "/file"])
def test_slow_reader(live: Starter, full_server: str, path: str) -> None:
    """A slow reader of 8 MB, from memory or from a file, gets every byte, and the stop waits for
    it.
    """
    running = live.serve(full_server)
    with Connection(running.address, small=True) as connection:
        connection.ask(path)
        status, headers = connection.head()
        running.begin_stop()
        running.wait_log("listener closed")
        assert not running.gone.wait(1.0)
        body = connection.body(headers)
    assert status == 200
    assert body == BIG
    assert_clean(running, running.wait_gone())
