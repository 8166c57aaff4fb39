"""``flask run``, ``app.run()``, ``run_simple``: alone, under the reloader, with threads, processes and neither."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests._tls import Authority

from ._client import PATIENCE, Connection, LostError, answers, get, refuses, request_head, storm
from ._process import APPS, ROOT, Starter, children_of, parse_address, wait_until
from ._traffic import Kind, Traffic, hung_request, in_flight, is_accepted

APP = """
from live_app import app, lifecycle

@app.get("/version")
def version():
    return "{version}"
"""
SCRIPT = """
from werkzeug.serving import run_simple
from live_app import app, event, lifecycle

run_simple({host!r}, 0, app, {options})
event("returned")
"""


def write_app(path: Path, text: str) -> None:
    """Write a source file at once, with a time that the reloader takes for a change."""
    new = path.with_suffix(".new")
    new.write_text(text)
    if path.exists():
        later = path.stat().st_mtime + 2
        os.utime(new, (later, later))
    new.replace(path)


class Flask:
    """A ``flask run`` under test; ``target`` (only, parent, child, terminal) gets the signal."""

    def __init__(self, live: Starter, *options: str, target: str = "only", script: str | None = None, **more: object):
        self.home = live.home
        self.target = target
        self.source = live.home / "flask_app.py"
        plan = {"logging": True, **more.pop("plan", {})}  # type: ignore[dict-item]
        if script is None:
            write_app(self.source, APP.format(version=1))
            command = ["-m", "flask", "--app", str(self.source), "run", "-p", "0", *options]
        else:
            self.source.write_text(script)
            command = [str(self.source)]
        terminal = target == "terminal"
        env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}", **more.pop("env", {})}  # type: ignore[dict-item]
        self.running = live.start(
            sys.executable,
            *command,
            plan=plan,
            terminal=terminal,
            env=env,
            **more,  # type: ignore[arg-type]
        )
        self.running.wait_log(r"Running on (http|unix|/)")
        if "Running on http:" in self.running.log:
            wait_until(lambda: get(self.address, "/fast").body == b"fast", "the first answer")

    @property
    def address(self) -> tuple[str, int]:
        return self.running.address

    @property
    def child(self) -> int:
        """The pid of the process that serves, where there are two."""
        (child,) = self.children
        return child

    @property
    def serving(self) -> int:
        return self.running.popen.pid if self.target in ("only", "terminal") and not self.children else self.child

    @property
    def children(self) -> list[int]:
        return children_of(self.running.popen.pid)

    def holds_listener(self) -> bool:
        """Whether anybody listens on the port, as the kernel tells it; to ask by connecting would fill the queue."""
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return any(line.split()[1].endswith(f":{self.address[1]:04X}") and line.split()[3] == "0A" for line in lines)

    def signal(self) -> None:
        if self.target == "terminal":
            self.running.type(b"\x03")
        else:
            self.running.target = self.child if self.target == "child" else self.running.popen.pid
            self.running.send(signal.SIGTERM)

    def change(self, text: str | None = None) -> None:
        write_app(self.source, APP.format(version=2) if text is None else text)

    def wait_version(self, version: bytes) -> None:
        wait_until(lambda: self.version() == version, f"version {version!r}")

    def version(self) -> bytes:
        with contextlib.suppress(LostError, OSError):
            return get(self.address, "/version").body
        return b""

    def clean(self) -> None:
        """Assert that the process leaves with 0, and that the hooks have run once."""
        assert self.running.wait_gone() == 0, self.running.log_tail
        assert self.running.hooks() == ["last", "first"], self.running.log_tail


RELOAD = ("--reload",)
FORMS = {
    "Ctrl-C": (("--no-reload",), "terminal"),
    "reloader, SIGTERM to the parent": (RELOAD, "parent"),
    "reloader, SIGTERM to the child": (RELOAD, "child"),
    "reloader, Ctrl-C": (RELOAD, "terminal"),
}


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process by SIGSTOP, so that what comes meanwhile waits in the kernel."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(("options", "target"), FORMS.values(), ids=FORMS.keys())
def test_whatever_is_accepted_is_answered(
    live: Starter, stack: contextlib.ExitStack, options: Sequence[str], target: str
) -> None:
    """A stop answers what runs, streams, is half received or in the kernel's queue; then the hooks run, once."""
    flask = Flask(live, *options, target=target)
    traffic = Traffic(flask.running, stack, Kind(keeps=False, pipelines=False), address=flask.address)
    traffic.hold()
    traffic.wait_accepted()
    silent = traffic.connect()
    with frozen(flask.serving):
        traffic.kernel = [traffic.connect() for _ in range(4)]
        for connection in traffic.kernel:
            connection.ask("/fast")
        flask.signal()
    flask.running.wait_log("listener closed")
    assert silent.receive() == b""
    assert refuses(flask.address)
    assert flask.running.hooks() == []
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    traffic.check_kernel()
    traffic.check_hooks()
    assert "clean, exit 0" in flask.running.log


@pytest.mark.parametrize("fallback", [False, True])
def test_storm(live: Starter, fallback: bool) -> None:
    """Under the reloader clients that connect without pause lose nothing, also without the socket filter."""
    flask = Flask(live, *RELOAD, target="parent", plan={"fallback": fallback})
    with storm(flask.address, flask.running.gone, clients=6, keep_alive=False) as clients:
        flask.signal()
        flask.clean()
    assert fallback or clients.lost == []


def test_a_change_of_code_in_the_middle_of_a_request(live: Starter) -> None:
    """A request that runs when the code changes is answered, the next process answers later ones; hooks run."""
    flask = Flask(live, *RELOAD, target="parent")
    running = flask.running
    with Connection(flask.address) as old, Connection(flask.address) as new:
        old.ask("/pool/a")
        running.wait_event("begin live a")
        flask.change()
        running.wait_log("shutdown begins: code change")
        with Connection(flask.address) as new:
            new.ask("/version")
            assert running.hooks() == []
            running.open_gate("a")
            assert old.answer().body == b"from the pool"
            assert new.answer().body == b"2"
    assert running.hooks() == ["last", "first"]
    flask.signal()
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"] * 2
    assert len(running.told("made live")) == 3  # the parent and two children


def test_without_threads(live: Starter) -> None:
    """Without threads, what waits is answered before the listener closes; silent clients do not delay the stop."""
    flask = Flask(live, "--no-reload", "--without-threads")
    running = flask.running
    with contextlib.ExitStack() as opened:
        silent, one, two, piped = (opened.enter_context(Connection(flask.address)) for _ in range(4))
        one.ask("/gate/a")
        two.send(b"GET /fast HTTP/1.1\r\nHost: lo")
        piped.send(request_head("/fast") * 2)
        flask.signal()
        assert silent.receive() == b""
        running.wait_event("begin live a")
        running.open_gate("a")
        assert one.answer().body == b"passed a"
        two.send(b"calhost\r\n\r\n")
        assert [each.answer().body for each in (two, piped)] == [b"fast", b"fast"]
        flask.clean()


@pytest.mark.parametrize("target", ["only", "terminal"])
def test_processes(live: Starter, target: str) -> None:
    """With processes a stop answers what runs and waits, the hooks run in the parent, and no client delays it."""
    script = SCRIPT.format(host="127.0.0.1", options="processes=4")
    flask = Flask(live, script=script, target=target)
    running = flask.running
    with contextlib.ExitStack() as opened:
        silent, piped, one, two = (opened.enter_context(Connection(flask.address)) for _ in range(4))
        piped.send(request_head("/fast") * 2)
        assert piped.answer().body == b"fast"
        one.ask("/gate/a")
        running.wait_event("begin live a")
        two.ask("/fast")
        flask.signal()
        running.wait_log("listener closed")
        running.open_gate("a")
        assert [each.answer().body for each in (one, two)] == [b"passed a", b"fast"]
        assert silent.receive() == b""
        flask.clean()


def test_processes_that_hang_are_killed(live: Starter) -> None:
    """What a process has not answered at the deadline is abandoned with it, and nothing is left behind."""
    script = SCRIPT.format(host="127.0.0.1", options="processes=4")
    flask = Flask(live, script=script, settings={"LIFECYCLE_GRACE_PERIOD": 2.0})
    with hung_request(flask.running):
        children = flask.children
        assert children
        flask.signal()
        assert flask.running.wait_gone() == 1
        wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the end of its processes")
    assert flask.running.hooks() == ["last", "first"]


def test_unix_socket(live: Starter, tmp_path: Path) -> None:
    """On a Unix socket what is in the queue is answered, and the socket's path is gone."""
    path = str(tmp_path / "socket")
    script = SCRIPT.format(host=f"unix://{path}", options="threaded=True")
    flask = Flask(live, script=script)
    wait_until(lambda: get(path, "/fast").body == b"fast", "the first answer")
    with contextlib.ExitStack() as opened:
        silent = opened.enter_context(Connection(path))
        piped = opened.enter_context(Connection(path))
        piped.send(request_head("/fast") * 2)
        assert piped.answer().body == b"fast"
        with frozen(flask.running.popen.pid):
            waiting = [opened.enter_context(Connection(path)) for _ in range(4)]
            for connection in waiting:
                connection.ask("/fast")
            flask.signal()
        assert [connection.answer().body for connection in waiting] == [b"fast"] * 4
        assert silent.receive() == b""
    flask.clean()
    assert not Path(path).exists()
    assert "listener closed (unix)" in flask.running.log


@pytest.mark.parametrize("threads", [False, True])
def test_https(live: Starter, tmp_path: Path, threads: bool) -> None:
    """With TLS a stop answers what runs and what waits, and a client that does not shake hands holds up nobody."""
    authority = Authority(tmp_path)
    certificate = str(authority.issue("server"))
    options = f"threaded={threads}, ssl_context=({certificate!r}, {certificate!r})"
    flask = Flask(live, script=SCRIPT.format(host="127.0.0.1", options=options))
    running = flask.running
    address = parse_address(running.wait_log(r"Running on (https://\S+)")[1].replace("https", "http"))
    context = authority.trusting()

    def secure(sock: socket.socket) -> Connection:
        sock.settimeout(PATIENCE)
        return Connection(address, sock=context.wrap_socket(sock, server_hostname="localhost"))

    def plain() -> socket.socket:
        return socket.create_connection(address, PATIENCE)  # type: ignore[arg-type]

    with contextlib.ExitStack() as opened:
        one = opened.enter_context(secure(plain()))
        one.ask("/gate/a")
        running.wait_event("begin live a")
        queued = [opened.enter_context(plain()) for _ in range(3)]
        if threads:
            # The main thread shakes hands with the first client. A signal that comes just before it blocks there is
            # handled when that client speaks or leaves, so wait until it blocks.
            silent = Connection(address, sock=queued[0])
            wait_until(lambda: is_accepted(silent) and running.process_state() == "S", "the handshake")
        flask.signal()
        running.wait_log("shutdown begins")
        running.open_gate("a")
        assert one.answer().body == b"passed a"
        (two,) = (opened.enter_context(secure(sock)) for sock in queued[2:])
        assert two.get("/fast").body == b"fast"
        while queued[0].recv(100):  # an alert of TLS, and the end
            pass
        flask.clean()


def test_a_syntax_error_after_a_change(live: Starter) -> None:
    """The error of changed code is shown, and the next change mends it; a stop is clean also in between."""
    flask = Flask(live, *RELOAD, target="parent", excuse="Traceback")
    flask.change("def broken(:\n")
    wait_until(lambda: answers(flask.address, "/version", 500), "the error's page")
    write_app(flask.source, APP.format(version=3))
    flask.wait_version(b"3")
    assert flask.running.hooks() == ["last", "first"]
    flask.change("def broken(:\n")
    wait_until(lambda: answers(flask.address, "/version", 500), "the error's page")
    flask.signal()
    assert flask.running.wait_gone() == 0
    assert flask.running.hooks() == ["last", "first"] * 2


def test_a_stop_in_the_middle_of_a_change(live: Starter) -> None:
    """A signal while a child drains for a change is a stop: the request is answered, and no other child follows."""
    flask = Flask(live, *RELOAD, target="parent")
    running = flask.running
    with in_flight(running):
        flask.change()
        running.wait_log("shutdown begins: code change")
        flask.signal()
        running.wait_for(lambda: not flask.holds_listener(), "the listener to be closed")
        assert refuses(flask.address)
    flask.clean()
    assert len(running.told("made live")) == 2  # the parent and one child


def test_a_stop_while_the_next_child_starts(live: Starter) -> None:
    """A stop that was postponed until the child serves waits for its start-up: what waits for it is not refused."""
    flask = Flask(live, *RELOAD, target="parent")
    running = flask.running
    flask.change(
        "import live_app\nlive_app.event('importing')\nlive_app.pass_gate('import')\n"
        + APP.format(version=2)
        + "@lifecycle.on_startup\ndef slow():\n    live_app.event('starting')\n    live_app.pass_gate('start')\n"
    )
    running.wait_event("importing")
    with Connection(flask.address) as one:
        one.ask("/version")
        flask.signal()
        assert not running.gone.wait(0.3)
        running.open_gate("import")
        running.wait_event("starting")
        running.open_gate("start")
        assert one.answer().body == b"2"
    assert running.wait_gone() == 0
    assert running.hooks() == ["last", "first"] * 2


HELD = """
from {module} import {owner}
from flask_lifecycle._servers.werkzeug.run_simple import role
import live_app

original = {owner}.{method}

def held(*arguments):
    if role() == "child":
        live_app.event("held")
        live_app.pass_gate("take")
    return original(*arguments)

{owner}.{method} = held
"""
BEFORE_THE_SERVER = HELD.format(
    module="flask_lifecycle._servers.werkzeug.run_simple", owner="RunSimple", method="_take_server"
)
BEFORE_THE_SIGNALS = HELD.format(
    module="flask_lifecycle._core.signals", owner="SignalRelay", method="run_in_main_by_sigurg"
)


@pytest.mark.parametrize(
    ("target", "held"),
    [
        ("parent", BEFORE_THE_SERVER),
        ("parent", BEFORE_THE_SIGNALS),
        ("child", BEFORE_THE_SIGNALS),
        ("terminal", BEFORE_THE_SIGNALS),
    ],
    ids=["parent, no server", "parent, no signals", "child, no signals", "terminal, no signals"],
)
def test_a_stop_before_the_child_has_our_handler(live: Starter, target: str, held: str) -> None:
    """Neither Werkzeug's own handler of SIGTERM nor Ctrl-C ends a child that serves already."""
    # Interleavings: the child serves, and our handler takes the place of Werkzeug's; then SIGTERM comes. Or SIGTERM
    # comes first: the parent waits with it for our handler, and in the child itself the shutdown begins where
    # Werkzeug's handler makes it close the server.
    script = held + SCRIPT.format(host="127.0.0.1", options="use_reloader=True")
    flask = Flask(live, target=target, script=script)
    running = flask.running
    running.wait_event("held")
    with in_flight(running):
        flask.signal()
        assert not running.gone.wait(0.5)
        if target == "parent":
            running.open_gate("take")
        running.wait_log(f"shutdown begins: {'SIGINT' if target == 'terminal' else 'SIGTERM'}")
        running.wait_log("listener closed")
    flask.clean()


def test_a_change_in_the_middle_of_a_stop(live: Starter) -> None:
    """A change of code while the process stops changes nothing: the request is answered and the process ends."""
    flask = Flask(live, *RELOAD, target="parent")
    running = flask.running
    with in_flight(running):
        flask.signal()
        running.wait_log("listener closed")
        flask.change()
        running.wait_log("Detected change")
    flask.clean()
    assert len(running.told("made live")) == 2


def test_a_file_that_is_written_twice(live: Starter) -> None:
    """An editor that writes a file again while the old code drains gets the last of both."""
    flask = Flask(live, *RELOAD, target="parent")
    running = flask.running
    with in_flight(running):
        flask.change()
        running.wait_log("shutdown begins: code change")
        write_app(flask.source, APP.format(version=3))
    flask.wait_version(b"3")
    assert running.hooks() == ["last", "first"]
    flask.signal()
    assert running.wait_gone() == 0


def test_a_request_that_hangs_holds_up_a_change_no_longer_than_the_deadline(live: Starter) -> None:
    """At the deadline the request is abandoned, the hooks run, and the next child serves the new code."""
    flask = Flask(live, *RELOAD, target="parent", settings={"LIFECYCLE_GRACE_PERIOD": 2.0})
    running = flask.running
    with hung_request(running):
        flask.change()
        flask.wait_version(b"2")
    assert "abandoned GET /gate/never" in running.log
    assert running.hooks() == ["last", "first"]
    flask.signal()
    assert running.wait_gone() == 0


def test_ctrl_c_again(live: Starter) -> None:
    """A second Ctrl-C forces the exit, of parent and child."""
    flask = Flask(live, *RELOAD, target="terminal")
    running = flask.running
    with hung_request(running):
        child = flask.children
        flask.signal()
        running.wait_log("listener closed")
        assert not running.gone.wait(0.5)
        flask.signal()
        assert running.wait_gone() in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        assert not any(Path(f"/proc/{pid}").exists() for pid in child)


def test_the_debugger(live: Starter) -> None:
    """With the debugger an exception's page is an answer like any other, and its console works as ever."""
    flask = Flask(live, "--debug", target="parent", excuse="raised on purpose")
    running = flask.running
    flask.change(APP.format(version=2) + BUG)
    flask.wait_version(b"2")
    with Connection(flask.address) as one:
        one.ask("/bug/a")
        running.wait_event("begin bug")
        page = get(flask.address, "/bug/now").body.decode()
        secret = re.search(r'SECRET = "(\w+)"', page)
        frame = re.search(r'id="frame-(\d+)"', page)
        pin = re.search(r"Debugger PIN: ([\d-]+)", running.log)
        assert secret is not None
        assert frame is not None
        assert pin is not None
        with Connection(flask.address) as console:
            console.ask(f"/console?__debugger__=yes&cmd=pinauth&pin={pin[1]}&s={secret[1]}")
            answer = console.answer()
        assert b'"auth": true' in answer.body
        cookie = answer.headers["set-cookie"].split(";")[0]
        with Connection(flask.address) as console:
            query = f"__debugger__=yes&cmd=40%2B2&frm={frame[1]}&s={secret[1]}"
            console.ask(f"/console?{query}", Cookie=cookie)
            assert b"42" in console.answer().body
        flask.signal()
        running.wait_log("listener closed")
        running.open_gate("a")
        answer = one.answer()
        assert answer.status == 500
        assert b"raised on purpose" in answer.body
    assert running.wait_gone() == 0


BUG = """
@app.get("/bug/<gate>")
def bug(gate):
    from live_app import event, pass_gate
    event("begin bug")
    if gate != "now":
        pass_gate(gate)
    raise RuntimeError("raised on purpose")
"""
