"""The ledger of requests in flight, and the WSGI middleware that keeps it.

A request counts from before the application is called, at WSGI level, until the iterable that it returned is closed.
Flask's own before/teardown functions end before a streamed body starts, and the former are skipped when an earlier one
answers.

What a server optimises stays optimised:

- A result with a length (the one-item list of which servers make a Content-Length) is handed on in a body of the same
  length.
- ``environ["wsgi.file_wrapper"]`` is replaced by a subclass of the server's own class whose ``close`` is ours. Servers
  ask ``isinstance`` before they use sendfile or their file buffers, so the result is handed on as it is, and its
  ``close`` comes when the last byte has left (waitress) or the client is gone.
- Any other result is handed on in a :class:`Body` whose ``__iter__`` chains what the application returned with a marker
  of its end. The chain is C code: a chunk costs no Python.

The ledger keeps weak references to bodies; the server alone keeps a body alive, and with it the environ. A request
leaves the ledger exactly once, whichever comes first (``tally.py`` explains why neither entering nor leaving needs a
lock):

- ``close()``, also when the application's own ``close`` raises;
- an exception of the application before it returned;
- the body is collected. Not every adapter calls ``close()``: asgiref's ``WsgiToAsgi`` never does, nor does a client
  that drops a response. The application's ``close`` is not called then, as without us.

A body that was iterated to its end is no longer in flight, even if the server keeps it and never closes it. But servers
write the last bytes only after that (the end of a chunked body, the whole head of an answer without a body), and then
call ``close()``. So a drain waits for that ``close()``, for a moment at most; and while ``close()`` runs functions of
the application, the request is in flight again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from threading import get_ident
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote
from weakref import ref

from werkzeug.wsgi import ClosingIterator

from .stacks import Threads
from .tally import Tally

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class RequestInfo(NamedTuple):
    """One request that is in flight, or was when it was abandoned.

    :param method: the HTTP method.
    :param path: the path, without the query string.
    :param age: seconds since it arrived.
    :param thread: the name of the thread that runs it; empty if none does.
    :param stage: ``running``, ``queued``, ``receiving`` or ``sending``; ``uncounted`` if it runs without having gone
        through the application.
    :param route: the URL rule that it was matched to; empty if none.
    :param remote: the client's address, if ``LIFECYCLE_LOG_REMOTE_ADDR`` allows it; otherwise empty.
    :param stack: the stack of its thread, if you asked for it; otherwise empty.
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
    """What a server has to do at one moment; probes that dedicated workers answer are no part of it.

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


# Seconds from the end of an iteration within which a server has sent the last bytes and called close().
_CLOSED_WITHIN = 1.0


class Ledger(Tally):
    """The requests that the application has been called for and whose bodies have not ended."""

    remote = False  # whether clients' addresses may be logged
    rearm: Callable[[], None] | None = None  # makes the middleware ask for the start-up once more
    innermost: WSGIApplication | None = None  # the middleware; see count_requests()
    outermost: WSGIApplication | None = None  # see count_around()

    def requests(self, stacks: bool = False) -> tuple[RequestInfo, ...]:
        """A snapshot of what is in flight, oldest first; with the stacks of their threads if they are wanted."""
        now, threads = self.clock(), Threads(stacks)
        bodies = sorted(self.entries(), key=lambda body: body.started)
        # A body that is only being sent has left its thread, which may run another: the newest is still in it.
        newest = {body.thread: body for body in bodies}
        return tuple(
            RequestInfo(
                method=str(environ.get("REQUEST_METHOD", "-")),
                path=str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", "")),
                age=now - body.started,
                thread=threads.name(body.thread),
                route=_route(environ),
                remote=str(environ.get("REMOTE_ADDR", "")) if self.remote else "",
                stack=threads.stack(body.thread) if newest[body.thread] is body else "",
            )
            for body in bodies
            if (environ := body.environ)  # its thread may close it at any moment
        )

    def forget(self, thread: int | None = None) -> None:
        """Count out what a thread (by its ident) was called for and will not end; without one, everything."""
        for body in self._bodies():
            if thread is None or body.thread == thread:
                self.leave(body.entry)

    def entries(self) -> list[Body]:
        return [body for body in self._bodies() if body.ended is None]

    def settled(self) -> bool:
        if not self.active:
            return True
        before = self.clock() - _CLOSED_WITHIN
        return all(body.ended is not None and body.ended < before for body in self._bodies())

    def _bodies(self) -> list[Body]:
        return [body for entry in self.active.copy() if (body := entry()) is not None]


def _route(environ: WSGIEnvironment) -> str:
    """The rule that Flask has matched a request to; empty before that, and where there is none."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return str(getattr(rule, "rule", ""))


# It is private, so Werkzeug may drop it.
_HAS_NEXT = hasattr(ClosingIterator(()), "_next")


class Body:
    """One request, and what the server gets in place of the application's result.

    It gives the same chunks. Its ``close``, and its collection, count the request out.
    """

    __slots__ = ("__weakref__", "ended", "entry", "environ", "iterable", "ledger", "started", "thread")

    # The middleware sets them: a call of __init__ would cost each request a tenth more.
    ledger: Ledger
    entry: ref[Body] | None  # what the ledger keeps
    environ: WSGIEnvironment
    started: float
    thread: int
    ended: float | None  # when it had been iterated to its end; None while it is in flight
    iterable: Iterable[bytes]

    def __iter__(self) -> Iterator[bytes]:
        iterable = self.iterable
        if type(iterable) is ClosingIterator and _HAS_NEXT:
            iterable = iter(iterable._next, None)  # what its own __next__ calls; saves as much as the marker costs
        # The marker refers to this body, which so lives as long as the iterator: some adapters keep nothing else.
        return chain(iterable, iter(self._end, None))

    def _end(self) -> None:
        """The iterable has come to its end."""
        self.ended = self.ledger.clock()

    def close(self) -> None:
        iterable, self.iterable = self.iterable, ()
        try:
            close = getattr(iterable, "close", None)
            if close is not None:
                self.ended = None
                close()
        finally:
            ledger = self.ledger
            there = ledger.active.pop(self.entry, self) is None  # as Tally.leave, without its call
            if ledger.watched:
                ledger.left_one(there)
            self.entry = None  # spares the call at its collection
            self.environ = {}


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
    active, clock, leave = ledger.active, ledger.clock, ledger.leave

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        nonlocal pending
        probe = find_probe(environ.get("PATH_INFO", ""))
        if probe is not None:
            if ledger.outermost is not None:
                _take_over(environ)
            answer = probe(environ, start_response)
            if answer is not None:
                return answer
        body = Body()
        body.ledger = ledger
        body.ended = None
        body.environ = environ
        body.started = clock()
        body.thread = get_ident()
        body.entry = entry = ref(body, leave)
        active[entry] = None
        try:
            if ledger.outermost is not None:
                _take_over(environ)
            if pending is not None and pending():
                pending = None
            wrapper = environ.get("wsgi.file_wrapper")
            if isinstance(wrapper, type):  # uWSGI's is a function, and is left as it is
                environ["wsgi.file_wrapper"] = _counted_wrappers[wrapper]
            result = app(environ, start_response)
        except BaseException:
            leave(entry)
            raise
        if type(result) is not ClosingIterator:  # nearly every Flask response is one: no length, and no file
            if isinstance(result, _CountedFile):
                body.iterable = ()
                result.lifecycle_begin(body)
                return result
            if hasattr(result, "__len__"):
                body.__class__ = SizedBody  # the slots are the same, and so is the reference in the ledger
        body.iterable = result
        return body

    def rearm() -> None:
        nonlocal pending
        pending = before_first

    ledger.rearm = rearm
    ledger.innermost = middleware
    return middleware


# Seconds after which an answer matters to a shutdown.
_LONG = 1.0

# In the environ: the body of a request that has not come to the middleware yet.
_AROUND = "flask_lifecycle.around"


def count_around(app: WSGIApplication, ledger: Ledger, past: Callable[[], object]) -> WSGIApplication:
    """Count the requests that never come to the middleware, because something around it answers them.

    Flask-SocketIO is such a thing when it is created after us. What comes to the middleware is its business: it takes
    the request over, and does not count what it answers itself as a probe.

    :param app: the outermost application, which has the middleware inside.
    :param past: called when something else answered a request, and took long. A guard that redirects is no matter.
    """

    def outermost(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = Body()
        body.ledger = ledger
        body.environ = environ
        body.started = ledger.clock()
        body.ended = None
        body.thread = get_ident()
        body.iterable = ()
        body.entry = entry = ref(body, ledger.leave)
        environ[_AROUND] = body
        ledger.active[entry] = None
        try:
            result = app(environ, start_response)
        except BaseException:
            ledger.leave(entry)
            raise
        finally:
            environ.pop(_AROUND, None)  # a circle
        if body.entry is None:
            return result
        if ledger.clock() - body.started > _LONG:
            past()
        if hasattr(result, "__len__"):
            body.__class__ = SizedBody
        body.iterable = result
        return body

    outermost.lifecycle_around = app  # type: ignore[attr-defined]  # for the self-test, which names the layers
    ledger.outermost = outermost
    return outermost


def _take_over(environ: WSGIEnvironment) -> None:
    """The request has come to the middleware: the count around it is not to count it as well."""
    body = environ.pop(_AROUND, None)
    if body is not None:
        ledger = body.ledger
        ledger.active.pop(body.entry, None)
        body.entry = None
        if ledger.watched:
            ledger.left_one(False)


class _CountedFile:
    """Mixed into a server's file wrapper: closing it counts the request out."""

    _lifecycle_body: Body | None = None
    _lifecycle_close: Callable[[], None] | None = None

    def lifecycle_begin(self, body: Body) -> None:
        # wsgiref's and gunicorn's wrappers set the file's close on the instance, which would hide ours. That of a class
        # is not kept: bound, it refers to this, which then only the garbage collector could end.
        self._lifecycle_close = self.__dict__.pop("close", None)
        self._lifecycle_body = body

    def close(self) -> None:
        try:
            close = self._lifecycle_close or getattr(super(), "close", None)
            if close is not None:
                close()
        finally:
            if self._lifecycle_body is not None:
                self._lifecycle_body.close()


class _CountedWrappers(dict[type, type]):
    """The counted subclasses of servers' file wrappers, which are made when they are first asked for."""

    def __missing__(self, wrapper: type) -> type:
        return self.setdefault(wrapper, type(wrapper.__name__, (_CountedFile, wrapper), {}))


_counted_wrappers = _CountedWrappers()
