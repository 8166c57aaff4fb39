"""The ledger of requests in flight, and the WSGI middleware that keeps it.

Counting happens at WSGI level, around ``app.wsgi_app``, from before the application is called until the iterable
that it returned is closed: Flask's own before/teardown functions end before a streamed body starts, and they go
out of step when an earlier ``before_request`` function answers.

What a server optimises stays optimised:

- A result with a length (the one-item list of which servers make a Content-Length) is handed on in a body that
  has the same length.
- ``environ["wsgi.file_wrapper"]`` is replaced by a subclass of the server's own class whose ``close`` is ours.
  Servers ask ``isinstance`` before they use sendfile or their file buffers, so the result is handed on as it is,
  and its ``close`` comes when the last byte has left (waitress) or the client is gone.
- Any other result is handed on in a :class:`Body` whose ``__iter__`` returns the iterator of what the application
  returned: the server then pulls chunks from the application itself, and no chunk costs anything.

An entry leaves the ledger exactly once, whichever comes first: ``close()`` (also when the application's own
``close`` raises; also when it is called twice), or an exception of the application before it returned. Leaving is
``dict.pop``, so whoever comes second finds nothing.

How entering and leaving do without a lock is told in ``_tally.py``.

A body that is dropped without its ``close`` would be in flight for ever: Werkzeug's test client does so, and is used to
warm up an application at its import. Nobody can close what nobody holds, so when a drain begins the bodies that the
ledger alone refers to are counted out.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug.wsgi import ClosingIterator

from ._record import NamedTuple
from ._stacks import Threads
from ._tally import Tally

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class RequestInfo(NamedTuple):
    """One request that is in flight, or was when it was abandoned.

    ``age`` is in seconds, ``thread`` the name of the thread that runs it (empty where none does), ``stage`` one
    of ``running``, ``queued``, ``receiving`` and ``sending``. ``route`` is the rule that it was matched to, ``remote``
    the client's address if ``LIFECYCLE_LOG_REMOTE_ADDR`` allows it, ``stack`` its thread's where it was asked for.
    """

    method: str
    path: str
    age: float
    thread: str = ""
    stage: str = "running"
    route: str = ""
    remote: str = ""
    stack: str = ""

    def __str__(self) -> str:
        # It goes to the log: a line end in the path (%0A) would begin a line of the client's own there.
        what = f"{_quoted(self.method)} {_quoted(self.path)}"
        if self.route and self.route != self.path:
            what += f" [{self.route}]"
        return f"{what}{self.remote and f' from {_quoted(self.remote)}'} after {self.age:.1f} s ({self.stage})"


def _quoted(text: str) -> str:
    """What a client sent as it may be written to a log: in the words of a request line."""
    return quote(text, safe="!$&'()*+,-./:;=@_~", encoding="latin-1", errors="replace")


class Load(NamedTuple):
    """What a server has to do at one moment; probes that have a lane of their own are no part of it.

    :param queued: requests that wait for a thread because none is idle.
    :param threads: how many there are for work; ``None`` where each connection has its own.
    :param busy: how many of them run a request; ``None`` where that is not known.
    :param oldest: the age in seconds of the oldest request that waits or runs, from when its turn had come; 0 without.
    """

    queued: int
    threads: int | None = None
    busy: int | None = None
    oldest: float = 0.0

    @property
    def idle(self) -> int | None:
        """How many threads wait for a request; ``None`` where that is not known."""
        return None if self.threads is None or self.busy is None else self.threads - self.busy


class Ledger(Tally):
    """The requests that the application has been called for and whose bodies are not closed yet."""

    remote = False  # whether the addresses of clients may be told
    rearm: Callable[[], None] | None = None  # makes the middleware ask for the start-up once more

    def requests(self, stacks: bool = False) -> tuple[RequestInfo, ...]:
        """A snapshot of what is in flight, oldest first; with the stacks of their threads if they are wanted."""
        now, threads = self.clock(), Threads(stacks)
        bodies = sorted(self.active.copy(), key=lambda body: body.started)
        # A body that is only sent yet has left its thread, which may run another by now: the newest of them.
        newest = {body.thread: body for body in bodies}
        return tuple(
            RequestInfo(
                method=str(body.environ.get("REQUEST_METHOD", "-")),
                path=str(body.environ.get("SCRIPT_NAME", "")) + str(body.environ.get("PATH_INFO", "")),
                age=now - body.started,
                thread=threads.name(body.thread),
                route=_route(body.environ),
                remote=str(body.environ.get("REMOTE_ADDR", "")) if self.remote else "",
                stack=threads.stack(body.thread) if newest[body.thread] is body else "",
            )
            for body in bodies
        )

    def forget_dropped(self) -> None:
        """Count out what nobody holds but the ledger."""
        if not getattr(sys, "_is_gil_enabled", lambda: True)():  # there the numbers are no more than a guess
            return
        ((_, alone),) = _references({object(): None})
        for body, count in _references(self.active):
            if count <= alone:
                self.leave(body)


def _references(active: dict[Any, None]) -> list[tuple[Any, int]]:
    """How often each is referred to; more than by the dict alone, but all of them by as much."""
    return [(entry, sys.getrefcount(entry)) for entry in active.copy()]


def _route(environ: WSGIEnvironment) -> str:
    """The rule that Flask has matched a request to; empty before that, and where there is none."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return str(getattr(rule, "rule", ""))


class Body:
    """One entry of the ledger, and what the server gets in place of the application's result.

    It gives the same chunks, and its ``close`` counts the request out.
    """

    __slots__ = ("environ", "iterable", "ledger", "started", "thread")

    def __init__(self, ledger: Ledger, environ: WSGIEnvironment) -> None:
        self.ledger = ledger
        self.environ = environ
        self.started = ledger.clock()
        self.thread = threading.get_ident()
        self.iterable: Iterable[bytes] = ()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.iterable)

    def close(self) -> None:
        iterable, self.iterable = self.iterable, ()
        try:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()
        finally:
            self.ledger.leave(self)


class SizedBody(Body):
    """A body of known length, for results that have one: servers frame a one-item list by it."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.iterable)  # type: ignore[arg-type]


def count_requests(
    app: WSGIApplication,
    ledger: Ledger,
    find_probe: Callable[[str], Callable[[WSGIEnvironment, StartResponse], Iterable[bytes] | None] | None],
    before_first: Callable[[], bool],
) -> WSGIApplication:
    """The middleware: count the requests of a WSGI application, and answer probes ahead of it.

    It is a closure and not a class because that saves a tenth of its cost; every request goes through it.

    :param app: the application that is counted.
    :param find_probe: gives what answers a ``PATH_INFO`` instead, if it is a probe's; probes are not counted. What it
        gives may return ``None``: then the application answers after all.
    :param before_first: called in the thread of every request until it has returned ``True`` once; the start-up.
    """
    pending: Callable[[], bool] | None = before_first
    active = ledger.active

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        nonlocal pending
        probe = find_probe(environ.get("PATH_INFO", ""))
        if probe is not None:
            answer = probe(environ, start_response)
            if answer is not None:
                return answer
        body = Body(ledger, environ)
        active[body] = None
        try:
            if pending is not None and pending():
                pending = None
            wrapper = environ.get("wsgi.file_wrapper")
            if wrapper is not None:
                environ["wsgi.file_wrapper"] = _counted_wrapper(wrapper)
            result = app(environ, start_response)
        except BaseException:
            ledger.leave(body)
            raise
        if type(result) is not ClosingIterator:  # nearly every Flask response is one: no length, and no file
            if isinstance(result, _CountedFile):
                result.lifecycle_begin(body)
                return result
            if hasattr(result, "__len__"):
                body.__class__ = SizedBody  # the slots are the same, and so is the entry in the ledger
        body.iterable = result
        return body

    def rearm() -> None:
        nonlocal pending
        pending = before_first

    ledger.rearm = rearm
    return middleware


class _CountedFile:
    """Mixed into a server's file wrapper: closing it counts the request out."""

    _lifecycle_body: Body | None = None
    _lifecycle_close: Callable[[], None] | None = None

    def lifecycle_begin(self, body: Body) -> None:
        # wsgiref's and gunicorn's wrappers set the file's close on the instance, which would hide ours.
        self._lifecycle_close = self.__dict__.pop("close", None) or getattr(super(), "close", None)
        self._lifecycle_body = body

    def close(self) -> None:
        try:
            close = self._lifecycle_close or getattr(super(), "close", None)
            if close is not None:
                close()
        finally:
            if self._lifecycle_body is not None:
                self._lifecycle_body.close()


_wrappers: dict[Any, Any] = {}


def _counted_wrapper(wrapper: Any) -> Any:
    """The counted subclass of a server's file wrapper; a wrapper that is no class (uWSGI's) is left as it is."""
    try:
        return _wrappers[wrapper]
    except KeyError:
        counted = wrapper
        if isinstance(wrapper, type):
            counted = type(wrapper.__name__, (_CountedFile, wrapper), {})
        return _wrappers.setdefault(wrapper, counted)
    except TypeError:  # not hashable, so no class either
        return wrapper
