"""``flask lifecycle verify`` as its users meet it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from flask.cli import FlaskGroup

from flask_lifecycle._verify import client, runner, subject
from tests._fakes import ROOT, serve

BREAKING = str(Path(__file__).with_name("breaking_server.py"))
BOUND = 60.0
# Its first process answers at once. Its child is ready after a moment, and a signal before that makes the exit fail.
TWO_WORKERS = """
import http.server, os, signal, sys, time
from flask_lifecycle._verify.routes import Record
path = os.environ["LIFECYCLE_VERIFY"].split(":", 2)[2]
Record(path).add('settings {"ready": "/", "live": "/"}')
if os.fork() == 0:
    time.sleep(0.5)
    Record(path).add("ready")
    time.sleep(60)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
signal.signal(signal.SIGTERM, lambda *_: os._exit(" ready" not in open(path).read()))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(FlaskGroup(), ["lifecycle", "verify", *arguments])


def test_a_port_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checks do not choose the same port, though nothing listens on it yet."""
    one, two = subject.free_port(), subject.free_port()
    subject.release_port(two)
    monkeypatch.setattr("random.randrange", Mock(side_effect=[one, two]))
    assert subject.free_port() == two


def test_the_list() -> None:
    """It has every scenario, or those that are chosen."""
    listed = verify("--list").output.splitlines()
    assert [line.split()[0] for line in listed] == [each.name for each in runner.choose((), ())]
    assert verify("--list", "--only", "hooks").output.splitlines() == [x for x in listed if x.startswith("hooks/")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Give the command that starts the server after '--'"),
        (("--", "serve"), "The command has no {port}, which is replaced by a free port"),
        (("--only", "accept/que", "--", "serve", "{port}"), "did you mean 'accept/queue'?"),
        (("--skip", "xyz", "--", "serve", "{port}"), "There is no scenario 'xyz'; --list shows all."),
        (("--url", "here", "--", "serve"), "--url 'here' is not of the form http://HOST:PORT."),
        (("--url", "http://localhost:x", "--", "serve"), "is not of the form http://HOST:PORT."),
        (("--url", "localhost:80", "--jobs", "2", "--", "serve"), "leave --jobs at 1."),
        (("--json", "/no/file", "--", "/no/such/command", "{port}"), "'--json': '/no/file': No such file or directory"),
        (("--junit", "/no/file", "--", "/no/such/command", "{port}"), "'--junit': '/no/file': No such file or"),
        (("--", "/no/such/command", "{port}"), "'/no/such/command' cannot be started: No such file"),
        (("--", "false", "{port}"), "The command ended with 1 before it answered. Its last line: it printed nothing"),
        (("--", "true", "{port}"), "The command ended with 0 before it answered; it must stay in the foreground."),
        (("--timeout", "1", "--", "yes", "{port}"), "did not answer on 127.0.0.1:"),
    ],
)  # fmt: skip
def test_misuse(arguments: tuple[str, ...], sentence: str) -> None:
    """What cannot be checked is said in one sentence, with exit code 2; a command that floods its output as well."""
    result = verify(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output


def test_an_address_that_is_taken() -> None:
    """Nothing is started where another process answers."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = verify("--url", f"http://127.0.0.1:{port}", "--", sys.executable, "-m", "http.server", str(port))
    assert result.exit_code == 2
    assert f"Something listens on 127.0.0.1:{port} already; stop it first." in result.output


def test_the_outcomes(tmp_path: Path) -> None:
    """A broken promise fails the levels that include it, and is in the table, the JSON and the JUnit file."""
    files = ("--json", str(tmp_path / "json"), "--junit", str(tmp_path / "junit"), "--keep-logs", str(tmp_path))
    chosen = ("--only", "in-flight/half-head", "--only", "in-flight/running", "--jobs", "2")
    command = ("--", sys.executable, BREAKING, "{port}", "in-flight/half-head")
    result = verify("--require", "accepted", *files, *chosen, *command)
    assert result.exit_code == 1, result.output
    assert "1 holds, 1 broken, 0 not checked. The guarantee 'accepted' is broken." in result.output
    document = json.loads((tmp_path / "json").read_text())
    assert (document["required"], document["holds"]) == ("accepted", False)
    assert {each["scenario"]: each["result"] for each in document["scenarios"]} == {
        "in-flight/half-head": "broken", "in-flight/running": "holds",
    }  # fmt: skip
    suite = ElementTree.parse(tmp_path / "junit").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "0")
    assert (tmp_path / "in-flight-half-head.log").exists()
    assert verify("--require", "started", *chosen, *command).exit_code == 0


def test_a_server_without_a_lifecycle() -> None:
    """Its own paths are asked for, also if it answers every path with 200; what has none is not checked."""
    server = ("--", sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}")
    for command in (server, ("--", sys.executable, "-c", TWO_WORKERS.replace("'settings", "'"), "{port}")):
        result = verify(*command)
        assert result.exit_code == 2
        assert "The application has no Lifecycle, so give the paths of its own work" in result.output
    result = verify("--fast", "/", "--only", "accept/queue", "--only", "in-flight/running", "--require", "all", *server)
    assert result.exit_code == 1
    assert "accept/queue                    all       broken" in result.output
    assert "no path is given for slow" in result.output


def test_all_workers_are_waited_for() -> None:
    """A server whose first worker answers is not stopped before the others are ready."""
    result = verify("--only", "exit/code", "--", sys.executable, "-c", TWO_WORKERS, "{port}")
    assert "1 holds, 0 broken" in result.output


def test_a_client_that_is_reset_while_it_connects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that is closed between the handshake and the return of ``connect`` is seen as gone."""
    monkeypatch.setattr(socket.socket, "connect", Mock(side_effect=ConnectionResetError))
    assert client.is_refused(("127.0.0.1", 1), BOUND)


def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a scenario ends the process under test, and the exit code says so."""
    command = (sys.executable, "-m", "flask", "lifecycle", "verify", "--only", "exit", "--keep-logs", str(tmp_path))
    served = ("--", sys.executable, BREAKING, "{port}", "exit/hung-request")
    with subprocess.Popen([*command, *served], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert next(iter(running.stdout or ())).startswith("scenario")  # now a scenario runs
            running.send_signal(signal.SIGINT)
            assert running.wait(BOUND) == 128 + signal.SIGINT
        finally:
            running.kill()
    mark = f"{BREAKING}\0".encode()
    assert not [
        path for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(running.pid) in path.parent.joinpath("stat").read_text().split() and mark in path.read_bytes()
    ]  # fmt: skip


def test_ctrl_c_while_a_lock_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal interrupts the main thread between two steps of the start of a process."""
    monkeypatch.setattr(Path, "touch", lambda _record: signal.raise_signal(signal.SIGINT))
    result = verify("--", sys.executable, BREAKING, "{port}", "exit/code")
    assert result.exit_code == 128 + signal.SIGINT


def test_the_routes_exist_only_under_verify(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variable that ``verify`` sets, an application has none of its routes and hooks."""

    def rules() -> set[str]:
        app, _lifecycle = serve()
        return {rule.rule for rule in app.url_map.iter_rules() if "abc" in rule.rule}

    assert rules() == set()
    record = tmp_path / "record"
    record.touch()
    monkeypatch.setenv("LIFECYCLE_VERIFY", f"abc::{record}")
    assert "/abc/slow" in rules()
    monkeypatch.setenv("LIFECYCLE_VERIFY", "1")
    with pytest.raises(ValueError, match="LIFECYCLE_VERIFY is set, but not by 'flask lifecycle verify'; unset it"):
        rules()


def test_our_own_command() -> None:
    """``flask lifecycle run`` keeps its promise by its server's claim; ``tests/catalogue`` runs all scenarios."""
    app = str(ROOT / "examples" / "quickstart.py")
    settings = ("env", "FLASK_LIFECYCLE_PROBE_PORT={probe_port}", "FLASK_LIFECYCLE_GRACE_PERIOD=12")
    reload = ("--reload-on", "SIGHUP")
    command = (*settings, sys.executable, "-m", "flask", "--app", app, "lifecycle", "run", *reload, "-p", "{port}")
    chosen = [word for name in ("deploy", "accept/queue", "probes/live-after-close") for word in ("--only", name)]
    result = verify(*chosen, "--jobs", "3", *reload, "--", *command)
    assert result.exit_code == 0, result.output
    assert "3 holds, 0 broken, 0 not checked. The guarantee 'all' holds in these scenarios." in result.output
