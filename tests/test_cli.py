"""``flask lifecycle run``: what reaches the server, what is shown. Bad options are in test_bad_input."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

from flask_lifecycle import HookRecord, Lifecycle, ShutdownReport, _activation
from flask_lifecycle._cli import group
from flask_lifecycle._run_cli import DrainLine, show_log
from tests._fakes import make_app, until

LOGGER = logging.getLogger("flask_lifecycle")


class Terminal(io.StringIO):
    """A stream that may say that it is a terminal."""

    def __init__(self, *, tty: bool = True) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


class FakeState:
    """What the commands ask of an application."""

    def __init__(self, hooks: tuple[HookRecord, ...] = (), error: Exception | None = None) -> None:
        self.draining = threading.Event()
        self.in_flight = 3
        self.calls: list[tuple[Any, ...]] = []
        self.report = ShutdownReport("test", None, (), (), hooks, 0.0)
        self.error = error

    def remaining(self) -> float | None:
        return 7.4 if self.draining.is_set() else None

    def run(
        self,
        app: Any,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
        generation: Any = None,
    ) -> ShutdownReport:
        self.calls.append((app, host, port, server, options))
        if self.error is not None:
            raise self.error
        return self.report


def invoke(state: FakeState, *arguments: str) -> tuple[Flask, Result]:
    """Run the command as ``flask`` would."""
    app = Flask("app")
    app.extensions["lifecycle"] = state
    app.cli.add_command(group)
    return app, app.test_cli_runner().invoke(args=["lifecycle", "run", *arguments])


@pytest.mark.parametrize(
    ("arguments", "host", "port", "server", "options"),
    [
        ([], None, None, "waitress", {}),
        (["-h", "::1", "-p", "0"], "::1", 0, "waitress", {}),
        (["--host", "0.0.0.0", "--port", "80", "--server", "werkzeug"], "0.0.0.0", 80, "werkzeug", {}),
        (
            ["--threads", "8", "--connection-limit", "500"],
            None,
            None,
            "waitress",
            {"threads": 8, "connection_limit": 500},
        ),
        (
            ["--listen", "127.0.0.1:1", "--listen", "[::1]:2", "--unix-socket", "/tmp/s", "--unix-socket-perms", "660"],
            None,
            None,
            "waitress",
            {"listen": "127.0.0.1:1 [::1]:2", "unix_socket": "/tmp/s", "unix_socket_perms": "660"},
        ),
        (
            ["-o", "max-request-header-size=1000", "--option", "ident=a=b"],
            None,
            None,
            "waitress",
            {"max_request_header_size": "1000", "ident": "a=b"},
        ),
        (["--fd", "7", "--fd", "8"], None, None, "waitress", {"sockets": ["socket 7", "socket 8"]}),
        (["--threads", "2", "-o", "threads=3"], None, None, "waitress", {"threads": "3"}),
        (
            ["--channel-timeout", "9", "--backlog", "10", "--max-request-body-size", "11", "--url-scheme", "https"],
            None,
            None,
            "waitress",
            {"channel_timeout": 9, "backlog": 10, "max_request_body_size": 11, "url_scheme": "https"},
        ),
        (
            ["--url-prefix", "/shop", "--ident", "x", "--trusted-proxy", "*", "--trusted-proxy-count", "2"],
            None,
            None,
            "waitress",
            {"url_prefix": "/shop", "ident": "x", "trusted_proxy": "*", "trusted_proxy_count": 2},
        ),
        (
            ["--trusted-proxy-headers", "x-forwarded-for forwarded"],
            None,
            None,
            "waitress",
            {"trusted_proxy_headers": "x-forwarded-for forwarded"},
        ),
    ],
)
def test_options_reach_run(
    arguments: list[str],
    host: str | None,
    port: int | None,
    server: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options are named as in ``flask run`` and ``waitress-serve`` and reach run(); what is not given does not."""
    monkeypatch.setattr(_activation, "listener", lambda number: f"socket {number}")
    state = FakeState()
    app, result = invoke(state, *arguments)
    assert (result.exit_code, result.output) == (0, "")
    assert state.calls == [(app, host, port, server, options)]


def test_the_exit_code_is_the_reports() -> None:
    """The command leaves with the report's exit code."""
    state = FakeState(hooks=(HookRecord("pool", "shutdown", "failed", 0.0, "x"),))
    assert invoke(state)[1].exit_code == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("wrong value."), "wrong value."),
        (RuntimeError("not installed."), "not installed."),
        (OSError(98, "port taken."), "port taken."),
        (OSError("without a number."), "without a number."),
    ],
)
def test_errors_are_one_sentence(error: Exception, text: str) -> None:
    """What run() refuses goes to stderr as its sentence, with exit 2 and no traceback."""
    _app, result = invoke(FakeState(error=error))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {text}"
    assert "Traceback" not in result.stderr


def test_other_errors_are_not_hidden() -> None:
    """An exception of the application is not made an error of usage."""
    _app, result = invoke(FakeState(error=ZeroDivisionError("a defect")))
    assert isinstance(result.exception, ZeroDivisionError)


def test_help_names_every_option() -> None:
    """The help tells what each option is for, and which are waitress' own."""
    _app, result = invoke(FakeState(), "--help")
    assert result.exit_code == 0
    assert "Serve until SIGTERM or Ctrl-C" in result.output
    for option in ("--host", "--port", "--server", "--listen", "--unix-socket", "--threads", "--option"):
        assert option in result.output


def test_the_commands_belong_to_the_application() -> None:
    """init_app gives the application the command group."""
    app = make_app()
    Lifecycle(app)
    result = app.test_cli_runner().invoke(args=["lifecycle", "--help"])
    assert "Serve the application, and stop it without losing a request." in result.output


# -- the log ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has set logging up; what the test sets up is taken back."""
    level = LOGGER.level
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        patch.setattr(LOGGER, "handlers", [])
        yield
    LOGGER.setLevel(level)


@pytest.mark.parametrize(
    ("tty", "line"), [(False, "flask_lifecycle: hello\n"), (True, "\r\x1b[Kflask_lifecycle: hello\n")]
)
def test_the_log_is_shown(monkeypatch: pytest.MonkeyPatch, tty: bool, line: str) -> None:
    """Our log is shown line by line; on a terminal a record is written over the drain's line."""
    stream = Terminal(tty=tty)
    with silent(monkeypatch):
        show_log(stream)
        LOGGER.info("hello")
        LOGGER.debug("not this")
    assert stream.getvalue() == line


@pytest.mark.parametrize("logger", [LOGGER, logging.getLogger()])
def test_an_application_that_logs_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch, logger: logging.Logger) -> None:
    """If the application has set logging up itself, the command adds nothing."""
    stream = Terminal()
    with silent(monkeypatch):
        logger.addHandler(logging.NullHandler())
        show_log(stream)
        LOGGER.warning("hello")
        assert len(logging.getLogger().handlers + LOGGER.handlers) == 1
    assert stream.getvalue() == ""


# -- the line of a drain ------------------------------------------------------------------------------------------


def test_the_line_of_a_drain() -> None:
    """On a terminal a drain shows how many are in flight, the seconds left and how to force, and clears its line."""
    state, stream = FakeState(), Terminal()
    with DrainLine(state, stream):
        assert stream.getvalue() == ""
        state.draining.set()
        until(lambda: "force" in stream.getvalue())
        state.in_flight = 1
        until(lambda: "1 in flight" in stream.getvalue())
    text = stream.getvalue()
    assert text.startswith("\r\x1b[K3 in flight, 7 s left (Ctrl-C again to force)")
    assert text.endswith("\r\x1b[K")


def test_no_line_without_a_terminal() -> None:
    """Elsewhere than on a terminal nothing is drawn and no thread is started."""
    state, stream = FakeState(), Terminal(tty=False)
    state.draining.set()
    before = threading.active_count()
    with DrainLine(state, stream):
        assert threading.active_count() == before
    assert stream.getvalue() == ""


def test_no_line_without_a_stream() -> None:
    """Where standard error was closed at the start it is none, and the command serves all the same."""
    before = threading.active_count()
    with DrainLine(FakeState(), None):
        assert threading.active_count() == before


def test_no_line_before_a_drain() -> None:
    """A command that ends without a drain leaves nothing but a cleared line, and its thread ends at once."""
    state, stream = FakeState(), Terminal()
    with DrainLine(state, stream):
        pass
    assert stream.getvalue() == "\r\x1b[K"
