"""Shows the status of a process: once, or again and again, on a terminal in place and elsewhere line by line."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

import click

from ._record import NamedTuple
from ._remote import UnreachableError, Url, fetch_health
from ._status_table import clip, summary, table


class Seen(NamedTuple):
    """One look at a process: what it said, or why it said nothing."""

    code: int
    document: dict[str, Any]
    body: bytes
    trouble: str = ""


def status(
    url: Url, token: str | None, timeout: float, *, as_json: bool, interval: float | None, stream: TextIO | None = None
) -> int:
    """Show the status of a process once, or until Ctrl-C; return the exit code."""
    out = stream or sys.stdout or io.StringIO()  # none: somebody has closed it, who wants the exit code alone
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # a healthy process is one also where the terminal knows no "é"

    def look() -> Seen:
        try:
            document, body = fetch_health(url, token, timeout)
        except UnreachableError as error:
            return Seen(2, {}, b"", str(error))
        return Seen(0 if document["status"] in ("pass", "warn") else 1, document, body)

    if interval is None:
        seen = look()
        show(seen, url, out, as_json=as_json)
        return seen.code
    if out.isatty() and not as_json:
        with Screen(out) as screen:
            seen = follow(look, lambda seen: screen.draw(lines_of(seen, url, color=_colors())), interval)
        show(seen, url, out, as_json=False)
        return seen.code
    return follow(look, Changes(out, as_json=as_json).show, interval).code


def follow(look: Callable[[], Seen], show: Callable[[Seen], None], interval: float) -> Seen:
    """Look and show again and again until Ctrl-C; return what was seen last."""
    seen = Seen(2, {}, b"", "Nothing was asked yet.")
    try:
        while True:
            seen = look()
            show(seen)
            time.sleep(interval)
    except KeyboardInterrupt:
        return seen


def show(seen: Seen, url: Url, out: TextIO, *, as_json: bool) -> None:
    """Print what was seen; what is wrong goes to stderr."""
    if seen.trouble:
        click.echo(seen.trouble, err=True)
    elif as_json:
        out.write(json_text(seen.body, out.encoding))
    else:
        out.write("".join(f"{line}\n" for line in lines_of(seen, url, color=out.isatty() and _colors())))
    out.flush()


def lines_of(seen: Seen, url: Url, *, color: bool) -> list[str]:
    return [seen.trouble] if seen.trouble else table(seen.document, str(url), color=color)


def json_text(body: bytes, encoding: str | None = None) -> str:
    """The document as it came, with what a terminal might take for a command written as JSON escapes it.

    :param encoding: of who gets it; what that does not have is escaped as well.
    """

    def escaped(each: str) -> str:
        if (each.isprintable() or each in "\n\t") and each.encode(encoding or "utf-8", "ignore"):
            return each
        return "".join(f"\\u{unit:04x}" for unit in memoryview(each.encode("utf-16-le", "surrogatepass")).cast("H"))

    text = body.decode("utf-8", "replace").replace("\r\n", "\n")
    return "".join(map(escaped, text.rstrip("\n"))) + "\n"


class Changes:
    """Prints a line when what was seen is another than before."""

    def __init__(self, out: TextIO, *, as_json: bool) -> None:
        self._out = out
        self._as_json = as_json
        self._last: str | None = None

    def show(self, seen: Seen) -> None:
        said = seen.trouble or summary(seen.document)
        if said == self._last:
            check_reader(self._out)
            return
        self._last = said
        if self._as_json and not seen.trouble:
            self._out.write(json_text(seen.body, self._out.encoding))
        else:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            self._out.write(f"{now}  {said}\n")
        self._out.flush()


def check_reader(out: TextIO) -> None:
    """Find out whether the reader of a pipe has gone, where there is nothing to write, which would tell it.

    :raises BrokenPipeError: it has.
    """
    with contextlib.suppress(io.UnsupportedOperation):  # no descriptor
        poll = select.poll()
        poll.register(out.fileno(), 0)
        if any(found & select.POLLERR for _, found in poll.poll(0)):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Screen:
    """A terminal that is drawn upon in place: its second screen, in one write for each picture, so nothing flickers.

    SIGTERM ends it as Ctrl-C does, because it would leave a terminal behind that shows neither cursor nor history.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> Screen:
        self._before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._write("\x1b[?1049h\x1b[?25l\x1b[2J")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write("\x1b[?25h\x1b[?1049l")
        signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

    def draw(self, lines: list[str]) -> None:
        """Show these lines, as much of them as there is room for."""
        size = shutil.get_terminal_size()
        now = datetime.datetime.now().strftime("%H:%M:%S")
        shown = [*lines, "", f"{now}  Ctrl-C ends this"][: size.lines]
        self._write("\x1b[H" + "\r\n".join(f"{clip(line, size.columns)}\x1b[K" for line in shown) + "\x1b[J")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def _colors() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
