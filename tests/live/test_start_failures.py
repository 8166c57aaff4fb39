"""Starts that fail, and where the probes listen, on every server: the one policy of docs/startup.md."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ._client import free_port, get
from ._process import APPS, ROOT, Running, Starter

HOOKS = "from flask_lifecycle.gunicorn import *\n"
UWSGI = ("--master", "--need-app", "--lazy-apps", "--enable-threads", "--wsgi-file", "live_app.py", "--callable", "app")


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# The arguments of Python by the host and the port to listen on.
COMMANDS: dict[str, Callable[[str, int], tuple[str, ...]]] = {
    "waitress-serve": lambda host, port: ("-m", "waitress", f"--listen={url_host(host)}:{port}", "live_app:app"),
    "flask run": lambda host, port: ("-m", "flask", "--app", "live_app.py", "run", "-h", host, "-p", str(port)),
    "flask run --debug": lambda host, port: (*COMMANDS["flask run"](host, port), "--debug"),
    "cheroot": lambda host, port: ("serve_elsewhere.py", "main", "cheroot", str(port), host),
    "pywsgi": lambda host, port: ("-m", "gevent.monkey", "serve_elsewhere.py", "main", "gevent", str(port), host),
    "uvicorn": lambda host, port: (
        "-m", "uvicorn", "--interface", "wsgi", "--host", host, "--port", str(port), "live_app:app",
    ),
    "hypercorn": lambda host, port: (
        "-m", "hypercorn", "--workers", "0", "--bind", f"{url_host(host)}:{port}", "wsgi:live_app:app",
    ),
    "granian": lambda host, port: (
        "-m", "granian", "--interface", "wsgi", "--host", host, "--port", str(port), "live_app:app",
    ),
    "gunicorn": lambda host, port: ("-m", "gunicorn", "--bind", f"{url_host(host)}:{port}", "live_app:app"),
    "wsgiref": lambda host, port: ("serve_elsewhere.py", "main", "wsgiref", str(port), host),
}  # fmt: skip
for _name in ("waitress", "werkzeug", "cheroot", "gevent"):
    COMMANDS[f"run {_name}"] = lambda host, port, name=_name: (  # type: ignore[misc]  # the name is bound here
        "-m", "flask", "--app", "live_app.py", "lifecycle", "run", "--server", name, "-h", host, "-p", str(port),
    )  # fmt: skip
# gunicorn's boot error, and uWSGI's own for an application that cannot be loaded.
CODES = {"gunicorn": 3, "uwsgi": 22}


def start(live: Starter, server: str, host: str, port: int, **more: Any) -> Running:
    plan = {"logging": True, **more.pop("plan", {})}
    if server == "uwsgi":
        program = str(Path(sys.executable).parent / "uwsgi")
        where = ("--http-socket", f"{host}:{port}", "--virtualenv", sys.prefix)
        return live.start(program, *UWSGI, *where, plan=plan, **more)
    hooks: tuple[str, ...] = ()
    if server.startswith("gunicorn "):
        _, worker, _ = server.split()
        config = live.home / "gunicorn.conf.py"
        config.write_text(HOOKS)
        hooks = ("-c", str(config), "-k", worker, "--workers", "2")
        server = "gunicorn"
    return live.start(sys.executable, *COMMANDS[server](host, port), *hooks, plan=plan, **more)


HOOKED = [f"gunicorn {worker} hooks" for worker in ("sync", "gthread", "gevent")]
# One of each way in which a start that fails ends its process; the failure itself is the same to all of them.
WAYS = ["run waitress", "waitress-serve", "flask run --debug", "uvicorn", "wsgiref", "gunicorn", *HOOKED[1:], "uwsgi"]
# Those that serve in another loop, or in workers of their own kind.
OTHERS = ["run werkzeug", "cheroot", "pywsgi", "hypercorn", "granian", HOOKED[0]]


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def ask_once(running: Running, port: int) -> None:
    """Ask for the first time, where the start-up waits for that."""
    with contextlib.suppress(OSError, AssertionError):

        def listens() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        running.wait_for(listens, "its listener")
        assert get(("127.0.0.1", port), "/fast").status == 503


@pytest.mark.parametrize("server", WAYS)
def test_probe_port_taken(live: Starter, server: str) -> None:
    """A taken probe port ends the process at once, with 1 (gunicorn 3, uWSGI 22), one sentence and no traceback."""
    port = free_port()
    with taken_port() as taken:
        settings = {"LIFECYCLE_PROBE_HOST": "127.0.0.1", "LIFECYCLE_PROBE_PORT": taken}
        running = start(live, server, "127.0.0.1", port, settings=settings)
        if server == "wsgiref":
            ask_once(running, port)
        code = running.wait_gone()
    assert code == CODES.get(server.partition(" ")[0], 1), running.log_tail
    assert f"The probe listener cannot listen on 127.0.0.1:{taken} (Address already in use)" in running.log
    assert "-> READY" not in running.log


@pytest.mark.parametrize("server", [*WAYS, *OTHERS])
def test_startup_function_fails(live: Starter, server: str) -> None:
    """A start-up function that raises ends the process (1, gunicorn 3, uWSGI 22), and on_shutdown runs."""
    port = free_port()
    plan = {"hooks": {"startup": [["warm-up", "raise", None]]}}
    # The one traceback is the function's own, in each worker.
    running = start(live, server, "127.0.0.1", port, plan=plan, excuse="ValueError: boom")
    if server == "wsgiref":
        ask_once(running, port)
    assert running.wait_gone() == CODES.get(server.partition(" ")[0], 1), running.log_tail
    assert "on_startup 'warm-up' failed" in running.log
    assert "-> READY" not in running.log
    hooks = running.hooks()  # of two workers at the same time, where there are two
    assert hooks[0] == "last"
    assert "first" in hooks


# The reloader's thread begins its loop when the main thread, which the failed start has ended, has closed the server.
# We take the server late: a start-up that did not wait for that would fail before, and the server closes its socket.
LATE_LOOP = """
import threading
from live_app import app
from flask_lifecycle._servers.werkzeug.run_simple import RunSimple
from werkzeug.serving import BaseWSGIServer, run_simple

take_server = RunSimple._take_server
serve_forever = BaseWSGIServer.serve_forever
closed = threading.Event()

def begin_late(server):
    closed.wait()
    serve_forever(server)

def take_late(self, reloads):
    closed.wait(3.0)
    return take_server(self, reloads)

BaseWSGIServer.serve_forever = begin_late
RunSimple._take_server = take_late
try:
    run_simple("127.0.0.1", 0, app, threaded=True, use_reloader=True)
finally:
    closed.set()
    threading.Event().wait(0.5)  # longer than the thread takes to begin
"""


def test_a_loop_that_begins_after_the_start_has_failed(live: Starter) -> None:
    """A loop that the reloader's thread begins when the main thread leaves prints no traceback."""
    script = live.home / "late.py"
    script.write_text(LATE_LOOP)
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    with taken_port() as taken:
        settings = {"LIFECYCLE_PROBE_HOST": "127.0.0.1", "LIFECYCLE_PROBE_PORT": taken}
        running = live.start(sys.executable, str(script), settings=settings, plan={"logging": True}, env=env)
        assert running.wait_gone() == 1, running.log_tail


def test_a_master_that_replaces_workers(live: Starter) -> None:
    """hypercorn's parent stops with a worker whose start-up fails, and does not replace it; the code is hypercorn's."""
    plan = {"logging": True, "hooks": {"startup": [["warm-up", "raise", None]]}}
    command = ("-m", "hypercorn", "--bind", "127.0.0.1:0", "wsgi:live_app:app")
    running = live.start(sys.executable, *command, plan=plan, excuse="ValueError: boom")
    running.wait_gone()
    assert running.hooks("startup") == ["warm-up"]
    assert running.hooks() == ["last", "first"]


def reached(port: int) -> set[str]:
    """By which of the two loopback addresses a port is reached."""
    found = set()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as sock:
            sock.settimeout(5)
            sock.connect((host, port))
            found.add(host)
    return found


def probe_port(running: Running) -> int:
    return int(running.wait_log(r"probe listener on http://\S+:(\d+)")[1])


FOREIGN = ["waitress-serve", "flask run", "cheroot", "pywsgi", "uvicorn", "hypercorn", "granian", "gunicorn"]


@pytest.mark.parametrize("server", [*FOREIGN, "run waitress"])
def test_probes_listen_where_the_application_does(live: Starter, server: str) -> None:
    """Without a host of its own the probe listener is reached by the addresses that the application is reached by."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        # Where it is not found, it is 127.0.0.1.
        for host in ("127.0.0.1", "::") if "waitress" in server else ("::",):
            port = free_port()
            running = start(live, server, host, port, settings={"LIFECYCLE_PROBE_PORT": 0})
            probes = probe_port(running)
            assert reached(probes) == reached(port), host
            if host == "127.0.0.1" or server == "run waitress":
                assert reached(probes) == ({"127.0.0.1"} if host == "127.0.0.1" else {"127.0.0.1", "::1"})
            running.stop()
        return
    pytest.skip("no IPv6 here")


@pytest.mark.parametrize(
    ("server", "where"),
    [("waitress", ("-h", "*")), ("gevent", ("--listen", "*:{}")), ("waitress", ("--listen", "[::]:{}"))],
)
def test_all_addresses(live: Starter, server: str, where: tuple[str, str]) -> None:
    """``*`` and ``::`` mean all addresses, of both families, on the main port and as LIFECYCLE_PROBE_HOST."""
    port, (option, text) = free_port(), where
    options = (option, text.format(port), *(("-p", str(port)) if option == "-h" else ()))
    host = "::" if "::" in text else "*"
    settings = {"LIFECYCLE_PROBE_HOST": host, "LIFECYCLE_PROBE_PORT": 0}
    running = live.serve(server, *options, settings=settings)
    families = reached(port)
    assert families == reached(probe_port(running))
    assert "127.0.0.1" in families
    assert running.stop() == 0
