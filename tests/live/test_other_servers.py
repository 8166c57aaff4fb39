"""Servers that have a way of their own to be found and stopped: each at the level of the promise that is claimed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ._client import Connection, answers, free_port, get
from ._process import ROOT, Running, Starter, children_of
from ._traffic import Kind, Traffic, address_of, hung_request, wait_guarantee
from .test_probes import PROBE_LISTENER, probe_address

WITHOUT_A2WSGI = "import sys; sys.modules['a2wsgi'] = None; import uvicorn; uvicorn.main()"
UVICORN = ("--interface", "wsgi", "--host", "127.0.0.1", "--port", "0", "--timeout-keep-alive", "60", "live_app:app")
TOKEN = "a token of sixteen and more"
# Longer than a client takes to ask over a connection that has been idle; hypercorn waits for all of it.
LINGER = {"LIFECYCLE_KEEPALIVE_LINGER": 7.0}


def drain(live: Starter, port: int) -> Running:
    """Have ``flask lifecycle drain --wait`` ask a probe listener, as a preStop hook does."""
    command = (sys.executable, "-m", "flask", "--app", "live_app", "lifecycle", "drain", "--wait")
    return live.start(*command, f"http://127.0.0.1:{port}", env={"FLASK_LIFECYCLE_TOKEN": TOKEN})


def start(live: Starter, *command: str, plan: dict[str, Any] | None = None, **more: Any) -> Running:
    """Start a server, and wait until it is ready, which it is when it has been asked."""
    more.setdefault("settings", LINGER)
    running = live.start(*command, plan={"logging": True, **(plan or {})}, **more)
    address = address_of(running)
    running.wait_for(lambda: answers(address, "/readyz"), "readiness")
    return running


def documented(server: str, port: int) -> list[str]:
    """The command of a server's section in docs/servers.md, with this port, for the live app."""
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {server}\n", 1)[1]
    words = section.split("```sh\n", 1)[1].split("\n", 1)[0].split("#")[0].split()
    command = [word.replace("app:app", "live_app:app").replace("0.0.0.0", "127.0.0.1") for word in words]
    return [sys.executable, "-m", *(word.replace("8000", str(port)) for word in command)]


ASYNC = Kind(slots=4, pipelines=False, chunks=False)
# The options beside those of docs/servers.md, what the server does with connections, and what each worker logs when it
# has stopped accepting.
WORKERS = {
    "uvicorn": (("--timeout-keep-alive", "60"), Kind(slots=10, pipelines=False, chunks=False), "listener closed"),
    "hypercorn": (("--graceful-timeout", "1", "--keep-alive", "60"), ASYNC, "listener closed"),
    "granian": ((), Kind(slots=4, keeps=False, pipelines=False), "'stop accepting' ended"),
}


@pytest.mark.parametrize("server", WORKERS)
def test_workers_answer_what_they_have(live: Starter, stack: contextlib.ExitStack, server: str) -> None:
    """Each worker answers what it has accepted, then runs its hooks once; the first to end disturbs no other."""
    options, kind, stopped = WORKERS[server]
    settings = {**LINGER, "LIFECYCLE_SHUTDOWN_DELAY": 0.5}
    running = start(live, *documented(server, free_port()), "--workers", "2", *options, settings=settings)
    running.wait_for(lambda: (get(address_of(running), "/fast"), running.log.count("-> READY") == 2)[1], "both workers")
    wait_guarantee(running, server, "accepted", workers=2)
    traffic = Traffic(running, stack, kind)
    traffic.hold()
    running.send(signal.SIGTERM)
    running.wait_for(lambda: running.log.count("-> DRAINING") == 2, "both drains")
    running.wait_for(lambda: running.log.count(stopped) == 2, "the end of both delays")
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    stack.close()
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]
    assert running.log.count(": clean, exit 0") == 2


# The command, and the name by which the log calls the server.
ASGI = {
    "uvicorn-native": (("-c", WITHOUT_A2WSGI, *UVICORN), "uvicorn"),
    "uvicorn": (("-m", "uvicorn", "--host", "127.0.0.1", "--port", "0", "asgiref_app:asgi_app"), "uvicorn"),
    "hypercorn": (("-m", "hypercorn", "--workers", "0", "--bind", "127.0.0.1:0", "asgiref_app:asgi_app"), "hypercorn"),
}


@pytest.mark.parametrize("server", ASGI)
def test_requests_whose_body_is_not_closed_end(live: Starter, server: str) -> None:
    """An adapter to WSGI that never closes a body leaves nothing in flight; what runs at the stop is answered whole."""
    command, name = ASGI[server]
    running = start(live, sys.executable, *command, settings={})
    wait_guarantee(running, name, "full")
    address = address_of(running)
    for path in ("/fast", "/stream", "/file", "/fast"):
        assert get(address, path).status == 200
    assert get(address, "/in-flight").body == b"1"
    with Connection(address) as connection:
        connection.ask("/stream?gate=work")
        running.wait_event("begin stream")
        running.begin_stop()
        running.wait_log("listener closed")
        running.open_gate("work")
        assert len(connection.answer().body) == 12 * 9
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert running.told("end stream")[-1] < running.told("shutdown last")[0]


def uwsgi(live: Starter, *options: str, ini: bool = True, **more: Any) -> Running:
    """Start uWSGI with the configuration of the example, or without one."""
    command = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket", "127.0.0.1:0", "--module", "live_app:app"]
    if ini:
        command += ["--ini", str(ROOT / "examples" / "uwsgi" / "uwsgi.ini"), "--processes", "1"]
    return start(live, *command, *options, **more)


def test_uwsgi_answers_what_it_runs(live: Starter, stack: contextlib.ExitStack) -> None:
    """With the hook of the example a SIGTERM lets requests that run end, and the hooks run after them."""
    # Longer than this test waits: there is no delay where nobody accepts any more.
    running = uwsgi(live, settings={"LIFECYCLE_SHUTDOWN_DELAY": 22.0, "LIFECYCLE_GRACE_PERIOD": 30.0})
    wait_guarantee(running, "uwsgi", "started")
    traffic = Traffic(running, stack, Kind(slots=4, keeps=False, pipelines=False, slow_readers=False, chunks=False))
    running.send(signal.SIGTERM)
    running.wait_log("graceful shutdown triggered")
    running.open_gate("work")
    traffic.check_started()
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert max(running.told("end live work")) < running.told("shutdown last")[0]
    assert "is not configured" not in running.log
    assert "set it to" not in running.log


def test_uwsgi_that_is_drained_loses_nothing(live: Starter, stack: contextlib.ExitStack) -> None:
    """Told to drain, it answers what it has and what waits in the kernel, refuses, and stays until SIGTERM."""
    port = free_port()
    settings = {"LIFECYCLE_PROBE_PORT": port, "LIFECYCLE_TOKEN": TOKEN, "LIFECYCLE_SHUTDOWN_DELAY": 0.5}
    running = uwsgi(live, settings=settings)
    traffic = Traffic(running, stack, Kind(slots=4, keeps=False, pipelines=False, chunks=False))
    traffic.hold()  # in the kernel: there is no thread for them
    asked = drain(live, port)
    running.wait_log("-> DRAINING")
    assert get(("127.0.0.1", port), "/readyz").status == 503
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert asked.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert get(traffic.address, "/fast").status == 503
    assert running.stop() == 0
    assert running.hooks() == ["last", "first"]
    assert running.log.count("spawned uWSGI worker") == 1


def test_uwsgis_workers_share_the_probe_listener(live: Starter) -> None:
    """Each worker has a listener of its own on the one port, and a file drains them all."""
    port = free_port()
    running = uwsgi(live, "--processes", "2", settings={"LIFECYCLE_PROBE_PORT": port}, control_dir=True)
    address = address_of(running)
    running.wait_for(lambda: (get(address, "/fast"), running.log.count("-> READY") == 2)[1], "both workers")
    listening = f"probe listener on http://127.0.0.1:{port}"
    running.wait_for(lambda: running.log.count(listening) == 2, "both probe listeners")
    (running.home / "control" / "drain").touch()
    running.wait_for(lambda: running.log.count("shutdown complete") == 2, "the end of both drains")
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]
    assert running.stop() == 0
    assert len(running.hooks()) == 4


def test_uwsgi_is_told_what_it_lacks(live: Starter) -> None:
    """A configuration under which a stop would lose requests is warned of once, with what to set."""
    running = uwsgi(live, "--enable-threads", "--master", "--worker-reload-mercy", "5", ini=False)
    running.wait_log(
        "uWSGI is not configured to finish running requests during a shutdown; set 'lazy-apps = true',"
        " 'hook-master-start = unix_signal:15 gracefully_kill_them_all'.\n"
    )
    running.wait_log(r"uWSGI's 'worker-reload-mercy' is 5 s, but a shutdown may take 25 s; set it to 25, or a shorter")
    assert len(os.listdir(f"/proc/{running.target}/task")) == 1  # a thread of the master could stop a new worker
    assert running.stop(signal.SIGINT) == 0


def test_granian_hears_what_another_thread_has_taken(live: Starter) -> None:
    """A SIGTERM that came while a worker was frozen is handled; a shorter time limit of granian is warned of."""
    running = start(live, *documented("granian", free_port()), "--workers-kill-timeout", "5")
    wait_guarantee(running, "granian", "accepted")
    running.wait_log("granian's 'workers-kill-timeout' is 5 s, but a shutdown may take 25 s; set it to 25, or")
    # The child that keeps multiprocessing's resources ignores SIGTERM.
    (worker,) = [pid for pid in children_of(running.target) if has_signal(pid, "SigCgt")]
    os.kill(worker, signal.SIGSTOP)
    tasks = Path(f"/proc/{worker}/task")
    running.wait_for(lambda: all("T (" in (task / "status").read_text() for task in tasks.iterdir()), "a still worker")
    running.send(signal.SIGTERM)
    running.wait_for(lambda: has_signal(worker, "ShdPnd"), "the worker's signal")
    os.kill(worker, signal.SIGCONT)
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]


def has_signal(pid: int, mask: str) -> bool:
    """Whether SIGTERM is in one of the masks that the kernel tells of a process."""
    line = re.search(rf"^{mask}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return line is not None and bool(int(line[1], 16) & 1 << signal.SIGTERM - 1)


LOGGING = {
    "werkzeug": ("-m", "flask", "--app", "live_app.py", "run", "--no-reload", "-p", "0"),
    "uvicorn": ("-m", "uvicorn", *UVICORN),
    "hypercorn": ("-m", "hypercorn", "--access-logfile", "-", "--bind", "127.0.0.1:0", "wsgi:live_app:app"),
    "granian": ("-m", "granian", "--interface", "wsgi", "--access-log", "--port", "{port}", "live_app:app"),
    "pywsgi": ("-m", "gevent.monkey", "serve_elsewhere.py", "main", "gevent", "{port}", "127.0.0.1", "default"),
}


@pytest.mark.parametrize(("server", "wished"), [*((server, False) for server in LOGGING), ("uvicorn", True)])
def test_probes_stay_out_of_access_logs(live: Starter, server: str, wished: bool) -> None:
    """The access log of each server names work, and probes only if that is wished."""
    port = free_port()
    command = [word.format(port=port) for word in LOGGING[server]]
    settings = {"LIFECYCLE_LOG_PROBES": wished}
    running = live.start(sys.executable, *command, plan={"logging": True}, settings=settings)
    address = ("127.0.0.1", port) if "{port}" in LOGGING[server] else address_of(running)
    running.wait_log(r"server \w+ \(")  # from here on pywsgi's handlers are tracked
    running.wait_log("STARTING -> READY")
    for path in ("/livez", "/readyz?verbose=1", "/fast?to=/livez"):
        assert get(address, path).status == 200
    running.wait_log(r'"GET /fast\S* HTTP/1.1"|"GET /fast HTTP/1.1|GET /fast 1.1')
    assert bool(re.search(r"GET /(livez|readyz)", running.log)) == wished
    assert running.stop() == 0


def test_no_thread_of_cheroot_is_left(live: Starter) -> None:
    """A stop ends the threads of cheroot, so none is warned of."""
    running = live.serve("cheroot", threads=20)
    assert get(running.address, "/fast").body == b"fast"
    assert running.stop() == 0
    assert "threads still run" not in running.log


def test_clients_that_do_not_close_hold_no_worker(live: Starter) -> None:
    """On cheroot a client that keeps its side open after the last answer holds no worker that others wait for."""
    settings = {"LIFECYCLE_KEEPALIVE_LINGER": 15.0, "LIFECYCLE_GRACE_PERIOD": 60.0}
    running = live.serve("cheroot", "-o", "keep_alive_conn_limit=1000", threads=2, settings=settings)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(running.address)) for _ in range(40)]
        assert not any(connection.get("/fast").says_close for connection in connections)
        running.begin_stop()
        for connection in connections:
            connection.ask("/fast")
        assert all(connection.answer().body == b"fast" for connection in connections)
    assert running.wait_gone() == 0, running.log_tail


def test_gevent_that_is_not_patched(live: Starter) -> None:
    """Without patching our threads are real: the probe listener answers beside a request that blocks all."""
    command = ["-m", "flask", "--app", "live_app.py", "lifecycle", "run", "--server", "gevent", "-p", "0"]
    settings = {**PROBE_LISTENER, "LIFECYCLE_GRACE_PERIOD": 2.0}
    running = live.start(sys.executable, *command, settings=settings)
    running.wait_log("STARTING -> READY")
    (address,) = (address for address in running.addresses if address != probe_address(running))
    with hung_request(running, address=address):
        assert get(probe_address(running), "/livez").status == 200
        assert running.stop() == 1
    assert running.hooks() == ["last", "first"]
    assert "abandoned GET /gate/never" in running.log
