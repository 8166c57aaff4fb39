"""The status page: the status document for people, in one HTML document that a browser keeps up to date.

It is complete without its script and without its style sheet, which are files of their own beside it so that a strict
Content-Security-Policy (:data:`HEADERS`) can forbid everything else: nothing that a check says, and no path that
somebody asks for, could run even if it were not escaped. All its URLs are relative, because only the browser knows
what prefixes lie between it and here.

The script asks for the *feed*, which is this page as well. It is answered 200 whatever the status is: a browser writes
any other into its console. How its questions are held is told in ``_audience.py``; where they are, here:

- on the probe listener, where each connection has a thread, until the very end;
- on the application's own port under ``run``, where probes have threads of their own, until that port is closed;
- not at all where a worker of somebody else's server would be held with it.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from . import _words
from ._audience import Audience
from ._probe_server import LISTENER
from ._record import NamedTuple
from ._state import ENDING, State, StateMachine
from .checks import HealthReport
from .checks._engine import renewed_in_children
from .checks._health import ALL, Health

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment
    from jinja2 import Template

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
_HTML = "text/html; charset=utf-8"
ASSETS = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8"}

# Seconds: for so long a question is held, and for so long a page waits whose questions are not; then during a stop.
_PACE, _PACE_OF_A_STOP = 2.0, 1.0
# What a stop without a delay takes to close the port, and what the report takes to be made, several times over.
_MOMENT = 1.0

_GONE = "The process has stopped. This is the last that it told."
_LEAVING = "The process is about to leave. This is the last that it told."
_CLOSED = "This port is closed, and the stop goes on without it. This is the last that could be told here."


class Coordinator(Protocol):
    """What the page asks of the one that stops the process."""

    owned: bool
    done: threading.Event


class Process(Protocol):
    """What the page asks of the process."""

    @property
    def coordinator(self) -> Coordinator:
        """The one that stops it."""


# What it is, its bytes, and headers.
Answer: TypeAlias = "tuple[str, bytes, dict[str, str]]"


class Watched(Protocol):
    """What the page asks of the application that it is about."""

    machine: StateMachine
    health: Health

    @property
    def process(self) -> Process:
        """The process that it is in."""

    def document(self, report: HealthReport) -> Mapping[str, Any]:
        """The status document."""


class Asset(NamedTuple):
    """A file beside the page; ``version`` is what its URL ends with, so that it may be kept for ever."""

    kind: str
    data: bytes
    version: str


@functools.cache
def asset(name: str) -> Asset:
    """A file beside the page."""
    data = (Path(__file__).parent / "static" / name).read_bytes()
    return Asset(ASSETS[name], data, hashlib.sha256(data).hexdigest()[:12])


class Sent:
    """The body of an answer, and what is called when it has been sent, or could not be."""

    def __init__(self, body: Iterable[bytes], sent: Callable[[], None]) -> None:
        self._body = body
        self.close = sent

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)


class StatusPage:
    """The status page of one application. Any thread may use it."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.after_fork()
        renewed_in_children.add(self)

    def after_fork(self) -> None:
        """Those who watch the parent do not watch the child."""
        self.audience = Audience()

    def begin(self) -> None:
        """Somebody may look."""

    def state_changed(self, new: State, reason: str) -> None:
        """Show it at once."""
        self.audience.changed()

    def end(self) -> None:
        """Take leave of those who look. Blocks for a moment where there is somebody."""
        self.audience.farewell()

    def part(self, name: str, environ: WSGIEnvironment) -> Answer:
        """A file beside the page. One that was asked for by its version may be kept for ever."""
        kind, data, version = asset(name)
        known = environ.get("QUERY_STRING", "") == version
        return kind, data, {"Cache-Control": "public, max-age=31536000, immutable" if known else "no-cache"}

    def answer(self, report: HealthReport, environ: WSGIEnvironment) -> Answer:
        """The page, as it is opened."""
        outlook = self._outlook(report.state, environ, held=self._may_hold(environ))
        if outlook[0] == 0 and environ["REQUEST_METHOD"] == "GET":
            self.audience.expect()
        return _HTML, self._render(report, environ, outlook), HEADERS

    def feed(
        self, environ: WSGIEnvironment, respond: Callable[[str, bytes, dict[str, str]], Iterable[bytes]]
    ) -> Iterable[bytes]:
        """Answer what the script of the page asks for. Blocks where its question may be held."""
        audience = self.audience
        held = environ["REQUEST_METHOD"] == "GET" and self._may_hold(environ) and audience.enter()
        try:
            if held:
                self._hold(environ)
            report = self._watched.health.report(ALL)._replace(details=True)
            if report.state is State.STOPPED:
                self._watched.process.coordinator.done.wait(_MOMENT)  # for the report of the stop
            outlook = self._outlook(report.state, environ, held=held)
            body = respond(_HTML, self._render(report, environ, outlook), HEADERS)
        except BaseException:
            if held:
                audience.leave(comes_back=False)
            raise
        return Sent(body, functools.partial(audience.leave, comes_back=outlook[0] is not None)) if held else body

    def _render(self, report: HealthReport, environ: WSGIEnvironment, outlook: tuple[float | None, str]) -> bytes:
        seen = self.audience.changes  # read first: what changes meanwhile the next answer tells
        again, last = outlook
        page = _template().render(
            d=self._watched.document(report), at=_beside(environ.get("PATH_INFO", "")),
            assets={name: asset(name) for name in ASSETS}, seen=seen, again=again, last=last,
        )  # fmt: skip
        return page.encode("utf-8", "backslashreplace")

    def _may_hold(self, environ: WSGIEnvironment) -> bool:
        return LISTENER in environ or self._watched.process.coordinator.owned

    def _hold(self, environ: WSGIEnvironment) -> None:
        audience, machine = self.audience, self._watched.machine
        audience.wait(_seen(environ), _PACE_OF_A_STOP if machine.ending else _PACE)
        if LISTENER not in environ and machine.ending:
            # Whoever is answered asks again at once, and might find the port closed. Without a delay it is in a moment;
            # with one he is answered all the same, so that there is something to see.
            audience.wait_closed(_MOMENT)

    def _outlook(self, state: State, environ: WSGIEnvironment, *, held: bool) -> tuple[float | None, str]:
        """In how many seconds a page that shows this state is to ask again; or ``None``, and why never."""
        if state is State.STOPPED:
            return None, _GONE
        if LISTENER not in environ and self._watched.process.coordinator.owned and self.audience.closed:
            return None, _CLOSED
        if LISTENER not in environ and state is State.STOPPING:
            return None, _LEAVING
        if held:
            return 0, ""
        return _PACE_OF_A_STOP if state in ENDING else _PACE, ""


def _seen(environ: WSGIEnvironment) -> int:
    """Which changes the page knows that asks; none where it does not say."""
    given = environ.get("QUERY_STRING", "").removeprefix("seen=")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 20 else -1


def _beside(path: str) -> str:
    """Where the files beside a page are, seen from the path that it was asked by."""
    # "./" because a colon in the first part would make a scheme of it.
    return f"./{path.rpartition('/')[2]}/-/" if not path.endswith("/") else "./-/"


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("flask_lifecycle"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= _words.FILTERS
    return environment.get_template("flask_lifecycle/status.html")
