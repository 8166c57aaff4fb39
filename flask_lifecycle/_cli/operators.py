"""``flask lifecycle status``, ``drain``, ``cordon`` and ``uncordon``: requests to another process, by HTTP or by file.

Exit codes: 0 healthy, or done; 1 not healthy, or refused; 2 no answer, or none that is understood.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

import click

from .._config import Settings
from .._core.text import visible
from .._operators.cordon import LONGEST_CORDON, check_name, format_duration, parse_duration
from .._operators.files import CORDON, DRAIN
from . import load
from .client import UnreachableError, Url, ask, wait_gone
from .status import show_status

# Seconds to wait for an answer, and for the end of a process: twice the grace period of Kubernetes.
_TIMEOUT = 5.0
_GONE = 60.0
_INTERVAL = 2.0
_FASTEST = 0.1
_YEAR = 365 * 86400.0


# -- actions ------------------------------------------------------------------------------------------------------


def act(url: Url, action: str, parameters: dict[str, str], token: str | None, timeout: float) -> None:
    """Send an operator's request, and print the answer.

    :raises SystemExit: it failed.
    """
    if token is None:
        raise click.UsageError(
            "This needs the token of the process; pass --token, or set FLASK_LIFECYCLE_TOKEN, which others cannot see."
        )
    at = url.at(f"{url.path}/lifecycle/{action}")
    try:
        answer = ask("POST", at, urlencode(parameters), {"Content-Length": "0"}, token, timeout)
    except UnreachableError as error:
        _fail(2, str(error))
    if answer.status == 404:
        _fail(
            2,
            f"{at} does not exist for this token: the token is wrong, or 'LIFECYCLE_TOKEN' is not set there, or this"
            " is not the probe listener.",
        )
    if not 200 <= answer.status < 300:
        _fail(1 if answer.status in (400, 409) else 2, f"{at} answered {answer.status}: {answer.sentence}")
    click.echo(answer.sentence)


def write_file(directory: str, name: str, text: str) -> None:
    """Put a file into a control directory in one step: no process reads half of it, and a link there is not followed.

    :raises SystemExit: it cannot be written.
    """
    path, temporary = os.path.join(directory, name), ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=directory)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o644)  # the process may run as another user
            file.write(f"{text}\n")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        _fail(2, f"'{visible(path)}' cannot be written ({error.strerror}); is this the control directory?")
    click.echo(f"wrote {visible(path)}; the process acts on it within two seconds")


def remove_file(directory: str, name: str) -> None:
    """Remove a file from a control directory.

    :raises SystemExit: it cannot be removed.
    """
    path = Path(directory, name)
    try:
        path.unlink()
    except FileNotFoundError:
        if not path.parent.is_dir():
            _fail(2, f"'{visible(directory)}' is not a directory; is this the control directory?")
        click.echo(f"there is no cordon by file in '{visible(directory)}'; end a cordon by HTTP with its URL")
    except OSError as error:
        _fail(2, f"'{path}' cannot be removed ({error.strerror}).")
    else:
        click.echo(f"removed {visible(str(path))}; the process acts on it within two seconds")


def _fail(code: int, sentence: str) -> NoReturn:
    click.echo(visible(sentence), err=True)
    raise SystemExit(code)


# -- targets ------------------------------------------------------------------------------------------------------


def own_url(settings: Settings) -> Url | None:
    """The probe listener of an application as seen from its own host, if it has a fixed port."""
    if not settings.probe_port:
        return None
    named = settings.probe_host or "127.0.0.1"  # the default follows the main listener, which is not known here
    host = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(named, named)
    return Url("http", host, settings.probe_port, settings.url_prefix)


def _settings(info: Any) -> Settings:
    settings: Settings = load(info)[1].settings
    return settings


def _token(info: Any) -> str | None:
    """The token of the application, if one was named; a URL does not need an application."""
    if info.app_import_path is None and info.create_app is None:
        return None
    try:
        return _settings(info).token
    except Exception as error:
        click.echo(f"The application cannot be loaded, so its token is not known: {visible(str(error))}", err=True)
        return None


def _url(text: str) -> Url:
    try:
        return Url.parse(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _target(info: Any, url: str | None, directory: str | None, token: str | None) -> tuple[Url | str, str | None]:
    """Where an action goes: a URL and the token, or a control directory."""
    if url is not None and directory is not None:
        raise click.UsageError("A URL and --dir were given; give one of them.")
    if directory is not None:
        return directory, None
    if url is not None:
        return _url(url), token or _token(info)
    settings = _settings(info)
    own = own_url(settings)
    if own is not None:
        return own, token or settings.token
    if settings.control_dir is not None:
        return settings.control_dir, None
    raise click.UsageError(
        "The application has neither a fixed 'LIFECYCLE_PROBE_PORT' nor a 'LIFECYCLE_CONTROL_DIR'; give the URL of its"
        " probe listener, or --dir."
    )


def _duration(most: float, least: float = 0.0) -> Callable[[click.Context, click.Parameter, str | None], float | None]:
    """A callback that reads an option as a duration."""

    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        try:
            return max(least, parse_duration(parameter.opts[0], value, most))
        except ValueError as error:
            raise click.UsageError(str(error), context) from None

    return read


def _name(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    try:
        if value is not None:
            return check_name(value)
        with contextlib.suppress(Exception):  # there is no such user, or no valid name
            return check_name(getpass.getuser())
        return "operator"
    except ValueError as error:
        raise click.UsageError(str(error).replace("'by'", "'--by'", 1), context) from None


# -- the commands -------------------------------------------------------------------------------------------------

_TOKEN = click.option(
    "--token", envvar="FLASK_LIFECYCLE_TOKEN", show_envvar=True, default=None,
    help="The token of the process.  [default: the application's LIFECYCLE_TOKEN]",
)  # fmt: skip
_BY = click.option("--by", metavar="NAME", callback=_name, help="Your name, for the log.  [default: your login name]")
_DIR = click.option(
    "--dir", "directory", metavar="PATH", default=None,
    help="Use this control directory.  [default: LIFECYCLE_CONTROL_DIR, if there is no probe port]",
)  # fmt: skip
_ANSWER = click.option(
    "--timeout", callback=_duration(_YEAR), default=f"{_TIMEOUT:g}", metavar="DURATION",
    help="How long to wait for an answer.  [default: 5s]",
)  # fmt: skip
_WHERE = click.argument("url", required=False)


@click.command()
@_WHERE
@_TOKEN
@click.option("--json", "as_json", is_flag=True, help="Print the document as JSON.")
@click.option(
    "--watch", is_flag=False, flag_value=f"{_INTERVAL:g}", default=None, metavar="[DURATION]",
    help="Repeat until Ctrl-C, every two seconds or at this interval.",
)  # fmt: skip
@_ANSWER
@click.pass_obj
def status(info: Any, /, url: str | None, token: str | None, as_json: bool, watch: str | None, timeout: float) -> None:
    """Show the health of a process: state, checks, requests in flight.

    Asks this application's probe listener on this host by default, or http://127.0.0.1:5000. Exits with 0 if the
    process is healthy, with 1 if not, and with 2 if it does not answer with a health document.
    """
    interval = None
    if watch is not None:
        if url is None and not watch[:1].isdigit():  # "--watch URL"
            watch, url = f"{_INTERVAL:g}", watch
        interval = _duration(_YEAR, _FASTEST)(click.get_current_context(), click.Option(["--watch"]), watch)
    if url is not None:
        target, token = _url(url), token or _token(info)
        target = target if target.path else target.at("/healthcheck")
    else:
        settings = _settings(info)
        own = own_url(settings) or Url("http", "127.0.0.1", 5000, "")
        target, token = own.at(settings.probe_paths()["healthcheck"]), token or settings.token
    raise SystemExit(show_status(target, token, timeout, as_json=as_json, interval=interval))


def _targeted(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument and options that name a process, and call it with the target and the token."""

    @_WHERE
    @_BY
    @_TOKEN
    @_DIR
    @click.pass_obj
    @functools.wraps(function)
    def command(info: Any, /, url: str | None, directory: str | None, token: str | None, **options: Any) -> None:
        function(*_target(info, url, directory, token), **options)

    return command


@click.command()
@_targeted
@click.option("--wait", is_flag=True, help="Wait until the process has exited.")
@click.option(
    "--timeout", callback=_duration(_YEAR), default=None, metavar="DURATION",
    help="How long to wait for an answer (5s), or with --wait for the exit (60s).",
)  # fmt: skip
def drain(target: Url | str, token: str | None, by: str, wait: bool, timeout: float | None) -> None:
    """Shut a process down gracefully, as SIGTERM does.

    URL is the probe listener of the process; by default that of this application on this host.
    """
    if isinstance(target, str):
        if wait:
            raise click.UsageError("--wait needs a probe listener, which shows the end; leave it out.")
        write_file(target, DRAIN, f"by {by}")
        return
    act(target, "drain", {"by": by}, token, min(timeout or _TIMEOUT, _TIMEOUT) if wait else timeout or _TIMEOUT)
    if wait and not wait_gone(target, timeout or _GONE):
        _fail(1, f"{target} is still there after {timeout or _GONE:g} s.")


@click.command()
@_targeted
@click.option(
    "--for", "seconds", callback=_duration(LONGEST_CORDON), required=True, metavar="DURATION",
    help="How long, such as 10m.",
)  # fmt: skip
@_ANSWER
def cordon(target: Url | str, token: str | None, by: str, seconds: float, timeout: float) -> None:
    """Take a process out of rotation for a while; requests that still arrive are served.

    URL is the probe listener of the process; by default that of this application on this host.
    """
    duration = format_duration(seconds)
    if isinstance(target, str):
        write_file(target, CORDON, f"{duration} by {by}")
    else:
        act(target, "cordon", {"for": duration, "by": by}, token, timeout)


@click.command()
@_targeted
@_ANSWER
def uncordon(target: Url | str, token: str | None, by: str, timeout: float) -> None:
    """End a cordon before it expires.

    URL is the probe listener of the process; by default that of this application on this host.
    """
    if isinstance(target, str):
        remove_file(target, CORDON)
    else:
        act(target, "uncordon", {"by": by}, token, timeout)
