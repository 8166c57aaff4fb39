"""gunicorn, with our hooks in its configuration and without: real masters, workers and signals."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ._client import Connection, Storm, free_port, get, storm
from ._process import BIG, ROOT, UNTIL_ASKED, Running, Starter, wait_until
from ._traffic import address_of, hung_request, in_flight, is_accepted

CONFIG = str(ROOT / "examples" / "gunicorn" / "gunicorn.conf.py")
FALLBACK = """
from flask_lifecycle.gunicorn import *
from flask_lifecycle._servers import listener
listener.refuse_connections = lambda sock: None
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
# A worker that is signalled when its application is there and our hook has not been called yet.
NEARLY_LOADED = """
import os, time
from flask_lifecycle import gunicorn as hooks
from flask_lifecycle.gunicorn import *
from gunicorn.app.wsgiapp import WSGIApplication
home, kill, load = os.environ["LIVE_HOME"], os.kill, WSGIApplication.load
def event(text):
    with open(f"{home}/events", "a") as events:
        events.write(f"{time.monotonic():.6f} {text}\\n")
def slow(self):
    app = load(self)
    event("loaded")
    while not os.path.exists(f"{home}/gate-load"):
        time.sleep(0.005)
    return app
def reported(pid, number):
    kill(pid, number)
    event(f"sent {int(number)}")
def post_worker_init(worker):
    hooks.post_worker_init(worker)
    event("initialized")
WSGIApplication.load, os.kill = slow, reported
"""
KINDS = {
    "sync": ("--worker-class", "sync", "--threads", "1"),
    "gthread": ("--worker-class", "gthread"),
    "gevent": ("--worker-class", "gevent"),
}


@pytest.fixture(params=["sync", "gthread"])
def kind(request: pytest.FixtureRequest) -> str:
    """Name the class of workers; a test that asks for it runs on each."""
    name: str = request.param
    return name


each_kind = pytest.mark.parametrize("kind", KINDS)  # instead of those two
PRELOAD = ("--preload",)
each_loading = pytest.mark.parametrize("preload", [(), PRELOAD], ids=["worker", "preload"])


def serve(
    live: Starter,
    kind: str,
    *options: str,
    config: str | None = CONFIG,
    workers: int = 2,
    threads: int = 4,
    bind: str = "127.0.0.1:0",
    app: str = "live_app:app",
    plan: dict[str, Any] | None = None,
    ready: bool | None = True,
    **more: Any,
) -> Running:
    """Start gunicorn and wait until all workers are ready; with ``ready=False`` loaded, with ``None`` nothing."""
    running = live.start(
        sys.executable, "-m", "gunicorn", "--no-control-socket", *KINDS[kind],
        *(("--config", config) if config else ()),
        *(("--threads", str(threads)) if kind == "gthread" else ()),
        "--workers", str(workers), "--bind", bind, *options,
        app,
        plan={"logging": True, **(plan or {})}, **more,
    )  # fmt: skip
    if ready:
        wait_ready(running, workers)
    elif ready is False:
        running.wait_for(lambda: len(pids(running)) == workers, "all workers")
        running.wait_event("ready live", 1 if "--preload" in options else workers)
    return running


def configuration(live: Starter, text: str) -> str:
    """Write another configuration than the example's."""
    path = live.home / "gunicorn.conf.py"
    path.write_text(text)
    return str(path)


def wait_ready(running: Running, times: int) -> None:
    """Wait until so many workers, of all there were, have become ready."""
    running.wait_for(lambda: running.log.count("STARTING -> READY") >= times, f"{times} ready workers")


def wait_draining(running: Running, times: int = 2) -> None:
    """Wait until so many workers have announced their shutdown."""
    running.wait_for(lambda: running.log.count("phase 'announce' ended") >= times, f"{times} draining workers")


def pids(running: Running) -> list[int]:
    """The workers that were started so far, in their order."""
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", running.log)]


def exited(running: Running) -> int:
    """How many workers have left."""
    return running.log.count("Worker exiting (pid")


@contextlib.contextmanager
def standing_still(running: Running, worker: int) -> Iterator[None]:
    """Let a worker not run while clients come in here, nor until gunicorn has got SIGTERM."""
    os.kill(worker, signal.SIGSTOP)
    yield
    running.send(signal.SIGTERM)
    running.wait_log("Handling signal: term")
    os.kill(worker, signal.SIGCONT)


def begun(running: Running, reason: str, delay: float) -> int:
    """How many shutdowns have begun for this reason, with this delay."""
    # What is left of the grace period is less than all of it where the machine is busy.
    return len(re.findall(rf"shutdown begins: {reason} \(grace period [\d.]+ s, delay {delay:.1f} s\)", running.log))


def load(running: Running, *, keep_alive: bool = False) -> Storm:
    """Have four clients ask without pause until they are refused."""
    return storm(address_of(running), running.gone, clients=4, keep_alive=keep_alive)


@pytest.mark.parametrize(("kind", "preload"), [("sync", ()), ("gthread", PRELOAD), ("gevent", ())])
def test_what_is_under_way_is_answered(live: Starter, kind: str, preload: tuple[str, ...]) -> None:
    """What runs, streams, is half received or read slowly is answered; then each worker runs its hooks, once."""
    workers = 7 if kind == "sync" else 1  # one for each connection
    running = serve(live, kind, *preload, workers=workers, threads=8)
    address = address_of(running)
    with (
        Connection(address) as work, Connection(address) as stream, Connection(address) as head,
        Connection(address) as body, Connection(address, slow=True) as slow, Connection(address) as kept,
    ):  # fmt: skip
        work.ask("/gate/work")
        slow.ask("/gated-big/work")
        stream.ask("/until-drain")
        kept.ask("/stream?gate=work")
        kept.ask("/fast")  # now, because an idle connection may be hung up
        body.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf-")
        for begins, times in {"begin live work": 2, "begin until-drain": 1, "begin echo": 1, "begin stream": 1}.items():
            running.wait_event(begins, times)
        head.send(b"GET /fast HTTP/1.1\r\nHo")
        wait_until(lambda: is_accepted(head), "the connection is accepted")
        running.send(signal.SIGTERM)
        wait_draining(running, workers)
        head.send(b"st: a\r\n\r\n")
        body.send(b"other")
        running.open_gate("work")
        assert (head.answer().body, body.answer().body) == (b"fast", b"10 bytes")
        answer = work.answer()
        assert (answer.body, answer.says_close) == (b"passed work", True)
        assert stream.answer().body.endswith(b"drained\n")
        assert slow.answer().body == BIG
        if not kept.answer().says_close:  # its head was sent before the stop, so the next request is answered
            assert kept.answer().says_close
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first"] * workers + ["last"] * workers
    if workers == 1:
        assert max(running.told("end live work")) < running.told("shutdown last")[0]


@pytest.mark.parametrize(
    ("kind", "preload", "to_all"), [("sync", PRELOAD, False), ("gthread", (), True), ("gevent", PRELOAD, False)]
)
def test_all_workers_leave_together(live: Starter, kind: str, preload: tuple[str, ...], to_all: bool) -> None:
    """In the delay workers refuse readiness, serve and close connections; a second SIGTERM changes nothing."""
    probes = ("127.0.0.1", free_port())
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 0.3, "LIFECYCLE_PROBE_PORT": probes[1]}
    running = serve(live, kind, *preload, settings=settings, plan=UNTIL_ASKED)
    address = address_of(running)
    running.wait_for(lambda: running.log.count("probe listener on") == 2, "both probe listeners")
    assert [get(where, "/readyz").status for where in (address, probes) for _ in range(8)] == [200] * 16
    for worker in pids(running) if to_all else ():
        os.kill(worker, signal.SIGTERM)
    running.send(signal.SIGTERM)
    wait_draining(running)
    running.send(signal.SIGTERM)
    assert [get(where, "/readyz").status for where in (address, probes) for _ in range(8)] == [503] * 16
    assert [get(where, "/livez").status for where in (address, probes) for _ in range(4)] == [200] * 8
    answer = get(address, "/fast")
    assert (answer.body, answer.says_close) == (b"fast", True)
    running.open_gate("asked")
    assert running.wait_gone() == 0
    assert len(pids(running)) == running.log.count("shutdown begins") == 2
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]


@pytest.mark.parametrize(("kind", "fallback"), [("sync", False), ("gthread", True), ("gevent", False)])
def test_the_accept_queue_is_served(live: Starter, kind: str, fallback: bool) -> None:
    """What waits in the kernel's queue when the signal comes is answered, whether its listener becomes deaf or not."""
    running = serve(live, kind, workers=1, config=configuration(live, FALLBACK) if fallback else CONFIG)
    address, (worker,) = address_of(running), pids(running)
    with standing_still(running, worker):
        connections = [Connection(address) for _ in range(8)]
        for connection in connections:
            connection.ask("/fast")
    try:
        for connection in connections:
            assert connection.answer().body == b"fast"
            connection.sock.close()  # gunicorn waits for that
    finally:
        for connection in connections:
            connection.sock.close()
    assert running.wait_gone() == 0
    assert not fallback or "listener closed (quiet period)" in running.log


def test_waiting_connections_hold_no_stop(live: Starter, kind: str) -> None:
    """Silent connections, and those kept after an answer, are hung up at the linger, and all at once."""
    settings = {"LIFECYCLE_GRACE_PERIOD": 100.0, "LIFECYCLE_KEEPALIVE_LINGER": 1.0}
    running = serve(live, kind, "--keep-alive", "75", workers=1, settings=settings)
    connections = [Connection(address_of(running)) for _ in range(100)]  # in turn, four threads would take 25 s
    try:
        connections[0].ask("/fast")
        assert connections[0].answer().body == b"fast"
        assert running.stop() == 0
        assert [connection.receive() for connection in connections] == [b""] * 100
    finally:
        for connection in connections:
            connection.sock.close()


def test_a_request_that_comes_over_a_waiting_connection(live: Starter, kind: str) -> None:
    """A request whose bytes are there before its connection is hung up is answered."""
    settings = {"LIFECYCLE_KEEPALIVE_LINGER": 0.0}
    running = serve(live, kind, "--keep-alive", "75", workers=1, settings=settings)
    (worker,) = pids(running)
    with Connection(address_of(running)) as silent, Connection(address_of(running)) as kept:
        if kind == "gthread":  # a sync worker keeps none
            kept.ask("/fast")
            assert kept.answer().body == b"fast"
        wait_until(lambda: is_accepted(silent), "the connection is accepted")
        with standing_still(running, worker):
            silent.ask("/fast")
            kept.ask("/fast")
        assert [silent.answer().body, kept.answer().body] == [b"fast"] * 2
    assert running.wait_gone() == 0


def test_a_unix_socket(live: Starter, kind: str, tmp_path: Path) -> None:
    """What waits on a Unix socket is answered, its path stays through the delay and is gone at the end."""
    path = str(tmp_path / "socket")
    running = serve(live, kind, workers=1, bind=f"unix:{path}", plan=UNTIL_ASKED)
    (worker,) = pids(running)
    with standing_still(running, worker):
        waiting = [Connection(path) for _ in range(2)]
        for connection in waiting:
            connection.ask("/fast")
    for connection in waiting:
        with connection:  # gunicorn waits until it is closed
            assert connection.answer().body == b"fast"
    assert get(path, "/fast").body == b"fast"
    running.open_gate("asked")
    assert running.wait_gone() == 0
    assert "listener closed (unix)" in running.log
    assert not os.path.exists(path)


def test_a_storm_on_a_listener_that_is_not_deaf_ends(live: Starter, kind: str) -> None:
    """Where it cannot be made deaf clients that come without end hold it for two seconds, not for the grace period."""
    # A client that a worker is just answering comes again at the close, and may be reset: one for each worker. Each of
    # the four lost a request before.
    config, settings = configuration(live, FALLBACK), {"LIFECYCLE_GRACE_PERIOD": 60.0}
    running = serve(live, kind, workers=1, config=config, settings=settings)
    with load(running) as clients:
        assert running.stop() == 0
    assert len(clients.lost) <= 1
    assert "listener closed (quiet period)" in running.log


def test_a_stop_while_workers_load(live: Starter, kind: str) -> None:
    """What has come before any worker has loaded the application is answered, whoever gets the signal."""
    running = serve(live, kind, workers=1, config=configuration(live, SLOW_TO_LOAD), ready=None)
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


def test_a_stop_while_a_worker_has_nearly_loaded(live: Starter, kind: str) -> None:
    """A worker that is signalled between ``init_app`` and our hook, as one may that replaces another, stops at once."""
    # The hook that waits holds both interleavings that post_fork() describes: the shutdown, if it has begun while the
    # application was loaded, is not over when our hook takes the worker over.
    running = serve(
        live, kind, workers=1, config=configuration(live, NEARLY_LOADED), ready=None,
        plan={"hooks": {"shutdown": [["slow", "gate", None]]}},
        settings={"LIFECYCLE_GRACE_PERIOD": 100.0},  # for all of which, or half, the worker stays that missed it
    )  # fmt: skip
    running.wait_event("loaded")
    running.send(signal.SIGTERM)
    running.wait_event(f"sent {int(signal.SIGTERM)}")
    running.open_gate("load")
    running.wait_event("initialized")
    running.open_gate("slow")
    assert running.wait_gone() == 0
    assert running.hooks() == ["slow"]


def test_workers_come_and_go_under_load(live: Starter, kind: str) -> None:
    """HUP, TTIN, TTOU and a stop lose no request; only the stop closes the listener; hooks run once."""
    running = serve(live, kind, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3, "LIFECYCLE_KEEPALIVE_LINGER": 10.0})
    with load(running) as clients:
        running.send(signal.SIGHUP)
        running.wait_for(lambda: exited(running) == 2, "the old workers' end")
        wait_ready(running, 4)
        running.send(signal.SIGTTIN)
        wait_ready(running, 5)
        running.send(signal.SIGTTOU)
        running.wait_for(lambda: exited(running) == 3, "the end of one worker")
        running.wait_for(lambda: running.hooks().count("first") == 3, "the hooks of three workers")
        assert clients.wait_answers(1)
        assert running.stop() == 0
    assert clients.lost == []
    assert (running.hooks().count("first"), running.hooks().count("last")) == (5, 5)
    assert "listener closed (device binding)" in running.log


@each_kind
def test_recycled_workers_lose_nothing(live: Starter, kind: str) -> None:
    """Workers that are replaced after some requests run their hooks once, have no delay, and no request is lost."""
    # A client that a busy machine holds up for longer than the linger before it asks finds its connection closed.
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 0.3, "LIFECYCLE_KEEPALIVE_LINGER": 10.0}
    running = serve(live, kind, "--max-requests", "40", settings=settings)
    with load(running) as clients:
        running.wait_for(lambda: exited(running) >= 2, "the end of both workers")
        assert running.stop() == 0
    assert clients.lost == []
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


def test_a_request_that_hangs(live: Starter) -> None:
    """A request that does not end is abandoned within the grace period, the hooks run, and the exit code is 1."""
    running = serve(live, "sync", workers=1, settings={"LIFECYCLE_GRACE_PERIOD": 1.0})
    with hung_request(running, address=address_of(running)):
        assert running.stop() == 1
    assert running.hooks() == ["last", "first"]
    assert "abandoned GET /gate/never" in running.log


def test_sigint_stops_quickly(live: Starter) -> None:
    """SIGINT in the delay ends it, as under gunicorn alone, and the hooks run."""
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 60.0, "LIFECYCLE_GRACE_PERIOD": 90.0}
    running = serve(live, "gthread", settings=settings)
    running.send(signal.SIGTERM)
    wait_draining(running)
    assert running.stop(signal.SIGINT) == 0
    assert len(running.hooks()) == 4


@pytest.mark.parametrize(("kind", "terminal"), [("sync", False), ("gthread", True)])
def test_sigint_answers_what_is_in_flight(live: Starter, kind: str, terminal: bool) -> None:
    """SIGINT, to the master or as a terminal sends it to all processes, lets a request that runs end; the hooks run."""
    running = serve(live, kind, workers=1, settings={"LIFECYCLE_SHUTDOWN_DELAY": 15.0})
    with in_flight(running, address=address_of(running), gate="work"):
        for worker in pids(running) if terminal else ():
            os.kill(worker, signal.SIGINT)
        running.send(signal.SIGINT)
        wait_draining(running, 1)
        running.wait_log("Handling signal: int")
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]


def test_clients_that_do_not_close_hold_up_no_others(live: Starter) -> None:
    """A client that keeps its side open after the last answer does not hold the loop of a worker with threads."""
    settings = {"LIFECYCLE_KEEPALIVE_LINGER": 30.0, "LIFECYCLE_GRACE_PERIOD": 60.0}
    running = serve(live, "gthread", "--keep-alive", "75", workers=1, settings=settings)
    address = address_of(running)
    with contextlib.ExitStack() as stack:
        # Few, because gunicorn itself closes a kept connection two seconds after the signal.
        connections = [stack.enter_context(Connection(address)) for _ in range(60)]
        assert not any(connection.get("/fast").says_close for connection in connections)
        running.send(signal.SIGTERM)
        wait_draining(running, 1)
        for connection in connections:
            connection.ask("/fast")
        assert all(connection.answer().body == b"fast" for connection in connections)
        assert running.wait_gone() == 0, running.log_tail


ONCE = {"hooks": {"shutdown": [["once", "ok", None], ["each", "ok", None]]}}


@each_loading
def test_what_is_to_happen_once(live: Starter, preload: tuple[str, ...]) -> None:
    """A function of the process group runs once, when all other workers have gone; one that is replaced runs none."""
    running = serve(live, "gthread", *preload, workers=3, plan=ONCE, ready=False)
    wait_ready(running, 3)
    os.kill(pids(running)[0], signal.SIGTERM)
    wait_ready(running, 4)
    with in_flight(running, address=address_of(running), gate="work"):
        running.send(signal.SIGTERM)
        running.wait_for(lambda: running.hooks().count("each") == 3, "the hooks of the idle workers")
        assert "once" not in running.hooks()
    assert running.wait_gone() == 0
    assert running.hooks() == ["each"] * 4 + ["once"]
    assert running.log.count("on_shutdown 'once' done") == 1


def test_what_is_to_happen_once_after_a_kill(live: Starter) -> None:
    """If the worker that waits to act for all is killed, the next one that ends acts."""
    running = serve(live, "gthread", workers=2, plan=ONCE)
    with in_flight(running, address=address_of(running), gate="work"):
        running.send(signal.SIGTERM)
        running.wait_event("shutdown each")
        busy = {int(pid) for pid in re.findall(r"Worker exiting \(pid: (\d+)", running.log)}
        os.kill(busy.pop(), signal.SIGKILL)
        running.wait_log("was sent SIGKILL")
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


# Where it lives today, and where it was before.
UVICORN = "uvicorn_worker" if importlib.util.find_spec("uvicorn_worker") else "uvicorn.workers"


@pytest.mark.parametrize(
    ("worker_class", "config"), [(f"{UVICORN}.UvicornWorker", CONFIG), ("asgi", None)], ids=["uvicorn", "asgi"]
)
def test_asgi_workers(live: Starter, worker_class: str, config: str | None) -> None:
    """Workers that serve ASGI are served as with ``init_app`` alone, and the log does not advise the hooks."""
    # A notice of uvicorn's, on which the tests' own switches would make each worker fail.
    running = live.start(
        sys.executable, "-W", "ignore::DeprecationWarning", "-m", "gunicorn", "--no-control-socket", "-k", worker_class,
        *(("--config", config) if config else ()), "--workers", "2", "--bind", "127.0.0.1:0", "asgi_app:app",
        plan={"logging": True}, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3},
    )  # fmt: skip
    wait_ready(running, 2)
    running.send(signal.SIGHUP)
    wait_ready(running, 4)
    running.wait_for(lambda: exited(running) == 2, "the old workers' end")
    address = address_of(running)
    assert [get(address, "/fast").body for _ in range(8)] == [b"fast"] * 8
    with in_flight(running, address=address, gate="work"):
        running.send(signal.SIGTERM)
        wait_draining(running, 4)
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first"] * 4 + ["last"] * 4
    assert "flask_lifecycle.gunicorn" not in running.log
    assert ("does not know workers of" in running.log) is (config is not None)


def test_without_hooks_readiness_turns_first(live: Starter) -> None:
    """Without a configuration each worker refuses readiness, on the probe port too, and serves through the delay."""
    probes = ("127.0.0.1", free_port())
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 0.3, "LIFECYCLE_PROBE_PORT": probes[1]}
    running = serve(live, "gthread", config=None, settings=settings, plan=UNTIL_ASKED, ready=False)
    address = address_of(running)
    running.wait_for(
        lambda: get(address, "/readyz").status == 200 and running.log.count("STARTING -> READY") == 2, "both workers"
    )
    running.wait_for(lambda: running.log.count("probe listener on") == 2, "both probe listeners")
    assert [get(probes, "/readyz").status for _ in range(20)] == [200] * 20
    with Connection(address) as one, Connection(address) as two:
        # Where there is nothing in flight there is nobody to notice, and no delay.
        one.ask("/gate/work")
        two.ask("/gate/work")
        running.wait_event("begin live work", 2)
        running.send(signal.SIGTERM)
        wait_draining(running)
        assert [get(probes, "/readyz").status for _ in range(10)] == [503] * 10
        assert [get(address, "/readyz").status for _ in range(10)] == [503] * 10
        assert get(address, "/fast").body == b"fast"
        running.open_gate("asked")
        running.open_gate("work")
        assert [each.answer().body for each in (one, two)] == [b"passed work"] * 2
    assert running.wait_gone() == 0
    assert len(running.hooks()) == 4


def test_without_hooks_a_late_request_is_refused(live: Starter) -> None:
    """Without a configuration what a worker with threads gets whole after the delay is answered 503."""
    running = serve(live, "gthread", config=None, workers=1, ready=False, plan={"logging": True})
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


def test_without_hooks_a_recycled_worker_runs_its_hooks(live: Starter) -> None:
    """Without a configuration a worker that is replaced after some requests has no delay, and runs its hooks once."""
    running = serve(
        live, "sync", "--max-requests", "2", config=None, workers=1, settings={"LIFECYCLE_SHUTDOWN_DELAY": 9.0},
        ready=False,
    )  # fmt: skip
    address = address_of(running)
    assert [get(address, "/fast").body for _ in range(2)] == [b"fast"] * 2
    running.wait_for(lambda: len(pids(running)) == 2, "a new worker")
    assert running.hooks() == ["last", "first"]
    assert begun(running, "interpreter exit", 0.0) == 1
    wait_ready(running, 2)  # before it has its own handlers, a worker loses gunicorn's signal
    assert running.stop(signal.SIGINT) == 0


def test_without_hooks_and_preloaded(live: Starter) -> None:
    """With ``--preload`` alone a started request is answered, and its worker's shutdown begins when that exits."""
    plan = {"warm": True, "hooks": {"startup": [["open", "ok", None]], "shutdown": [["open", "ok", None]]}}
    running = serve(live, "gthread", "--preload", config=None, workers=1, plan=plan, ready=False)
    with in_flight(running, address=address_of(running), gate="work"):
        running.send(signal.SIGTERM)
        running.wait_log("Handling signal: term")
    assert running.wait_gone() == 0
    assert len(running.told("startup open")) == 2  # of the warm-up, and of the worker
    assert running.hooks() == ["open", "open"]
    assert running.log.count("shutdown begins: interpreter exit") == 2


@each_loading
def test_without_hooks_workers_start_by_themselves(live: Starter, preload: tuple[str, ...]) -> None:
    """Without a configuration each worker becomes ready unasked, and the line at the start says what holds."""
    hooks = {"startup": [["open", "ok", None]], "shutdown": [["bad", "raise", None], ["good", "ok", None]]}
    running = serve(live, "gthread", *preload, config=None, plan={"hooks": hooks}, excuse="Traceback", ready=False)
    wait_ready(running, 2)
    line = (
        r"server gunicorn \(detected\): a shutdown answers requests that the application has started;"
        r" to answer .* put 'from flask_lifecycle\.gunicorn import \*' in gunicorn\.conf\.py"
    )
    running.wait_for(lambda: len(re.findall(line, running.log)) == 2, "the lines of both workers")
    assert running.stop() == 0
    assert running.hooks("startup") == ["open"] * 2
    assert sorted(running.hooks()) == ["bad", "bad", "good", "good"]


@each_loading
def test_without_hooks_a_reload(live: Starter, preload: tuple[str, ...]) -> None:
    """Without a configuration a replaced worker runs the whole shutdown; preloaded, it has no delay."""
    running = serve(live, "gthread", *preload, config=None, settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.3}, ready=False)
    wait_ready(running, 2)
    running.send(signal.SIGHUP)
    wait_ready(running, 4)
    running.wait_for(lambda: running.log.count("shutdown complete") == 2, "the end of the old workers")
    assert begun(running, *(("interpreter exit", 0.0) if preload else ("SIGTERM", 0.3))) == 2
    assert running.stop() == 0
    assert len(running.hooks()) == 8
