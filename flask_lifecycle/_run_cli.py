"""``flask lifecycle run``: its options, and what it shows on a terminal.

Imported when it is wanted, as making a command of so many options takes longer than making the rest of an application.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

from . import _activation

if TYPE_CHECKING:
    from ._handover import Generation

logger = logging.getLogger("flask_lifecycle")

# How often the line of a drain is drawn anew on a terminal.
_REDRAW = 0.2

# What others than waitress know as well; the rest is waitress' own.
_SHARED = {
    "threads": "waitress, cheroot",
    "backlog": "waitress, cheroot, gevent",
    "max-request-body-size": "waitress, cheroot",
}
# As `waitress-serve` names them; everything else goes by --option.
_WAITRESS: tuple[tuple[str, Any, str], ...] = (
    ("threads", click.IntRange(1), "How many threads run the application."),
    ("connection-limit", click.IntRange(1), "How many connections are accepted at once."),
    ("channel-timeout", click.IntRange(1), "Seconds after which an idle connection is closed."),
    ("backlog", click.IntRange(1), "How many connections the kernel queues."),
    ("max-request-body-size", click.IntRange(1), "Largest request body, in bytes."),
    ("unix-socket-perms", str, "Permissions of the Unix socket, octal."),
    ("url-scheme", str, "What wsgi.url_scheme says by default."),
    ("url-prefix", str, "The path that the application is mounted at."),
    ("ident", str, "What the Server header says."),
    ("trusted-proxy", str, "The proxy whose forwarding headers are trusted."),
    ("trusted-proxy-count", click.IntRange(1), "How many proxies are chained."),
    ("trusted-proxy-headers", str, "Which headers of it, separated by spaces."),
)


class Served(Protocol):
    """What the commands ask of an application that has a ``Lifecycle``: its ``extensions["lifecycle"]``."""

    draining: threading.Event

    @property
    def in_flight(self) -> int: ...
    def remaining(self) -> float | None: ...
    def run(
        self,
        app: Any,
        host: str | None,
        port: int | None,
        server: str,
        options: dict[str, Any],
        generation: Generation | None = None,
    ) -> Any: ...


def _waitress_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, kind, text in reversed(_WAITRESS):
        text = f"{text}  [{_SHARED.get(name, 'waitress')}]"
        command = click.option(f"--{name}", type=kind, default=None, help=text)(command)
    return command


def _key_values(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for value, (key, equals, _) in zip(values, pairs, strict=True):
        if not key or not equals:
            raise click.BadParameter(f"'{value}' is not of the form KEY=VALUE.", context, parameter)
    return {key.replace("-", "_"): value for key, _, value in pairs}


def commands(load: Callable[[Any], tuple[Any, Served]]) -> dict[str, click.Command]:
    """The command, by its name."""
    from flask.cli import pass_script_info

    @click.command("run")
    @click.option("--host", "-h", default=None, help="The address to listen on.  [default: 127.0.0.1]")
    @click.option(
        "--port",
        "-p",
        type=click.IntRange(0, 65535),
        default=None,
        help="The port; 0 takes a free one.  [default: 5000]",
    )
    @click.option(
        "--server", default="waitress", show_default=True, help="The server: waitress, werkzeug, cheroot or gevent."
    )
    @click.option("--listen", multiple=True, metavar="HOST:PORT", help="An address to listen on; may be repeated.")
    @click.option("--unix-socket", default=None, metavar="PATH", help="A Unix socket to listen on.")
    @click.option(
        "--fd", "descriptors", type=click.IntRange(0), multiple=True, metavar="N",
        help="The descriptor of a listening socket that was passed on; may be repeated.",
    )  # fmt: skip
    @click.option("--reuse-port", is_flag=True, help="Listen beside another process at the same address.")
    @click.option(
        "--reload-on",
        type=click.Choice(["SIGHUP", "SIGUSR1", "SIGUSR2"]),
        help="On this signal a new process takes the place of the one that serves, and nobody is refused.",
    )
    @click.option(
        "--reload-within",
        type=click.FloatRange(0, 86400, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How long a new process may take until it is ready; if it takes longer, the old one goes on serving.",
    )
    @_waitress_options
    @click.option(
        "--option", "-o", "others", multiple=True, metavar="KEY=VALUE", callback=_key_values,
        help="Any other option of the server; may be repeated.",
    )  # fmt: skip
    @pass_script_info
    def run(
        info: Any,
        /,
        host: str | None,
        port: int | None,
        server: str,
        listen: tuple[str, ...],
        unix_socket: str | None,
        descriptors: tuple[int, ...],
        reuse_port: bool,
        reload_on: str | None,
        reload_within: float,
        others: dict[str, str],
        **options: Any,
    ) -> None:
        """Serve until SIGTERM or Ctrl-C, then drain: no request that was handed to this process goes unanswered."""
        given = {key: value for key, value in options.items() if value is not None} | others
        if listen:
            given["listen"] = " ".join(listen)
        if unix_socket is not None:
            given["unix_socket"] = unix_socket
        if reuse_port:
            given["reuse_port"] = True
        generation = None
        if reload_on is not None:
            from . import _handover

            generation = _handover.place()
            if generation is None:
                sys.exit(_supervise(server, host, port, given, descriptors, reload_on, reload_within))
            host = port = None
            given = {key: value for key, value in given.items() if key not in ("listen", "unix_socket", "reuse_port")}
            given["sockets"] = generation.listeners
            descriptors = ()
        app, served = load(info)
        show_log(sys.stderr)
        with DrainLine(served, sys.stderr), _one_sentence():
            if descriptors:
                given["sockets"] = _activation.listeners(descriptors)
            report = served.run(app, host, port, server, given, generation)
        # One more signal while the interpreter ends would make a clean stop look like a killed process.
        for signum in {signal.SIGTERM, signal.SIGINT, report.signal or signal.SIGTERM}:
            atexit.register(signal.signal, signum, signal.SIG_IGN)
        sys.exit(report.exit_code)

    return {"run": run}


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Show an error without its traceback."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        message = error.strerror if isinstance(error, OSError) else str(error)
        raise click.UsageError(message or str(error)) from None


def _supervise(
    server: str,
    host: str | None,
    port: int | None,
    options: dict[str, Any],
    descriptors: tuple[int, ...],
    reload_on: str,
    patience: float,
) -> int:
    """Open the listeners and have others serve them; the application is not loaded here."""
    from . import _supervisor

    with _one_sentence():
        ours, given = _supervisor.open_listeners(server, host, port, options, descriptors)
    show_log(sys.stderr)
    return _supervisor.Supervisor(ours, given, signal.Signals[reload_on], patience).run()


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # subscriptable from Python 3.11 on
    """Writes a record on a line of its own, over a drain's line if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        clear = "\r\x1b[K" if self.stream.isatty() else ""
        return clear + super().format(record)


def show_log(stream: TextIO) -> None:
    """Show our own log on a stream, unless the application has set logging up itself."""
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = _Handler(stream)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


class DrainLine:
    """While a shutdown is under way, one line on a terminal says how it goes. Elsewhere it does nothing."""

    def __init__(self, served: Served, stream: TextIO | None) -> None:
        self._served = served
        self._stream: Any = stream
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="lifecycle-drain-line", daemon=True)

    def __enter__(self) -> None:
        if self._stream is not None and self._stream.isatty():  # None: it was closed
            self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _draw(self) -> None:
        while not self._over.is_set():
            if self._served.draining.wait(_REDRAW):
                left = self._served.remaining() or 0.0
                line = f"{self._served.in_flight} in flight, {left:.0f} s left (Ctrl-C again to force)"
                self._stream.write(f"\r\x1b[K{line}")
                self._stream.flush()
                self._over.wait(_REDRAW)
