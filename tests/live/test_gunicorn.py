"""gunicorn, with our hooks in its configuration and without: real masters, workers and signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ._client import Connection, Tally, get, storm_client
from ._process import BIG, ROOT, Running, Starter, wait_until

CONFIG = str(ROOT / "examples" / "gunicorn" / "gunicorn.conf.py")
FALLBACK = """
from flask_lifecycle.gunicorn import *
from flask_lifecycle.servers import _arbiter
_arbiter.deafen = lambda sock: None
"""
# A worker that has its handlers, and takes its time to load the application.
SLOW_TO_LOAD = """
import os, time
from flask_lifecycle.gunicorn import *
from gunicorn.workers import base
load = base.Worker.load_wsgi
def slow(worker):
    home = os.environ["LIVE_HOME"]
    with open(f"{home}/events", "a") as events:
        events.write(f"{time.monotonic():.6f} loading\\n")
    while not os.path.exists(f"{home}/gate-load"):
        time.sleep(0.005)
    load(worker)
base.Worker.load_wsgi = slow
"""
KINDS = {
    "sync": ("--worker-class", "sync", "--threads", "1"),
    "gthread": ("--worker-class", "gthread", "--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}


@pytest.fixture(params=["sync", "gthread"])  # test_gunicorn_gevent.py has those of the third
def kind(request: pytest.FixtureRequest) -> str:
    """Name the class of workers; a test that asks for it runs on each."""
    name: str = request.param
    return name


@pytest.fixture(params=[(), ("--preload",)], ids=["", "preload"])
def preload(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Have the master load the application, or each worker."""
    options: tuple[str, ...] = request.param
    return options


def serve(
    live: Starter,
    kind: str,
    *options: str,
    config: str | None = CONFIG,
    workers: int = 2,
    bind: str = "127.0.0.1:0",
    app: str = "live_app:app",
    plan: dict[str, Any] | None = None,
    ready: bool = True,
    **more: Any,
) -> Running:
    """Start gunicorn and wait until all its workers are ready, or with ``ready=False`` have loaded the application."""
    running = live.start(
        sys.executable, "-m", "gunicorn", "--no-control-socket", *KINDS[kind],
        *(("--config", config) if config else ()),
        "--workers", str(workers), "--bind", bind, *options, app,
        plan={"logging": True, **(plan or {})}, **more,
    )  # fmt: skip
    if ready:
        wait_ready(running, workers)
    else:
        running.wait_for(lambda: len(pids(running)) == workers, "all workers")
        running.wait_event("ready live", 1 if "--preload" in options else workers)
    return running


def wait_ready(running: Running, times: int) -> None:
    """Wait until so many workers, of all there were, have become ready."""
    running.wait_for(lambda: running.log.count("STARTING -> READY") >= times, f"{times} ready workers")


def wait_draining(running: Running, times: int = 2) -> None:
    """Wait until so many workers have begun their shutdown."""
    running.wait_for(lambda: running.log.count("-> DRAINING") >= times, f"{times} draining workers")


def address_of(running: Running) -> tuple[str, int]:
    """Where it listens."""
    return "127.0.0.1", int(running.wait_log(r"Listening at: http://127\.0\.0\.1:(\d+)")[1])


def pids(running: Running) -> list[int]:
    """The workers that were started so far, in their order."""
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", running.log)]


def exited(running: Running) -> int:
    """How many workers have left."""
    return running.log.count("Worker exiting (pid")


def begun(running: Running, reason: str, delay: float) -> int:
    """How many shutdowns have begun for this reason, with this delay."""
    # What is left of the grace period is less than all of it where the machine is busy.
    return len(re.findall(rf"shutdown begins: {reason} \(grace period [\d.]+ s, delay {delay:.1f} s\)", running.log))


def is_accepted(connection: Connection) -> bool:
    """Whether a worker has accepted this connection: until then its socket has no inode in the kernel's table."""
    ports = [f":{connection.sock.getpeername()[1]:04X}", f":{connection.sock.getsockname()[1]:04X}"]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any([row[1][8:], row[2][8:]] == ports and row[9] != "0" for row in rows)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def load(address: tuple[str, int], *, keep_alive: bool = False) -> Iterator[list[Tally]]:
    """Have four clients ask without pause until they are refused."""
    gone = threading.Event()
    tallies = [Tally() for _ in range(4)]
    threads = [
        threading.Thread(target=storm_client, args=(address, gone, tally, keep_alive), daemon=True) for tally in tallies
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(tally.answered > 10 for tally in tallies), "answers")
        yield tallies
    finally:
        gone.set()
        for thread in threads:
            thread.join(20.0)


def test_idle_stop(live: Starter, kind: str) -> None:
    """An idle stop ends with 0, and each worker has run its hooks once."""
    running = serve(live, kind)
    assert get(address_of(running), "/fast").body == b"fast"
    assert running.stop() == 0
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]
    assert running.log.count("shutdown complete") == 2


def test_a_request_in_flight_is_answered(live: Starter, kind: str) -> None:
    """A request that runs when the signal comes is answered whole, the hooks of its worker run after it."""
    running = serve(live, kind, workers=1)
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        running.open_gate("work")
        answer = connection.answer()
    assert (answer.body, answer.says_close) == (b"passed work", True)
    assert running.wait_gone() == 0
    assert running.told("end live work") < running.told("shutdown last")


def test_half_a_request_is_answered(live: Starter, kind: str) -> None:
    """A request whose head, or whose body, is completed after the signal is answered."""
    running = serve(live, kind)
    address = address_of(running)
    with Connection(address) as head, Connection(address) as body:
        body.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf-")
        running.wait_event("begin echo")
        head.send(b"GET /fast HTTP/1.1\r\nHo")
        running.send(signal.SIGTERM)
        wait_draining(running)
        head.send(b"st: a\r\n\r\n")
        body.send(b"other")
        assert (head.answer().body, body.answer().body) == (b"fast", b"10 bytes")
    assert running.wait_gone() == 0


def test_a_slow_reader_gets_all(live: Starter, kind: str) -> None:
    """An answer that its client takes late is sent whole."""
    running = serve(live, kind, workers=1)
    with Connection(address_of(running), small=True) as connection:
        connection.ask("/gated-big/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        running.open_gate("work")
        running.wait_log("Handling signal: term")
        assert connection.answer().body == BIG
    assert running.wait_gone() == 0


def test_a_stream_hears_of_the_drain(live: Starter, kind: str) -> None:
    """A stream that looks at the drain ends by itself, whole."""
    running = serve(live, kind, workers=1)
    with Connection(address_of(running)) as connection:
        connection.ask("/until-drain")
        running.wait_event("begin until-drain")
        running.send(signal.SIGTERM)
        assert connection.answer().body.endswith(b"drained\n")
    assert running.wait_gone() == 0


def test_readiness_flips_in_all_workers(live: Starter, kind: str) -> None:
    """During the delay every worker refuses readiness, is alive, serves, and tells connections to close."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 4.0})
    address = address_of(running)
    running.send(signal.SIGTERM)
    wait_draining(running)
    assert [get(address, "/readyz").status for _ in range(20)] == [503] * 20
    assert [get(address, "/livez").status for _ in range(4)] == [200] * 4
    answers = [get(address, "/fast") for _ in range(8)]
    assert [(answer.body, answer.says_close) for answer in answers] == [(b"fast", True)] * 8
    assert running.wait_gone() == 0
    assert running.lasted >= 4.0
    assert len(running.hooks()) == 4


@pytest.mark.parametrize("fallback", [False, True])
def test_the_accept_queue_is_served(live: Starter, kind: str, fallback: bool, tmp_path: Path) -> None:
    """What waits in the kernel's queue when the signal comes is answered, whether its listener becomes deaf or not."""
    config = tmp_path / "fallback.conf.py"
    config.write_text(FALLBACK)
    running = serve(live, kind, workers=1, config=str(config) if fallback else CONFIG)
    address, (worker,) = address_of(running), pids(running)
    os.kill(worker, signal.SIGSTOP)
    connections = [Connection(address) for _ in range(8)]
    try:
        for connection in connections:
            connection.ask("/fast")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        os.kill(worker, signal.SIGCONT)
        for connection in connections:
            assert connection.answer().body == b"fast"
            connection.sock.close()  # gunicorn waits for that
    finally:
        for connection in connections:
            connection.sock.close()
    assert running.wait_gone() == 0
    assert not fallback or "listener closed (quiet period)" in running.log


def test_the_queue_behind_a_busy_worker_is_served(live: Starter) -> None:
    """A sync worker goes on accepting after the request that it was busy with."""
    running = serve(live, "sync", workers=1)
    address = address_of(running)
    with Connection(address) as busy, Connection(address) as one, Connection(address) as two:
        busy.ask("/gate/work")
        running.wait_event("begin live work")
        one.ask("/fast")
        two.ask("/fast")
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        running.open_gate("work")
        assert [each.answer().body for each in (busy, one, two)] == [b"passed work", b"fast", b"fast"]
    assert running.wait_gone() == 0


def test_a_unix_socket(live: Starter, kind: str, tmp_path: Path) -> None:
    """What waits on a Unix socket is answered, its path stays through the delay and is gone at the end."""
    path = str(tmp_path / "socket")
    running = serve(live, kind, workers=1, bind=f"unix:{path}", settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.5})
    (worker,) = pids(running)
    os.kill(worker, signal.SIGSTOP)
    with Connection(path) as one, Connection(path) as two:
        one.ask("/fast")
        two.ask("/fast")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        os.kill(worker, signal.SIGCONT)
        assert get(path, "/fast").body == b"fast"
        assert [one.answer().body, two.answer().body] == [b"fast", b"fast"]
    assert running.wait_gone() == 0
    assert "listener closed (unix)" in running.log
    assert not os.path.exists(path)


@pytest.mark.parametrize("keep_alive", [False, True])
def test_a_stop_under_load_loses_nothing(live: Starter, kind: str, keep_alive: bool) -> None:
    """Clients that connect and ask without pause are answered or refused, through a delay and the stop."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3})
    with load(address_of(running), keep_alive=keep_alive) as tallies:
        assert running.stop() == 0
    assert [tally.lost for tally in tallies] == [[]] * 4
    assert "listener closed (no device)" in running.log


def test_a_storm_on_a_listener_that_is_not_deaf_ends(live: Starter, kind: str, tmp_path: Path) -> None:
    """Where it cannot be made deaf clients that come without end hold it for two seconds, not for the grace period."""
    config = tmp_path / "fallback.conf.py"
    config.write_text(FALLBACK)
    running = serve(live, kind, config=str(config))
    with load(address_of(running)) as tallies:
        assert running.stop() == 0
    assert sum(len(tally.lost) for tally in tallies) <= 1  # best effort; each of the four lost one before
    assert "listener closed (quiet period)" in running.log
    assert running.told("shutdown last")[0] - running.signalled_at < 10.0  # of 25


def test_a_start_that_fails_stops_the_master(live: Starter, kind: str) -> None:
    """Workers whose start-up fails are not replaced for ever: the master leaves as it does when they cannot boot."""
    plan = {"logging": True, "hooks": {"startup": [["bad", "raise", None]]}}
    running = live.start(
        sys.executable, "-m", "gunicorn", "--no-control-socket", *KINDS[kind], "--config", CONFIG, "--workers", "2",
        "--bind", "127.0.0.1:0", "live_app:app", plan=plan, excuse="Traceback",
    )  # fmt: skip
    assert running.wait_gone() == 3
    assert "Reason: Worker failed to boot." in running.log


def test_a_task_of_a_thread_of_the_master(live: Starter) -> None:
    """With ``--preload`` the workers fail for a startup task that only the master would end, and say why."""
    running = live.start(
        sys.executable, "-m", "gunicorn", "--no-control-socket", *KINDS["gthread"], "--config", CONFIG, "--preload",
        "--bind", "127.0.0.1:0", "live_app:app", plan={"logging": True, "tasks": [["cache", "gate", "shutdown"]]},
    )  # fmt: skip
    assert running.wait_gone() == 3
    assert running.log.count("threads that were started before the fork are in no worker: task-cache;") == 1
    assert "startup task 'cache' failed" in running.log
    assert "the thread 'task-cache' that began it is not in this process" in running.log


def test_a_stop_while_workers_load(live: Starter, kind: str, tmp_path: Path) -> None:
    """What has come before any worker has loaded the application is answered, whoever gets the signal."""
    config = tmp_path / "slow.conf.py"
    config.write_text(SLOW_TO_LOAD)
    running = live.start(
        sys.executable, "-m", "gunicorn", "--no-control-socket", *KINDS[kind], "--config", str(config),
        "--bind", "127.0.0.1:0", "live_app:app", plan={"logging": True},
    )  # fmt: skip
    running.wait_event("loading")
    with Connection(address_of(running)) as connection:
        connection.ask("/fast")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        os.kill(pids(running)[0], signal.SIGTERM)
        running.open_gate("load")
        assert connection.answer().body == b"fast"
    assert running.wait_gone() == 0
    assert len(pids(running)) == 1


def test_workers_come_and_go_under_load(live: Starter, kind: str) -> None:
    """HUP, TTIN and TTOU lose no request, leave the listener alone, and run the hooks of each worker that goes once."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3})
    with load(address_of(running)) as tallies:
        running.send(signal.SIGHUP)
        running.wait_for(lambda: exited(running) == 2, "the old workers' end")
        wait_ready(running, 4)
        running.send(signal.SIGTTIN)
        wait_ready(running, 5)
        running.send(signal.SIGTTOU)
        running.wait_for(lambda: exited(running) == 3, "the end of one worker")
        running.wait_for(lambda: running.hooks().count("first") == 3, "the hooks of three workers")
        before = [tally.answered for tally in tallies]
        running.wait_for(lambda: all(t.answered > n for t, n in zip(tallies, before, strict=True)), "answers")
        assert running.stop() == 0
    assert [tally.lost for tally in tallies] == [[]] * 4
    assert (running.hooks().count("first"), running.hooks().count("last")) == (5, 5)


def test_recycled_workers_lose_nothing(live: Starter, kind: str) -> None:
    """Workers that are replaced after some requests run their hooks once, have no delay, and no request is lost."""
    running = serve(live, kind, "--max-requests", "40", settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3})
    with load(address_of(running)) as tallies:
        running.wait_for(lambda: exited(running) >= 4, "the end of some workers")
        assert running.stop() == 0
    assert [tally.lost for tally in tallies] == [[]] * 4
    assert running.hooks().count("first") == running.hooks().count("last") == exited(running)
    assert begun(running, "gunicorn ends this worker", 0.0)


def test_a_recycled_worker_answers_what_it_has(live: Starter) -> None:
    """A worker that leaves alone tells its streams at once, and is replaced meanwhile."""
    running = serve(live, "gthread", "--max-requests", "2", workers=1)
    address = address_of(running)
    with Connection(address) as stream:
        stream.ask("/until-drain")
        running.wait_event("begin until-drain")
        assert get(address, "/fast").body == b"fast"
        assert stream.answer().body.endswith(b"drained\n")
    wait_ready(running, 2)
    assert get(address, "/fast").body == b"fast"
    assert running.stop() == 0


def test_a_failing_hook_shows_in_the_exit_code(live: Starter, kind: str) -> None:
    """A hook that fails in a worker makes the master exit with 1."""
    plan = {"hooks": {"shutdown": [["bad", "raise", None], ["good", "ok", None]]}}
    running = serve(live, kind, plan=plan, excuse="Traceback")
    assert running.stop() == 1
    assert sorted(running.hooks()) == ["bad", "bad", "good", "good"]


def test_a_request_that_hangs(live: Starter, kind: str) -> None:
    """A request that does not end is abandoned within the grace period, the hooks run, and the exit code is 1."""
    running = serve(live, kind, workers=1, settings={"LIFECYCLE_GRACE_PERIOD": 2.0})
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/never")
        running.wait_event("begin live never")
        assert running.stop() == 1
    assert running.lasted < 10.0  # of the 25 that gunicorn would give it
    assert running.hooks() == ["last", "first"]
    assert "abandoned GET /gate/never" in running.log


def test_a_second_sigterm_changes_nothing(live: Starter, kind: str) -> None:
    """As under gunicorn alone a second SIGTERM neither ends nor prolongs the stop."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 1.0})
    address = address_of(running)
    running.send(signal.SIGTERM)
    wait_draining(running)
    os.kill(running.target, signal.SIGTERM)
    assert get(address, "/fast").body == b"fast"
    assert running.wait_gone() == 0
    assert len(running.hooks()) == 4
    assert running.log.count("shutdown begins") == 2


def test_sigterm_to_all_processes(live: Starter, kind: str) -> None:
    """Where a supervisor signals master and workers at once the delay is kept, and no worker is replaced."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 1.0})
    address = address_of(running)
    for worker in pids(running):
        os.kill(worker, signal.SIGTERM)
    running.send(signal.SIGTERM)
    wait_draining(running)
    assert [get(address, "/fast").body for _ in range(4)] == [b"fast"] * 4
    assert running.wait_gone() == 0
    assert running.lasted >= 1.0
    assert (len(pids(running)), len(running.hooks())) == (2, 4)


def test_one_worker_that_is_signalled(live: Starter, kind: str) -> None:
    """A worker that somebody signals drains, and is replaced."""
    running = serve(live, kind, workers=1)
    os.kill(pids(running)[0], signal.SIGTERM)
    wait_ready(running, 2)
    assert running.hooks() == ["last", "first"]
    assert running.stop() == 0


def test_sigint_stops_quickly(live: Starter, kind: str) -> None:
    """SIGINT in the delay ends it, as under gunicorn alone, and the hooks run."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 15.0})
    running.send(signal.SIGTERM)
    wait_draining(running)
    assert running.stop(signal.SIGINT) == 0
    assert running.lasted < 10.0
    assert len(running.hooks()) == 4


def test_graceful_timeout_that_is_too_short(live: Starter) -> None:
    """One warning tells what graceful_timeout has to be."""
    running = serve(live, "sync", "--graceful-timeout", "5", settings={"LIFECYCLE_SHUTDOWN_DELAY": 3.0})
    expected = (
        "gunicorn's graceful_timeout is 5 s, and a worker may need 22 s after the delay; set 'graceful_timeout' to 22,"
        " or a shorter 'LIFECYCLE_GRACE_PERIOD'."
    )
    assert running.stop() == 0
    assert running.log.count(expected) == 1


def test_the_probe_listener_of_several_workers(live: Starter, kind: str) -> None:
    """All workers answer on one probe port, also while all are busy, and none of them stops for its sake."""
    probes = ("127.0.0.1", free_port())
    running = serve(live, kind, settings={"LIFECYCLE_PROBE_PORT": probes[1], "LIFECYCLE_SHUTDOWN_DELAY": 3.0})
    running.wait_for(lambda: running.log.count("probe listener on") == 2, "both probe listeners")
    assert [get(probes, "/readyz").status for _ in range(20)] == [200] * 20
    running.send(signal.SIGTERM)
    wait_draining(running)
    assert [get(probes, "/readyz").status for _ in range(20)] == [503] * 20
    assert [get(probes, "/livez").status for _ in range(20)] == [200] * 20
    assert running.wait_gone() == 0
    assert len(pids(running)) == 2


def test_preloaded_workers_start_for_themselves(live: Starter, kind: str) -> None:
    """An application that the master has loaded, and warmed up, is started and stopped by each worker for itself."""
    plan = {"warm": True, "hooks": {"startup": [["open", "ok", None]], "shutdown": [["open", "ok", None]]}}
    running = serve(live, kind, "--preload", plan=plan, ready=False)
    wait_ready(running, 3)
    running.wait_event("startup open", 3)  # of the warm-up, and of each worker
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        wait_draining(running)
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert running.hooks() == ["open", "open", "open"]  # the master closes what the warm-up has opened


ONCE = {"hooks": {"shutdown": [["once", "ok", None], ["each", "ok", None]]}}


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_what_is_to_happen_once(live: Starter, kind: str, preload: tuple[str, ...]) -> None:
    """A function of the process group runs once, when all other workers have gone; one that is replaced runs none."""
    running = serve(live, kind, *preload, workers=3, plan=ONCE, ready=False)
    wait_ready(running, 3)
    os.kill(pids(running)[0], signal.SIGTERM)
    wait_ready(running, 4)
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        running.wait_for(lambda: running.hooks().count("each") == 3, "the hooks of the idle workers")
        assert "once" not in running.hooks()
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert running.hooks() == ["each"] * 4 + ["once"]
    assert running.log.count("on_shutdown 'once' done") == 1


def test_what_is_to_happen_once_after_a_kill(live: Starter) -> None:
    """If the worker that waits to act for all is killed, the next one that ends acts."""
    running = serve(live, "gthread", workers=2, plan=ONCE)
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        running.wait_event("shutdown each")
        busy = {int(pid) for pid in re.findall(r"Worker exiting \(pid: (\d+)", running.log)}
        os.kill(busy.pop(), signal.SIGKILL)
        running.wait_log("was sent SIGKILL")
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 1
    assert running.hooks() == ["each", "each", "once"]


@pytest.mark.parametrize(("preload", "hooks"), [((), ["each"]), (("--preload",), ["each", "once"])])
def test_what_is_to_happen_once_without_a_worker(live: Starter, preload: tuple[str, ...], hooks: list[str]) -> None:
    """If no worker is left the master acts, where it has loaded the application; else it says so and exits with 1."""
    running = serve(live, "sync", *preload, workers=1, plan={"hooks": {"shutdown": [["once", "ok", None],
                    ["each", "gate", None]]}}, ready=False)  # fmt: skip
    wait_ready(running, 1)
    running.send(signal.SIGTERM)
    running.wait_event("shutdown each")
    os.kill(pids(running)[0], signal.SIGKILL)
    assert running.wait_gone() == 1
    assert running.hooks() == hooks
    assert ("No worker was left to run" in running.log) is not bool(preload)


# -- without our hooks ------------------------------------------------------------------------------------------------


def test_without_hooks_started_requests_are_answered(live: Starter, kind: str) -> None:
    """Without a configuration a started request is answered and the hooks of its worker run once, after it."""
    running = serve(live, kind, config=None, workers=1, ready=False)
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert running.told("end live work") < running.told("shutdown last")


def test_without_hooks_readiness_turns_first(live: Starter, kind: str) -> None:
    """Without a configuration each worker refuses readiness and serves through the delay; connections stay open."""
    running = serve(live, kind, config=None, settings={"LIFECYCLE_SHUTDOWN_DELAY": 2.0}, ready=False)
    address = address_of(running)
    running.wait_for(
        lambda: get(address, "/readyz").status == 200 and running.log.count("STARTING -> READY") == 2, "both workers"
    )
    with Connection(address) as one, Connection(address) as two:
        # Where there is nothing in flight there is nobody to notice, and no delay.
        one.ask("/gate/work")
        two.ask("/gate/work")
        running.wait_event("begin live work", 2)
        running.send(signal.SIGTERM)
        wait_draining(running)
        if kind == "gthread":
            assert [get(address, "/readyz").status for _ in range(10)] == [503] * 10
            assert get(address, "/fast").body == b"fast"
        running.open_gate("work")
        assert [each.answer().body for each in (one, two)] == [b"passed work"] * 2
    assert running.wait_gone() == 0
    assert len(running.hooks()) == 4


def test_without_hooks_a_late_request_is_refused(live: Starter) -> None:
    """Without a configuration what a worker with threads gets whole after the delay is answered 503."""
    running = serve(live, "gthread", config=None, workers=1, ready=False)
    address = address_of(running)
    with Connection(address) as work, Connection(address) as head:
        head.send(b"GET /fast HTTP/1.1\r\nHo")
        work.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        running.wait_log("phase 'stop accepting' ended")
        head.send(b"st: a\r\n\r\n")
        assert head.answer().status == 503
        running.open_gate("work")
        assert work.answer().body == b"passed work"
    assert running.wait_gone() == 0


def test_without_hooks_a_recycled_worker_runs_its_hooks(live: Starter, kind: str) -> None:
    """Without a configuration a worker that is replaced after some requests has no delay, and runs its hooks once."""
    running = serve(
        live, kind, "--max-requests", "2", config=None, workers=1, settings={"LIFECYCLE_SHUTDOWN_DELAY": 9.0},
        ready=False,
    )  # fmt: skip
    address = address_of(running)
    assert [get(address, "/fast").body for _ in range(2)] == [b"fast"] * 2
    running.wait_for(lambda: len(pids(running)) == 2, "a new worker")
    assert running.hooks() == ["last", "first"]
    assert begun(running, "interpreter exit", 0.0) == 1
    assert running.stop(signal.SIGINT) == 0


def test_without_hooks_and_preloaded(live: Starter, kind: str) -> None:
    """With ``--preload`` alone a started request is answered, and its worker's shutdown begins when that exits."""
    plan = {"warm": True, "hooks": {"startup": [["open", "ok", None]], "shutdown": [["open", "ok", None]]}}
    running = serve(live, kind, "--preload", config=None, workers=1, plan=plan, ready=False)
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/work")
        running.wait_event("begin live work")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert len(running.told("startup open")) == 2  # of the warm-up, and of the worker
    assert running.hooks() == ["open", "open"]
    assert running.log.count("shutdown begins: interpreter exit") == 2


def test_without_hooks_all_workers_have_the_probe_listener(live: Starter) -> None:
    """Without a configuration, too, no worker stops because another has the probe port."""
    probes = ("127.0.0.1", free_port())
    running = serve(live, "sync", config=None, settings={"LIFECYCLE_PROBE_PORT": probes[1]}, ready=False)
    address = address_of(running)

    def both() -> bool:
        return get(address, "/readyz").status == 200 and running.log.count("probe listener on") == 2

    running.wait_for(both, "both probe listeners")
    assert [get(probes, "/readyz").status for _ in range(20)] == [200] * 20
    assert running.stop() == 0
    assert len(pids(running)) == 2


def test_without_hooks_workers_start_by_themselves(live: Starter, kind: str, preload: tuple[str, ...]) -> None:
    """Without a configuration each worker becomes ready unasked and the master does not, the line at the start says
    what holds and what to do for more, and a hook that fails does not show in the exit code.
    """
    hooks = {"startup": [["open", "ok", None]], "shutdown": [["bad", "raise", None], ["good", "ok", None]]}
    running = serve(live, kind, *preload, config=None, plan={"hooks": hooks}, excuse="Traceback", ready=False)
    wait_ready(running, 2)
    line = (
        r"server gunicorn \(found among the objects of this process\): requests that the application has started are"
        r" answered; to answer .* have 'from flask_lifecycle\.gunicorn import \*' in gunicorn\.conf\.py"
    )
    running.wait_for(lambda: len(re.findall(line, running.log)) == 2, "the lines of both workers")
    assert running.stop() == 0
    assert running.hooks("startup") == ["open"] * 2
    assert sorted(running.hooks()) == ["bad", "bad", "good", "good"]


def test_without_hooks_half_a_request(live: Starter, kind: str, preload: tuple[str, ...]) -> None:
    """Without a configuration what is half received when the signal comes is refused once the drain has begun;
    preloaded it is answered.
    """
    running = serve(live, kind, *preload, config=None, workers=1, ready=False)
    wait_ready(running, 1)
    with Connection(address_of(running)) as connection:
        connection.send(b"GET /fast HTTP/1.1\r\nHo")
        wait_until(lambda: is_accepted(connection), "the connection is accepted")
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term" if preload else "shutdown complete")
        connection.send(b"st: a\r\n\r\n")
        assert connection.answer().status == (200 if preload else 503)
    assert running.wait_gone() == 0


def test_without_hooks_a_reload(live: Starter, kind: str, preload: tuple[str, ...]) -> None:
    """Without a configuration a worker that is replaced by a reload goes through the whole stop, with its delay;
    preloaded it has none, because its signal is gunicorn's.
    """
    running = serve(live, kind, *preload, config=None, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.5}, ready=False)
    wait_ready(running, 2)
    running.send(signal.SIGHUP)
    wait_ready(running, 4)
    running.wait_for(lambda: running.log.count("shutdown complete") == 2, "the end of the old workers")
    assert begun(running, *(("interpreter exit", 0.0) if preload else ("SIGTERM", 0.5))) == 2
    assert running.stop() == 0
    assert len(running.hooks()) == 8
