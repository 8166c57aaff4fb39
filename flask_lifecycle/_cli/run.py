"""``flask lifecycle run``: its options, and what it shows on a terminal.

Imported on demand, because making a command with so many options takes longer than making the rest of an application.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import click
from flask.cli import pass_script_info

from .._core.log import show_log
from .._servers import bind
from .._status.formatting import phase_in_words
from . import load

# Seconds between two looks of the countdown; at least between two lines; and at most, if nothing changes.
_LOOK = 0.2
_SOONEST = 1.0
_LATEST = 5.0

# The options that other servers have as well.
_SHARED = {
    "threads": "waitress, cheroot",
    "backlog": "waitress, cheroot, gevent",
    "max-request-body-size": "waitress, cheroot",
}
_INT = 2**31 - 1  # the largest int of C, the kernel's type of a backlog and of a descriptor
# As `waitress-serve` names them; everything else goes by --option.
_WAITRESS: tuple[tuple[str, Any, str], ...] = (
    ("threads", click.IntRange(1, 10_000), "Number of threads that run the application."),
    ("connection-limit", click.IntRange(1, _INT), "Maximum number of open connections."),
    ("channel-timeout", click.IntRange(1, 86400), "Seconds after which an idle connection is closed."),
    ("backlog", click.IntRange(1, _INT), "Maximum length of the kernel's accept queue."),
    ("max-request-body-size", click.IntRange(1, 2**63 - 1), "Largest request body, in bytes."),
    ("unix-socket-perms", str, "Permissions of the Unix socket, octal."),
    ("url-scheme", str, "Default value of wsgi.url_scheme."),
    ("url-prefix", str, "Path under which the application is mounted."),
    ("ident", str, "Value of the Server header."),
    ("trusted-proxy", str, "Address of the proxy whose forwarding headers are trusted."),
    ("trusted-proxy-count", click.IntRange(1, 1000), "Number of chained proxies."),
    ("trusted-proxy-headers", str, "Trusted headers, separated by spaces."),
)


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


@click.command()
@click.option("--host", "-h", default=None, help="The address to listen on.  [default: 127.0.0.1]")
@click.option(
    "--port", "-p", type=click.IntRange(0, 65535), default=None, help="The port; 0 chooses a free one.  [default: 5000]"
)
@click.option(
    "--server", default="waitress", show_default=True, help="The server: waitress, werkzeug, cheroot or gevent."
)
@click.option("--listen", multiple=True, metavar="HOST:PORT", help="An address to listen on; may be repeated.")
@click.option("--unix-socket", default=None, metavar="PATH", help="A Unix socket to listen on.")
@click.option(
    "--fd", "descriptors", type=click.IntRange(0, _INT), multiple=True, metavar="N",
    help="The file descriptor of an inherited listening socket; may be repeated.",
)  # fmt: skip
@click.option(
    "--reload-on", type=click.Choice(["SIGHUP", "SIGUSR1", "SIGUSR2"]),
    help="On this signal, replace the process with a new one; no connection is refused. Only with waitress.",
)  # fmt: skip
@click.option(
    "--reload-within", type=click.FloatRange(0, 86400, min_open=True), default=60.0, show_default=True,
    metavar="SECONDS",
    help="How long the new process may take to become ready; if it takes longer, the old one continues.",
)  # fmt: skip
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
    reload_on: str | None,
    reload_within: float,
    others: dict[str, str],
    **options: Any,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then shut down gracefully without dropping requests."""
    given = {key: value for key, value in options.items() if value is not None} | others
    if listen:
        given["listen"] = " ".join(listen)
    if unix_socket is not None:
        given["unix_socket"] = unix_socket
    restart_worker = None
    if reload_on is not None:
        if server != "waitress":
            raise click.UsageError(f"--reload-on needs waitress; leave out '--server {server}' or '--reload-on'.")
        from .._restart import supervisor, worker

        restart_worker = worker.restart_worker()
        if restart_worker is None:
            # The workers that serve load the application; this process has the listeners.
            with _one_sentence():
                ours, inherited = supervisor.open_listeners(host, port, given, descriptors)
            show_log()
            sys.exit(supervisor.Supervisor(ours, inherited, signal.Signals[reload_on], reload_within).run())
        host = port = None
        given = {key: value for key, value in given.items() if key not in ("listen", "unix_socket")}
        given["sockets"] = restart_worker.listeners
        descriptors = ()
    app, served = load(info)
    with _countdown(served, sys.stderr), _one_sentence():
        if descriptors:
            given["sockets"] = bind.listeners(descriptors)
        report = served.run(app, host, port, server, given, restart_worker)
    # One more signal while the interpreter ends would make a clean stop look like a killed process.
    for signum in {signal.SIGTERM, signal.SIGINT, report.signal or signal.SIGTERM}:
        atexit.register(signal.signal, signum, signal.SIG_IGN)
    sys.exit(report.exit_code)


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """Show an error without its traceback: 2 for a wrong command line, 1 for a start-up that fails."""
    try:
        yield
    except OSError as error:
        raise click.ClickException(error.strerror or str(error)) from None
    except (ValueError, RuntimeError) as error:
        raise click.UsageError(str(error)) from None


@contextlib.contextmanager
def _countdown(served: Any, stream: TextIO | None) -> Iterator[None]:
    """During a shutdown, write lines to a terminal that say what it waits for. Elsewhere this does nothing.

    :param served: the ``Application``, which is in the same layer as the commands.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=_write_countdown, args=(served, stream, over), name="lifecycle-countdown", daemon=True
    )
    if stream is not None and stream.isatty():  # None: it was closed
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def _write_countdown(served: Any, stream: TextIO, over: threading.Event) -> None:
    """Write whole lines: one that is drawn in place would mix with what the log and the application write."""
    while not served.draining.wait(_LOOK):
        if over.is_set():
            return
    last, at = "", time.monotonic() - _SOONEST / 2  # a shutdown that ends at once writes nothing
    while not over.wait(_LOOK):
        waits_for, now = _waits_for(served), time.monotonic()
        if now - at >= (_LATEST if waits_for == last else _SOONEST):
            last, at = waits_for, now
            left = served.remaining() or 0.0
            with contextlib.suppress(OSError, ValueError):  # the terminal has gone
                stream.write(f"{waits_for}, {left:.0f} s left{_way_out(served.process)}\n")
                stream.flush()


def _waits_for(served: Any) -> str:
    shutdown = served.process.shutdown
    unfinished = shutdown.unfinished()
    requests, work = len(unfinished.requests), len(unfinished.work)
    counts = [f"{requests} request{'s' * (requests != 1)}"] if requests else []
    counts += [f"{work} work item{'s' * (work != 1)}"] if work else []
    return f"{' and '.join(counts)} in flight" if counts else f"nothing in flight, {phase_in_words(shutdown.phase)}"


def _way_out(process: Any) -> str:
    """What Ctrl-C does now. Before the first signal, it only joins the shutdown."""
    signum = process.shutdown.signal
    if signum is None or signal.SIGINT not in process.relay.installed:
        return ""
    return " (Ctrl-C again to force)" if signum == signal.SIGINT else " (Ctrl-C to force)"
