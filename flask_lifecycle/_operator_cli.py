"""``flask lifecycle status``, ``drain``, ``cordon`` and ``uncordon``: asked of another process, by HTTP or by file.

Exit codes, for scripts: 0 healthy, or done; 1 not healthy, or refused; 2 there is nobody, or nobody who understands.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

import click

from ._config import Settings
from ._control import LONGEST_CORDON, check_name
from ._control_dir import CORDON, DRAIN
from ._duration import format_duration, parse_duration
from ._remote import UnreachableError, Url, send_action, visible, wait_gone
from ._status_watch import status

# What an answer is waited for, and the end of a process, in seconds. The second is twice a grace period of Kubernetes.
_TIMEOUT = 5.0
_GONE = 60.0
_INTERVAL = 2.0
_FASTEST = 0.1
_YEAR = 365 * 86400.0

# Gives the application and what its extension keeps, or says in one sentence why not.
Load = Callable[[Any], tuple[Any, Any]]


# -- what is done -------------------------------------------------------------------------------------------------


def act(url: Url, action: str, parameters: dict[str, str], token: str | None, timeout: float) -> None:
    """Ask a process to do something, and say what it answered.

    :raises SystemExit: it did not.
    """
    if token is None:
        raise click.UsageError(
            "This needs the token of the process; pass --token, or set FLASK_LIFECYCLE_TOKEN, which others cannot see."
        )
    at = url.at(f"{url.path}/lifecycle/{action}")
    try:
        answer = send_action(at, parameters, token, timeout)
    except UnreachableError as error:
        _fail(2, str(error))
    if answer.status == 404:
        _fail(
            2,
            f"{at} does not exist for this token: it is a wrong one, or 'LIFECYCLE_TOKEN' is not set there,"
            " or this is not the probe listener.",
        )
    if not 200 <= answer.status < 300:
        _fail(1 if answer.status in (400, 409, 429) else 2, f"{at} answered {answer.status}: {answer.sentence}")
    click.echo(answer.sentence)


def write_file(directory: str, name: str, text: str) -> None:
    """Put a file into a control directory in one step, so that nobody reads half of it.

    :raises SystemExit: it cannot be written.
    """
    path = os.path.join(directory, name)
    try:
        # Its name begins with a dot and is nobody's. Readable for all, because the process may be another user's.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=directory)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                os.fchmod(descriptor, 0o644)
                file.write(f"{text}\n")
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        _fail(2, f"'{visible(path)}' cannot be written ({error.strerror}); is this the control directory?")
    click.echo(f"{visible(path)} is written; who looks there heeds it within a second or two")


def remove_file(directory: str, name: str) -> None:
    """Remove a file from a control directory.

    :raises SystemExit: it cannot be removed.
    """
    path = os.path.join(directory, name)
    try:
        os.unlink(path)
    except FileNotFoundError:
        if not os.path.isdir(directory):
            _fail(2, f"'{visible(directory)}' is no directory; is this the control directory?")
        click.echo(f"there is no cordon by file in '{visible(directory)}'; one by HTTP ends by HTTP")
    except OSError as error:
        _fail(2, f"'{visible(path)}' cannot be removed ({error.strerror}).")
    else:
        click.echo(f"{visible(path)} is removed; who looks there heeds it within a second or two")


def _fail(code: int, sentence: str) -> NoReturn:
    click.echo(sentence, err=True)
    raise SystemExit(code)


# -- where --------------------------------------------------------------------------------------------------------


def own_url(settings: Settings) -> Url | None:
    """The probe listener of an application as it is reached from its own host, if it has a fixed port."""
    if not settings.probe_port:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.probe_host, settings.probe_host)
    return Url("http", host, settings.probe_port, settings.url_prefix)


def _settings(load: Load, info: Any) -> Settings:
    settings: Settings = load(info)[1].settings
    return settings


def _token(load: Load, info: Any) -> str | None:
    """The token of the application, for one that was named; a URL needs none that can be loaded."""
    if info.app_import_path is None and info.create_app is None:
        return None
    try:
        return _settings(load, info).token
    except Exception as error:
        click.echo(f"The application cannot be loaded, so its token is not known: {visible(str(error))}", err=True)
        return None


def _url(text: str) -> Url:
    try:
        return Url.parse(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _place(load: Load, info: Any, url: str | None, directory: str | None, token: str | None) -> tuple[Url | str, Any]:
    """Whom an action is asked of: a URL and the token, or a control directory."""
    if url is not None and directory is not None:
        raise click.UsageError("A URL and --dir were given; give one of them.")
    if directory is not None:
        return directory, None
    if url is not None:
        return _url(url), token or _token(load, info)
    settings = _settings(load, info)
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
    """What reads an option that is a duration."""

    def read(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        try:
            return max(least, parse_duration(f"--{parameter.name}", value, most))
        except ValueError as error:
            raise click.UsageError(str(error), context) from None

    return read


def _name(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    try:
        if value is not None:
            return check_name(value)
        with contextlib.suppress(Exception):  # there is no such user, or no name that can be one
            return check_name(getpass.getuser())
        return "operator"
    except ValueError as error:
        raise click.UsageError(str(error).replace("'by'", "'--by'", 1), context) from None


# -- the commands -------------------------------------------------------------------------------------------------

_TOKEN = click.option(
    "--token", envvar="FLASK_LIFECYCLE_TOKEN", show_envvar=True, default=None,
    help="The token of the process.  [default: the application's LIFECYCLE_TOKEN]",
)  # fmt: skip
_BY = click.option("--by", metavar="NAME", callback=_name, help="Who asks, for the log.  [default: your login name]")
_DIR = click.option(
    "--dir", "directory", metavar="PATH", default=None,
    help="Ask by file, in this directory.  [default: LIFECYCLE_CONTROL_DIR, where there is no probe port]",
)  # fmt: skip
_ANSWER = click.option(
    "--timeout",
    callback=_duration(_YEAR),
    default=f"{_TIMEOUT:g}",
    metavar="DURATION",
    help="How long to wait for an answer.  [5s]",
)
_WHERE = click.argument("url", required=False)


def commands(load: Load) -> dict[str, click.Command]:
    """The commands of operators, by name."""
    return {command.name or "": command for command in (_status(load), _drain(load), _cordon(load), _uncordon(load))}


def _status(load: Load) -> click.Command:
    @click.command("status")
    @_WHERE
    @_TOKEN
    @click.option("--json", "as_json", is_flag=True, help="Print the document as it came.")
    @click.option(
        "--watch", is_flag=False, flag_value=f"{_INTERVAL:g}", default=None, metavar="[DURATION]",
        help="Look again and again, every two seconds or as often as you say, until Ctrl-C.",
    )  # fmt: skip
    @_ANSWER
    @click.pass_obj
    def command(
        info: Any, /, url: str | None, token: str | None, as_json: bool, watch: str | None, timeout: float
    ) -> None:
        """Show the health of a process: state, checks, what is in flight.

        By default of this application's probe listener on this host, or of http://127.0.0.1:5000. Exits with 0 if it is
        healthy, with 1 if not, and with 2 if there is no health document.
        """
        interval = None
        if watch is not None:
            if url is None and not watch[:1].isdigit():  # "--watch URL"
                watch, url = f"{_INTERVAL:g}", watch
            interval = _duration(_YEAR, _FASTEST)(click.get_current_context(), click.Option(["--watch"]), watch)
        if url is not None:
            place, token = _url(url), token or _token(load, info)
            place = place if place.path else place.at("/healthcheck")
        else:
            settings = _settings(load, info)
            own = own_url(settings) or Url("http", "127.0.0.1", 5000, "")
            place, token = own.at(settings.probe_paths()["healthcheck"]), token or settings.token
        raise SystemExit(status(place, token, timeout, as_json=as_json, interval=interval))

    return command


def _drain(load: Load) -> click.Command:
    @click.command("drain")
    @_WHERE
    @_BY
    @_TOKEN
    @_DIR
    @click.option("--wait", is_flag=True, help="Wait until the process has gone.")
    @click.option(
        "--timeout", callback=_duration(_YEAR), default=None, metavar="DURATION",
        help="How long to wait for an answer, or with --wait for the end.  [5s; 60s]",
    )  # fmt: skip
    @click.pass_obj
    def command(
        info: Any,
        /,
        url: str | None,
        by: str,
        token: str | None,
        directory: str | None,
        wait: bool,
        timeout: float | None,
    ) -> None:
        """Stop a process as a signal would: whatever is in flight is completed."""
        place, token = _place(load, info, url, directory, token)
        if isinstance(place, str):
            if wait:
                raise click.UsageError("--wait needs a probe listener, which shows the end; leave it out.")
            write_file(place, DRAIN, f"by {by}")
            return
        act(place, "drain", {"by": by}, token, min(timeout or _TIMEOUT, _TIMEOUT) if wait else timeout or _TIMEOUT)
        if wait and not wait_gone(place, timeout or _GONE):
            _fail(1, f"{place} is still there after {timeout or _GONE:g} s.")

    return command


def _cordon(load: Load) -> click.Command:
    @click.command("cordon")
    @_WHERE
    @click.option(
        "--for", "for", callback=_duration(LONGEST_CORDON), required=True, metavar="DURATION", help="Such as 10m."
    )
    @_BY
    @_TOKEN
    @_DIR
    @_ANSWER
    @click.pass_obj
    def command(
        info: Any,
        /,
        url: str | None,
        by: str,
        token: str | None,
        directory: str | None,
        timeout: float,
        **seconds: float,
    ) -> None:
        """Take a process out of rotation for a while; what comes all the same is served."""
        place, token = _place(load, info, url, directory, token)
        if isinstance(place, str):
            write_file(place, CORDON, f"{format_duration(seconds['for'])} by {by}")
        else:
            act(place, "cordon", {"for": format_duration(seconds["for"]), "by": by}, token, timeout)

    return command


def _uncordon(load: Load) -> click.Command:
    @click.command("uncordon")
    @_WHERE
    @_BY
    @_TOKEN
    @_DIR
    @_ANSWER
    @click.pass_obj
    def command(info: Any, url: str | None, by: str, token: str | None, directory: str | None, timeout: float) -> None:
        """Let a process back into rotation before its time."""
        place, token = _place(load, info, url, directory, token)
        if isinstance(place, str):
            remove_file(place, CORDON)
        else:
            act(place, "uncordon", {"by": by}, token, timeout)

    return command
