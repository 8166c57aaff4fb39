"""Servers that have a way of their own to be found and stopped: each at the level of the promise that is claimed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ._client import Address, Connection, LostError, get, refuses
from ._process import BIG, ROOT, Running, Starter

WITHOUT_A2WSGI = "import sys; sys.modules['a2wsgi'] = None; import uvicorn; uvicorn.main()"
UVICORN = ("--interface", "wsgi", "--host", "127.0.0.1", "--port", "0", "live_app:app")
ADDRESS = r"(?:[Rr]unning on http://|Listening at: http://|bound to TCP address )127\.0\.0\.1:(\d+)"
TOKEN = "a token of sixteen and more"
# Longer than a client takes to ask over a connection that has been idle.
LINGER = {"LIFECYCLE_KEEPALIVE_LINGER": 2.0}


def uvicorn(live: Starter, kind: str = "a2wsgi", *options: str, **more: Any) -> Running:
    """Start uvicorn, with a2wsgi, or with its own middleware."""
    way = ("-c", WITHOUT_A2WSGI) if kind == "native" else ("-m", "uvicorn")
    return start(live, sys.executable, *way, *UVICORN, *options, **more)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def drain(live: Starter, port: int) -> Running:
    """Have ``flask lifecycle drain --wait`` ask a probe listener, as a preStop hook does."""
    command = (sys.executable, "-m", "flask", "--app", "live_app", "lifecycle", "drain", "--wait")
    return live.start(*command, f"http://127.0.0.1:{port}", env={"FLASK_LIFECYCLE_TOKEN": TOKEN})


def start(live: Starter, *command: str, plan: dict[str, Any] | None = None, **more: Any) -> Running:
    """Start a server, and wait until it is ready, which it is when it has been asked."""
    more.setdefault("settings", LINGER)
    running = live.start(*command, plan={"logging": True, **(plan or {})}, **more)
    address = address_of(running)

    def ready() -> bool:
        with contextlib.suppress(OSError):
            return get(address, "/readyz").status == 200
        return False

    running.wait_for(ready, "readiness")
    return running


def address_of(running: Running) -> tuple[str, int]:
    """Where it listens, as its log tells."""
    return "127.0.0.1", int(running.wait_log(ADDRESS)[1])


def wait_promise(running: Running, name: str, promise: str, workers: int = 1) -> None:
    """Wait until the one line of each worker is there that names the server and its promise."""
    words = {"full": "the full promise", "accepted": "accepted requests", "started": "requests that the application"}
    line = rf"server {name} \([^)]+\): {words[promise]}"
    running.wait_for(lambda: len(re.findall(line, running.log)) == workers, f"{workers} lines {line!r}")


class Traffic:
    """Clients in all the states that a stop has to do with, as far as it answers them.

    :param running_at_once: how many threads the server has for requests.
    :param keep_alive: whether it keeps connections at all.
    """

    def __init__(
        self,
        running: Running,
        stack: contextlib.ExitStack,
        running_at_once: int,
        *,
        keep_alive: bool = True,
        address: Address | None = None,
    ) -> None:
        self.keep_alive = keep_alive
        self.running = running
        self.address: Address = address or address_of(running)
        self._stack = stack
        self.idle = self.connect()
        assert self.idle.get("/fast").body == b"fast"
        self.stream = self.connect()
        self.stream.ask("/stream?gate=work")
        running.wait_event("begin stream")
        self.slow = self.connect(small=True)
        self.slow.ask("/big")
        self.started = [self.connect() for _ in range(running_at_once - 2)]
        for each in self.started:
            each.ask("/gate/work")
        running.wait_event("begin live work", times=len(self.started))

    def connect(self, **options: Any) -> Connection:
        return self._stack.enter_context(Connection(self.address, **options))

    def hold(self, queued: int) -> None:
        """Half a head, half a body, and requests that wait for a thread."""
        self.body, self.head = self.connect(), self.connect()
        self.body.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf-")
        self.head.send(b"GET /fast HTTP/1.1\r\nHo")
        self.queued = [self.connect() for _ in range(queued)]
        for each in self.queued:
            each.ask("/gate/work")

    def queue_in_kernel(self, number: int) -> None:
        """Stop the process, have clients come, send SIGTERM, and let it go on."""
        self.running.send(signal.SIGSTOP)
        self.running.wait_for(lambda: self.running.process_state() == "T", "the stopped process")
        self.kernel = [self.connect() for _ in range(number)]
        for each in self.kernel:
            each.ask("/fast")
        self.running.send(signal.SIGTERM)
        self.running.send(signal.SIGCONT)

    def finish(self) -> None:
        """Complete what is half sent, and let everything go on."""
        self.body.send(b"other")
        self.head.send(b"st: a\r\n\r\n")
        if self.keep_alive:
            self.idle.ask("/fast")
        self.running.open_gate("work")

    def check_started(self) -> None:
        """What the application had begun is answered to its last byte."""
        assert [each.answer().body for each in self.started] == [b"passed work"] * len(self.started)
        assert len(self.stream.answer().body) == 12 * 9
        assert self.slow.answer().body == BIG

    def check_accepted(self) -> None:
        """So is what the server had."""
        assert [each.answer().body for each in self.queued] == [b"passed work"] * len(self.queued)
        assert (self.head.answer().body, self.body.answer().body) == (b"fast", b"10 bytes")
        if self.keep_alive:
            assert self.idle.answer().body == b"fast"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Close the connections of a test at its end."""
    with contextlib.ExitStack() as stack:
        yield stack


# -- uvicorn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a2wsgi", "native"])
def test_uvicorn_loses_nothing(live: Starter, stack: contextlib.ExitStack, kind: str) -> None:
    """One process of uvicorn answers whatever the kernel has accepted, and runs the hooks after that."""
    running = uvicorn(live, kind)
    wait_promise(running, "uvicorn", "full")
    traffic = Traffic(running, stack, running_at_once=10)
    traffic.hold(queued=3)
    traffic.queue_in_kernel(4)
    running.wait_log("listener closed")
    assert refuses(traffic.address)
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert [(answer.body, answer.says_close) for answer in (each.answer() for each in traffic.kernel)] == [
        (b"fast", True)
    ] * 4
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert max(running.told("end live work")) < running.told("shutdown last")[0]


def test_uvicorns_workers_answer_what_they_have(live: Starter, stack: contextlib.ExitStack) -> None:
    """Under a supervisor each worker answers what it has accepted, and runs its hooks once."""
    running = uvicorn(live, "a2wsgi", "--workers", "2")
    running.wait_for(lambda: (get(address_of(running), "/fast"), running.log.count("-> READY") == 2)[1], "both workers")
    wait_promise(running, "uvicorn", "accepted", workers=2)
    traffic = Traffic(running, stack, running_at_once=10)
    traffic.hold(queued=3)
    running.send(signal.SIGTERM)
    running.wait_for(lambda: running.log.count("listener closed") == 2, "both listeners closed")
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]


def test_requests_of_uvicorns_own_middleware_end(live: Starter) -> None:
    """It never closes a body; a request ends with it all the same, and does not stay in flight."""
    running = uvicorn(live, "native")
    address = address_of(running)
    for path in ("/fast", "/stream", "/file"):
        assert get(address, path).status == 200
    assert get(address, "/in-flight").body == b"1"
    assert running.stop() == 0
    assert running.shutdown_took < 5.0


def left(live: Starter, server: str) -> int:
    """Have a request hang, stop the server, and say what it exits with when it is gone in time."""
    running = start(live, *documented(server, free_port()), settings={"LIFECYCLE_GRACE_PERIOD": 2.0})
    with Connection(address_of(running)) as connection:
        connection.ask("/gate/never")
        running.wait_event("begin live never")
        code = running.stop()
    assert running.hooks() == ["last", "first"]
    assert "abandoned GET /gate/never" in running.log
    return code


def test_uvicorn_is_left_within_the_grace_period(live: Starter) -> None:
    """A request that hangs is abandoned, and although uvicorn would wait for it the process is gone in time."""
    assert left(live, "uvicorn") == 1


def test_uvicorn_dies_by_the_signal_if_it_is_to(live: Starter) -> None:
    """``LIFECYCLE_EXIT = "signal"`` holds there, too."""
    running = uvicorn(live, settings={"LIFECYCLE_EXIT": "signal"})
    assert running.stop() == -signal.SIGTERM
    assert running.hooks() == ["last", "first"]


# -- uWSGI --------------------------------------------------------------------------------------------------------


def uwsgi(live: Starter, *options: str, processes: int = 1, ini: bool = True, **more: Any) -> Running:
    """Start uWSGI with the configuration of the example, or without one."""
    command = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket", "127.0.0.1:0", "--module", "live_app:app"]
    if ini:
        command += ["--ini", str(ROOT / "examples" / "uwsgi" / "uwsgi.ini"), "--processes", str(processes)]
    return start(live, *command, *options, **more)


def test_uwsgi_answers_what_it_runs(live: Starter, stack: contextlib.ExitStack) -> None:
    """With the hook of the example a SIGTERM lets requests that run end, and the hooks run after them."""
    running = uwsgi(live, settings={"LIFECYCLE_SHUTDOWN_DELAY": 15.0})
    wait_promise(running, "uwsgi", "started")
    traffic = Traffic(running, stack, running_at_once=4, keep_alive=False)
    running.send(signal.SIGTERM)
    running.wait_log("graceful shutdown triggered")
    running.open_gate("work")
    traffic.check_started()
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert max(running.told("end live work")) < running.told("shutdown last")[0]
    assert running.lasted < 15.0, "a delay although nobody accepts any more"
    assert "is not configured" not in running.log
    assert "set it to" not in running.log


def test_uwsgi_that_is_drained_loses_nothing(live: Starter, stack: contextlib.ExitStack) -> None:
    """Told to drain, it answers what it has and what waits in the kernel, runs the hooks, refuses, and stays until
    SIGTERM comes.
    """
    port = free_port()
    settings = {"LIFECYCLE_PROBE_PORT": port, "LIFECYCLE_TOKEN": TOKEN, "LIFECYCLE_SHUTDOWN_DELAY": 0.5}
    running = uwsgi(live, settings=settings)
    traffic = Traffic(running, stack, running_at_once=4, keep_alive=False)
    traffic.hold(queued=3)  # in the kernel: there is no thread for them
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
    listening = f"probe listener on http://0.0.0.0:{port}"
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
        "uWSGI is not configured for a stop that answers what it runs; set 'lazy-apps = true',"
        " 'hook-master-start = unix_signal:15 gracefully_kill_them_all'.\n"
    )
    running.wait_log(r"uWSGI's 'worker-reload-mercy' is 5 s, and a stop may take 25 s; set it to 25, or a shorter")
    assert running.stop(signal.SIGINT) == 0


# -- hypercorn ----------------------------------------------------------------------------------------------------


def documented(server: str, port: int) -> list[str]:
    """The command of a server's section in docs/servers.md, with this port, for the live app."""
    text = (ROOT / "docs" / "servers.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {server}\n", 1)[1]
    words = section.split("```sh\n", 1)[1].split("\n", 1)[0].split("#")[0].split()
    command = [word.replace("app:app", "live_app:app").replace("0.0.0.0", "127.0.0.1") for word in words]
    return [sys.executable, "-m", *(word.replace("8000", str(port)) for word in command)]


def test_one_process_of_hypercorn_loses_nothing(live: Starter, stack: contextlib.ExitStack) -> None:
    """Without a parent hypercorn answers whatever the kernel has accepted, and runs the hooks after that."""
    running = start(live, *documented("hypercorn", free_port()), "--workers", "0")
    wait_promise(running, "hypercorn", "full")
    traffic = Traffic(running, stack, running_at_once=4)
    traffic.hold(queued=3)
    traffic.queue_in_kernel(4)
    running.wait_log("listener closed")
    assert refuses(traffic.address)
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert [each.answer().body for each in traffic.kernel] == [b"fast"] * 4
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert max(running.told("end live work")) < running.told("shutdown last")[0]


def test_hypercorns_workers_answer_what_they_have(live: Starter, stack: contextlib.ExitStack) -> None:
    """Each worker of hypercorn answers what it has accepted, and runs its hooks once, whatever time hypercorn itself
    would give it; the first that ends takes nothing from the other.
    """
    settings = {**LINGER, "LIFECYCLE_SHUTDOWN_DELAY": 0.5}
    command = documented("hypercorn", free_port())
    running = start(live, *command, "--workers", "2", "--graceful-timeout", "1", settings=settings)
    running.wait_for(lambda: (get(address_of(running), "/fast"), running.log.count("-> READY") == 2)[1], "both workers")
    wait_promise(running, "hypercorn", "accepted", workers=2)
    traffic = Traffic(running, stack, running_at_once=4)
    traffic.hold(queued=3)
    running.send(signal.SIGTERM)
    running.wait_for(lambda: running.log.count("-> DRAINING") == 2, "both drains")
    running.wait_for(lambda: running.log.count("listener closed") == 2, "both listeners closed")
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]


def test_hypercorn_is_left_within_the_grace_period(live: Starter) -> None:
    """A request that hangs is abandoned, and the worker, and so hypercorn, is gone in time."""
    assert left(live, "hypercorn") == 0  # although the worker exits with 1, which hypercorn forgets


# -- granian ------------------------------------------------------------------------------------------------------


def test_granians_workers_answer_what_they_have(live: Starter, stack: contextlib.ExitStack) -> None:
    """Each worker of granian serves in the delay, answers what it has accepted, and runs its hooks once, after that."""
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 0.5}
    running = start(live, *documented("granian", free_port()), "--workers", "2", settings=settings)
    running.wait_for(lambda: (get(address_of(running), "/fast"), running.log.count("-> READY") == 2)[1], "both workers")
    wait_promise(running, "granian", "accepted", workers=2)
    traffic = Traffic(running, stack, running_at_once=4, keep_alive=False)
    traffic.hold(queued=3)
    running.send(signal.SIGTERM)
    running.wait_for(lambda: running.log.count("-> DRAINING") == 2, "both drains")
    running.wait_for(lambda: running.log.count("'stop accepting' ended") == 2, "the end of both delays")
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert running.wait_gone() == 0
    assert sorted(running.hooks()) == ["first", "first", "last", "last"]
    assert running.log.count(": clean, exit 0") == 2


def test_granian_hears_what_another_thread_has_taken(live: Starter) -> None:
    """A SIGTERM that came while a worker was frozen is taken by any of its threads, and handled all the same."""
    running = start(live, *documented("granian", free_port()))
    wait_promise(running, "granian", "accepted")
    parent = running.target
    children = [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    (worker,) = [pid for pid in children if takes_sigterm(pid)]
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


def takes_sigterm(pid: int) -> bool:
    """Whether a process handles SIGTERM; the one that keeps multiprocessing's resources ignores it."""
    return has_signal(pid, "SigCgt")


def test_granian_is_left_within_the_grace_period(live: Starter) -> None:
    """A request that hangs is abandoned, and the worker, and so granian, is gone in time."""
    assert left(live, "granian") == 0


def test_granian_is_told_of_its_time(live: Starter) -> None:
    """A time after which granian would kill workers is warned of if it is shorter than the grace period."""
    running = start(live, *documented("granian", free_port()), "--workers-kill-timeout", "5")
    running.wait_log("granian's 'workers-kill-timeout' is 5 s, and a stop may take 25 s; set it to 25, or a shorter")
    assert running.stop() == 0
    assert running.hooks() == ["last", "first"]


# -- mod_wsgi -----------------------------------------------------------------------------------------------------

APACHE = """
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule wsgi_module /usr/lib/apache2/modules/mod_wsgi.so
ServerRoot {home}
DefaultRuntimeDir {home}
PidFile {home}/pid
ServerName localhost
Listen 127.0.0.1:{port}
ErrorLog /dev/stderr
"""


def apache(live: Starter, home: Path, port: int) -> Running:
    """Start Apache with the example; Debian's mod_wsgi has Debian's Python, which gets the packages of this one."""
    path = f"python-path={sysconfig.get_path('purelib')}:{ROOT}:{ROOT / 'tests' / 'live_apps'}"
    example = (ROOT / "examples" / "mod_wsgi" / "shop.conf").read_text(encoding="utf-8")
    example = example.replace("/srv/shop", str(home)).replace("threads=4", f"threads=4 {path}")
    (home / "app.wsgi").write_text("from live_app import app as application\n")
    (home / "apache.conf").write_text(APACHE.format(home=home, port=port) + example)
    # Its daemon refuses to be root, and another user could not read what is ours.
    user = ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()
    command = (*user, "/usr/sbin/apache2", "-f", str(home / "apache.conf"), "-DFOREGROUND")
    running = live.start(*command, plan={"logging": True})

    def ready() -> bool:
        with contextlib.suppress(OSError, LostError):
            return get(("127.0.0.1", port), "/readyz").status == 200
        return False

    running.wait_for(ready, "readiness")
    return running


def test_mod_wsgi_answers_what_it_has(live: Starter, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    """Stopped by SIGWINCH Apache answers what it has accepted, and the hooks run once, after that."""
    port = free_port()
    home = tmp_path / "apache"
    home.mkdir()
    running = apache(live, home, port)
    wait_promise(running, "mod_wsgi", "accepted")
    traffic = Traffic(running, stack, running_at_once=4, keep_alive=False, address=("127.0.0.1", port))
    traffic.hold(queued=3)
    running.send(signal.SIGWINCH)
    running.wait_for(lambda: refuses(traffic.address), "the closed listener")
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"]
    assert max(running.told("end live work")) < running.told("shutdown last")[0]
    assert "outside the main thread" not in running.log


# -- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian"])
def test_the_delay_is_served(live: Starter, server: str) -> None:
    """In the delay readiness says 503, and what comes is served and told to close its connection; SIGTERM comes to us
    although these servers take it after the application was loaded. They are started as the documentation says.
    """
    running = start(live, *documented(server, free_port()), settings={"LIFECYCLE_SHUTDOWN_DELAY": 1.0})
    address = address_of(running)
    running.begin_stop()
    assert (get(address, "/readyz").status, get(address, "/livez").status) == (503, 200)
    answer = get(address, "/fast")
    assert (answer.body, answer.says_close) == (b"fast", True)
    assert running.wait_gone() == 0
    assert running.lasted > 1.0
    assert running.hooks() == ["last", "first"]
