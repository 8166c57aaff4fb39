"""``flask lifecycle run``: what reaches the server, what is shown. Bad options are in test_bad_input."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from flask.cli import FlaskGroup

from flask_lifecycle import HookRecord, ShutdownReport
from flask_lifecycle._core.log import show_log
from tests._fakes import serve, until
from tests.cli.test_status import Terminal

LOGGER = logging.getLogger("flask_lifecycle")


class FakeState:
    """What the commands ask of an application."""

    def __init__(self, hooks: tuple[HookRecord, ...] = (), error: Exception | None = None) -> None:
        self.draining = threading.Event()
        self.requests, self.work = 3, 0
        self.process: Any = types.SimpleNamespace(shutdown=self, relay=types.SimpleNamespace(installed=frozenset()))
        self.phase = "hooks"
        self.signal: int | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.report = ShutdownReport("test", None, (), (), hooks, 0.0)
        self.error = error
        self.during: Callable[[], Any] = lambda: None  # while it serves

    def unfinished(self) -> Any:
        return types.SimpleNamespace(requests=[1] * self.requests, work=[1] * self.work)

    def remaining(self) -> float | None:
        return 7.4 if self.draining.is_set() else None

    def run(
        self, app: Any, host: Any, port: Any, server: str, options: Any, restart_worker: Any = None
    ) -> ShutdownReport:
        self.calls.append((app, host, port, server, options))
        self.during()
        if self.error is not None:
            raise self.error
        return self.report


def invoke(state: FakeState, *arguments: str) -> tuple[Flask, Result]:
    """Run the command as ``flask`` would."""
    app, _lifecycle = serve()
    app.extensions["lifecycle"] = state
    return app, app.test_cli_runner().invoke(args=["lifecycle", "run", *arguments])


@pytest.mark.parametrize(
    ("arguments", "where", "options"),
    [
        ("", (None, None, "waitress"), {}),
        ("-h ::1 -p 0", ("::1", 0, "waitress"), {}),
        ("--host 0.0.0.0 --port 80 --server werkzeug", ("0.0.0.0", 80, "werkzeug"), {}),
        (
            "--listen 127.0.0.1:1 --listen [::1]:2 --unix-socket /tmp/s --unix-socket-perms 660",
            (None, None, "waitress"),
            {"listen": "127.0.0.1:1 [::1]:2", "unix_socket": "/tmp/s", "unix_socket_perms": "660"},
        ),
        (
            "--threads 2 -o threads=3 -o max-request-header-size=1000 --option ident=a=b",
            (None, None, "waitress"),
            {"threads": "3", "max_request_header_size": "1000", "ident": "a=b"},
        ),
        (
            "--threads 8 --connection-limit 500 --channel-timeout 9 --backlog 10 --max-request-body-size 11"
            " --url-scheme https --url-prefix /shop --ident x --trusted-proxy * --trusted-proxy-count 2"
            " --trusted-proxy-headers forwarded",
            (None, None, "waitress"),
            {
                "threads": 8, "connection_limit": 500, "channel_timeout": 9, "backlog": 10, "max_request_body_size": 11,
                "url_scheme": "https", "url_prefix": "/shop", "ident": "x", "trusted_proxy": "*",
                "trusted_proxy_count": 2, "trusted_proxy_headers": "forwarded",
            },
        ),
    ],
)  # fmt: skip
def test_options_reach_run(arguments: str, where: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Options are named as in ``flask run`` and ``waitress-serve`` and reach run(); what is not given does not."""
    state = FakeState()
    app, result = invoke(state, *arguments.split())
    assert (result.exit_code, result.output) == (0, "")
    assert state.calls == [(app, *where, options)]


def test_descriptors_reach_run() -> None:
    """Each descriptor is a listening socket, which run() gets."""
    state = FakeState()
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        numbers = [os.dup(each.fileno()) for each in (one, two)]
        _app, result = invoke(state, *(f"--fd={number}" for number in numbers))
    assert (result.exit_code, result.output) == (0, "")
    [(*_where, options)] = state.calls
    assert {name: [sock.detach() for sock in given] for name, given in options.items()} == {"sockets": numbers}
    for number in numbers:
        os.close(number)


def test_how_the_command_ends() -> None:
    """The command leaves with the report's exit code; an exception of the application is no error of usage."""
    state = FakeState(hooks=(HookRecord("pool", "shutdown", "failed", 0.0, "x"),))
    assert invoke(state)[1].exit_code == 1
    _app, result = invoke(FakeState(error=ZeroDivisionError("a defect")))
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (ValueError("wrong value."), "wrong value.", 2),
        (RuntimeError("not installed."), "not installed.", 2),
        (OSError(98, "port taken."), "port taken.", 1),
        (OSError("without a number."), "without a number.", 1),
    ],
)
def test_errors_are_one_sentence(error: Exception, text: str, code: int) -> None:
    """What run() refuses is its sentence on stderr: exit 2 for a wrong command line, 1 for a start-up that fails."""
    _app, result = invoke(FakeState(error=error))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.splitlines()[-1] == f"Error: {text}"
    assert "Traceback" not in result.stderr


def test_help() -> None:
    """init_app gives the application the group, which lists its commands, each of which has a help."""
    app, _lifecycle = serve()
    result = app.test_cli_runner().invoke(args=["lifecycle", "--help"])
    assert "Serve, inspect and stop an application without dropping requests." in result.output
    listed = re.findall(r"^  (\w+) ", result.output.partition("Commands:")[2], re.MULTILINE)
    assert listed == ["cordon", "doctor", "drain", "manifest", "run", "status", "uncordon", "verify"]
    assert app.test_cli_runner().invoke(args=["lifecycle", "nothing"]).exit_code == 2
    assert "Serve until SIGTERM or Ctrl-C" in app.test_cli_runner().invoke(args=["lifecycle", "run", "--help"]).output


@pytest.mark.parametrize(
    ("prepare", "levels"),
    [
        (lambda: None, ["INFO", "ERROR"]),
        # A level that the application has given our logger holds, and shows as much as it says.
        (lambda: LOGGER.setLevel(logging.DEBUG), ["DEBUG", "INFO", "ERROR"]),
        # A handler that takes only errors, as one that mails them, does not count.
        (lambda: logging.getLogger().addHandler(logging.NullHandler(logging.ERROR)), ["INFO", "ERROR"]),
        # An application that has set logging up itself is left alone.
        (lambda: logging.getLogger().addHandler(logging.NullHandler()), []),
        (lambda: LOGGER.addHandler(logging.NullHandler()), []),
    ],
)
def test_the_log_is_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prepare: Callable[[], Any], levels: list[str]
) -> None:
    """Where nothing would handle our log, run() and the command show it on standard error, from INFO on; once."""
    stream = Terminal()
    with monkeypatch.context() as patch, caplog.at_level(logging.NOTSET, LOGGER.name):
        for logger in (logging.getLogger(), LOGGER):
            patch.setattr(logger, "handlers", [])
        patch.setattr(sys, "stderr", stream)
        prepare()
        show_log()
        show_log()
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            LOGGER.log(level, logging.getLevelName(level))
    assert stream.getvalue().splitlines() == [f"flask_lifecycle: {level}" for level in levels]


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run the command with standard error on a terminal, and something while it serves; return the lines."""

    def run(state: FakeState, during: Callable[[Terminal], Any], stream: Terminal | None = None) -> list[str]:
        stream = stream or Terminal()
        state.during = lambda: during(stream)
        app, _lifecycle = serve()
        app.extensions["lifecycle"] = state
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            with pytest.raises(SystemExit):
                FlaskGroup(create_app=lambda: app).main(["lifecycle", "run"])
        return stream.getvalue().splitlines()

    return run


@pytest.mark.parametrize(
    ("signum", "installed", "way_out"),
    [
        (signal.SIGINT, {signal.SIGTERM, signal.SIGINT}, " (Ctrl-C again to force)"),
        (signal.SIGTERM, {signal.SIGTERM, signal.SIGINT}, " (Ctrl-C to force)"),
        (None, {signal.SIGTERM, signal.SIGINT}, ""),  # shutdown() or an operator: Ctrl-C joins
        (signal.SIGTERM, {signal.SIGTERM}, ""),  # LIFECYCLE_SIGNALS without it
    ],
)
def test_the_countdown(on_terminal: Any, signum: int | None, installed: set[int], way_out: str) -> None:
    """On a terminal lines say what a shutdown waits for (requests, work or a phase), how long, and what Ctrl-C does."""
    state = FakeState()
    state.process.shutdown.signal, state.process.relay.installed = signum, frozenset(installed)
    wanted = {
        (3, 0): "3 requests in flight",
        (1, 1): "1 request and 1 work item in flight",
        (0, 2): "2 work items in flight",
        (0, 0): "nothing in flight, running on_shutdown functions",
    }

    def during(stream: Terminal) -> None:
        assert stream.getvalue() == ""
        state.draining.set()
        for (state.requests, state.work), line in wanted.items():
            until(lambda line=line: line in stream.getvalue())  # type: ignore[misc]

    assert on_terminal(state, during) == [f"{line}, 7 s left{way_out}" for line in wanted.values()]


def test_a_terminal_that_has_gone(on_terminal: Any) -> None:
    """What can no longer be written stops neither the command nor a later line."""

    class Gone(Terminal):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise OSError(5, "Input/output error")

    state = FakeState()

    def during(stream: Gone) -> None:
        state.draining.set()
        until(lambda: stream.tries == 1)
        state.requests = 1
        until(lambda: stream.tries == 2)

    on_terminal(state, during, Gone())


def test_no_countdown_without_a_terminal(on_terminal: Any) -> None:
    """Elsewhere than on a terminal nothing is said and no thread is started."""
    state, before, threads = FakeState(), threading.active_count(), list[int]()
    state.draining.set()
    lines = on_terminal(state, lambda _stream: threads.append(threading.active_count()), Terminal(tty=False))
    assert (lines, threads) == ([], [before])
