"""``flask lifecycle status``, ``drain``, ``cordon`` and ``uncordon``: whom they ask, and what they exit with."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask import Flask
from flask.cli import FlaskGroup

from flask_lifecycle import State
from tests._fakes import raiser, run_python, serve, state_of

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is told by the environment, but for who we are."""
    for name in list(os.environ):
        if name.startswith("FLASK_"):
            monkeypatch.delenv(name)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "alice")


@pytest.fixture
def served() -> Iterator[Flask]:
    """An application that is served on a probe listener of a fixed port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    app, _lifecycle = serve(
        LIFECYCLE_PROBE_PORT=port, LIFECYCLE_PROBE_HOST="127.0.0.1", LIFECYCLE_TOKEN=TOKEN, LIFECYCLE_DETAILS="token"
    )
    state_of(app).startup.run()
    yield app
    state_of(app).end()


def url_of(app: Flask) -> str:
    return f"http://127.0.0.1:{state_of(app).settings.probe_port}"


def invoke(app: Flask | None, *arguments: str, **environ: str) -> Result:
    """Run a command as ``flask`` would, of an application or of none."""
    if app is not None:
        return app.test_cli_runner().invoke(args=["lifecycle", *arguments], env=environ)
    return CliRunner().invoke(FlaskGroup(), ["lifecycle", *arguments], env=environ)


def refused(result: Result, sentence: str, code: int = 2) -> None:
    """One sentence on stderr, and nothing else."""
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.splitlines()[-1].removeprefix("Error: ") == sentence
    assert "Traceback" not in result.stderr


def test_status_of_the_application_itself(served: Flask) -> None:
    """Without a URL the probe listener of the application's settings is asked, with its token."""
    result = invoke(served, "status")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"READY  pass  {url_of(served)}/healthcheck\nreason     started\n")
    state_of(served).machine.state = State.NOT_READY
    assert invoke(served, "status").exit_code == 1


def test_status_by_url_needs_no_application(served: Flask) -> None:
    """With a URL no application need be there; without a token, which a named one has, the status alone is told."""
    result = invoke(None, "status", url_of(served))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == f"pass  {url_of(served)}/healthcheck"
    for arguments in (["--token", TOKEN], []):
        environ = {} if arguments else {"FLASK_LIFECYCLE_TOKEN": TOKEN}
        result = invoke(None, "status", url_of(served), "--json", *arguments, **environ)
        assert json.loads(result.stdout)["state"] == "READY"
    assert invoke(served, "status", f"{url_of(served)}/healthcheck").stdout.startswith("READY")


def test_status_by_url_of_an_application_that_cannot_be_loaded(served: Flask) -> None:
    """An application that was named and cannot be loaded is told of, and the URL is asked all the same."""
    broken = FlaskGroup(create_app=raiser(ValueError("no\x1bdatabase")))
    result = CliRunner().invoke(broken, ["lifecycle", "status", url_of(served)])
    assert result.exit_code == 0
    assert result.stdout.startswith("pass")
    assert "The application cannot be loaded, so its token is not known: no\\x1bdatabase\n" in result.stderr


OWN = "http://127.0.0.1:5000/healthcheck"
FIXED = {"LIFECYCLE_PROBE_PORT": 9000}


@pytest.mark.parametrize(
    ("config", "arguments", "url", "interval", "timeout"),
    [
        # Without a fixed probe port the port is asked that ``run`` listens on by default.
        ({"LIFECYCLE_URL_PREFIX": "/ops"}, [], "http://127.0.0.1:5000/ops/healthcheck", None, 5.0),
        ({"LIFECYCLE_PROBE_PORT": 0}, [], OWN, None, 5.0),
        # A listener on every address is asked on loopback.
        ({**FIXED, "LIFECYCLE_PROBE_HOST": "0.0.0.0"}, [], "http://127.0.0.1:9000/healthcheck", None, 5.0),
        ({**FIXED, "LIFECYCLE_PROBE_HOST": "::"}, [], "http://[::1]:9000/healthcheck", None, 5.0),
        ({**FIXED, "LIFECYCLE_PROBE_HOST": "10.0.0.1"}, [], "http://10.0.0.1:9000/healthcheck", None, 5.0),
        ({}, ["--watch"], OWN, 2.0, 5.0),
        ({}, ["--watch", "0.5", "--timeout", "1m"], OWN, 0.5, 60.0),
        ({}, ["--watch", "0.001"], OWN, 0.1, 5.0),
        ({}, ["--watch", "web-1:80/x"], "http://web-1:80/x", 2.0, 5.0),
        ({}, ["web-1", "--watch", "10s"], "http://web-1:80/healthcheck", 10.0, 5.0),
        # A URL needs no scheme, and what is behind its path does not matter.
        ({}, ["127.0.0.1:9000"], "http://127.0.0.1:9000/healthcheck", None, 5.0),
        ({}, ["https://shop.example/ops/"], "https://shop.example:443/ops", None, 5.0),
        ({}, ["http://[::1]:9000/healthcheck?x=1"], "http://[::1]:9000/healthcheck", None, 5.0),
    ],
)
def test_whom_status_asks(
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    arguments: list[str],
    url: str,
    interval: float | None,
    timeout: float,
) -> None:
    """--watch takes a duration or none, also where a URL stands behind it."""
    asked: list[Any] = []

    def status(url: Any, token: str | None, timeout: float, **options: Any) -> int:
        asked.append((str(url), token, timeout, options))
        return 0

    monkeypatch.setattr("flask_lifecycle._cli.operators.show_status", status)
    invoke(serve(**config)[0], "status", *arguments)
    assert asked == [(url, None, timeout, {"as_json": False, "interval": interval})]


def test_nobody_and_nonsense(served: Flask) -> None:
    """Where there is nobody, or no health document, the exit code is 2 with one sentence."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    refused(invoke(None, "status", url), f"{url}/healthcheck does not answer: the connection is refused.")
    drain = ("drain", url, "--token", TOKEN)
    refused(invoke(None, *drain), f"{url}/lifecycle/drain does not answer: the connection is refused.")
    url = f"{url_of(served)}/nothing"
    refused(
        invoke(None, "status", url), f"{url} answered 404, which is no health document; give the URL of a health check."
    )
    assert invoke(None, "status").exit_code == 2


def test_cordon_and_uncordon(served: Flask) -> None:
    """A cordon and its end are asked of the application's own probe listener, with its token and the login name."""
    result = invoke(served, "cordon", "--for", "90m")
    assert (result.exit_code, result.output) == (0, "cordoned by alice for 1h30m\n")
    assert state_of(served).machine.reason == "cordoned by alice for 1h30m"
    assert invoke(None, "status", url_of(served)).exit_code == 1
    result = invoke(served, "uncordon", "--by", "bob")
    assert (result.exit_code, result.output) == (0, "uncordoned\n")
    result = invoke(None, "cordon", url_of(served), "--for", "5", "--by", "carol", FLASK_LIFECYCLE_TOKEN=TOKEN)
    assert (result.exit_code, result.output) == (0, "cordoned by carol for 5s\n")
    invoke(served, "uncordon")


def test_without_the_token(served: Flask) -> None:
    """A wrong token, or none, is one sentence with exit code 2."""
    url = url_of(served)
    refused(
        invoke(None, "uncordon", url, "--token", "wrong"),
        f"{url}/lifecycle/uncordon does not exist for this token: the token is wrong, or 'LIFECYCLE_TOKEN' is not"
        " set there, or this is not the probe listener.",
    )
    refused(
        invoke(None, "uncordon", url),
        "This needs the token of the process; pass --token, or set FLASK_LIFECYCLE_TOKEN, which others cannot see.",
    )


DURATION = "must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d, not"
SUCH_AS = "give one such as 'http://127.0.0.1:9000'."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["cordon"], "Missing option '--for'."),
        (["cordon", "--for", "0"], "'--for' must be longer than zero, such as '10m', not '0'."),
        (["cordon", "--for", "8d"], "'--for' must be at most '7d', not '8d'; renew it then."),
        (["cordon", "--for", "1x"], f"'--for' {DURATION} '1x'."),
        (["status", "--watch", "1ms"], f"'--watch' {DURATION} '1ms'."),
        (["status", "web-1", "--watch", "web-2"], f"'--watch' {DURATION} 'web-2'."),
        (
            ["drain", "--by", "a b"],
            "'--by' must be a name of up to 64 visible characters without blanks, such as 'alice', not 'a b'.",
        ),
        (["drain", "http://a", "--dir", "/tmp"], "A URL and --dir were given; give one of them."),
        (["drain", "--dir", "/tmp", "--wait"], "--wait needs a probe listener, which shows the end; leave it out."),
        (
            ["drain"],
            "The application has neither a fixed 'LIFECYCLE_PROBE_PORT' nor a 'LIFECYCLE_CONTROL_DIR'; give the URL of"
            " its probe listener, or --dir.",
        ),
        *(
            (["drain", url], f"'{ascii(url)[1:-1]}' is not a URL of a process; {SUCH_AS}")
            for url in (
                "", "http://", "ftp://a\x1b", "http://a:b", "http://a:99999", "http://[::1", "http://me:pass@a", "a\nb"
            )
        ),
    ],
)  # fmt: skip
def test_bad_usage(arguments: list[str], sentence: str) -> None:
    """What does not answer is one sentence with exit code 2, and nobody is asked."""
    refused(invoke(serve()[0], *arguments), sentence)


def test_a_login_name_that_can_be_none(served: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login name that is no name is not used."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "a b")
    invoke(served, "cordon", "--for", "5m")
    assert state_of(served).machine.reason == "cordoned by operator for 5m"
    invoke(served, "uncordon")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "control"
    made.mkdir(mode=0o755)
    return made


def test_by_file(directory: Path) -> None:
    """Where there is no probe port the application's control directory is written to, whole files, readable for all."""
    app, _lifecycle = serve(LIFECYCLE_CONTROL_DIR=str(directory))
    result = invoke(app, "cordon", "--for", "90m")
    sentence = "the process acts on it within two seconds\n"
    assert (result.exit_code, result.output) == (0, f"wrote {directory}/cordon; {sentence}")
    assert (directory / "cordon").read_text() == "1h30m by alice\n"
    assert stat.S_IMODE((directory / "cordon").stat().st_mode) == 0o644
    state = state_of(app)
    state.startup.run()
    directory_feature: Any = state.features["control directory"]
    directory_feature.look()
    assert state.machine.reason == "cordoned by alice for 1h30m"
    result = invoke(app, "uncordon")
    assert (result.exit_code, result.output) == (0, f"removed {directory}/cordon; {sentence}")
    directory_feature.look()
    assert state.machine.state is State.READY
    sentence = f"there is no cordon by file in '{directory}'; end a cordon by HTTP with its URL\n"
    assert invoke(app, "uncordon").output == sentence
    assert invoke(app, "drain").exit_code == 0
    assert os.listdir(directory) == ["drain"]
    directory_feature.look()
    assert "drain requested by the file" in state.process.shutdown.wait().reason


def test_by_file_without_an_application(directory: Path, tmp_path: Path) -> None:
    """--dir needs no application, and each drain is another file, also over one that is stale."""
    # A link there is not followed: its owner cannot make an operator who is root write to another file.
    other = tmp_path / "other"
    other.write_text("kept")
    (directory / "drain").symlink_to(other)
    numbers = set()
    for _ in range(2):
        assert invoke(None, "drain", "--dir", str(directory), "--by", "bob").exit_code == 0
        assert (other.read_text(), (directory / "drain").read_text()) == ("kept", "by bob\n")
        numbers.add((directory / "drain").lstat().st_ino)
    assert len(numbers) == 2


def test_a_directory_that_cannot_be_written_to(directory: Path) -> None:
    """What cannot be written or removed is one sentence, and leaves nothing behind."""
    (directory / "cordon").mkdir()
    gone, this = directory / "gone", "is this the control directory?"
    for where, arguments, sentence in (
        (gone, ("drain",), f"'{gone}/drain' cannot be written (No such file or directory); {this}"),
        (gone, ("uncordon",), f"'{gone}' is not a directory; {this}"),
        (directory, ("cordon", "--for", "5m"), f"'{directory}/cordon' cannot be written (Is a directory); {this}"),
        (directory, ("uncordon",), f"'{directory}/cordon' cannot be removed (Is a directory)."),
    ):
        refused(invoke(None, *arguments, "--dir", str(where)), sentence)
    assert os.listdir(directory) == ["cordon"]


def test_they_are_imported_on_demand() -> None:
    """Commands, operators' requests, the status page and monitors are not imported before they are needed."""
    code = (
        "import sys; from flask import Flask; from flask_lifecycle import Lifecycle; app = Flask('x'); Lifecycle(app);"
        "app.test_client().get('/livez'); print(sorted(m for m in sys.modules if m.startswith('flask_lifecycle.')))"
    )
    modules = run_python(code, environ={"NOTIFY_SOCKET": ""}).stdout
    commands = ("_cli.client", "_cli.operators", "_cli.status", "_operators.http", "_operators.files", "_status.page")
    for name in (*commands, "_monitors.systemd", "_monitors.stuck_workers", "_monitors.crash"):
        assert f"'flask_lifecycle.{name}'" not in modules
    assert "'flask_lifecycle._cli'" in modules
