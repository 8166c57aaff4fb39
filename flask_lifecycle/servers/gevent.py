"""gevent's WSGI server (``gevent.pywsgi``): run it, and stop it without losing a request.

Theory of operation
-------------------

pywsgi serves each connection in a greenlet, all of them in the thread of one hub, here the main one. Its own stop cuts
whoever is being answered, unless there is a pool; then it waits for idle connections as long as for any. It resets what
waits in the accept queue. Here the listener is closed and nothing else, and the hub goes on until the last connection
has ended; ``_greenlets.py`` tells how.

*Patched or not.* ``run(server="gevent")`` patches nothing: what an application calls must be gevent's, or it blocks
all connections while it waits. Whoever wants ``threading``, ``socket`` and ``time`` to be gevent's patches first thing
in the process (``python -m gevent.monkey --module flask ...``). Then every thread of ours is a greenlet in the same
hub, too: nothing here may hold the hub up, and while the application computes without a pause nobody answers a probe
or looks at the deadline. Without patching they are real threads, and the probe listener answers meanwhile.

*The farewell*, as of the other servers of ours: pywsgi reads once and closes, and with more unread input than that the
end of an answer is destroyed by a reset.

What pywsgi gets wrong about where a message ends is put right here, because the next request or answer would be taken
out of the middle of this one: an answer that is shorter or longer than it said is the last on its connection, and a
head that can be read in two ways is refused.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from gevent.pywsgi import WSGIHandler, WSGIServer

from .. import _sockets
from .._inflight import Load, RequestInfo
from .._parties import FULL
from . import _binding
from ._greenlets import Conductor, Listening, Tracked, farewell
from ._guard import guarded

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# Where pywsgi would print.
_access_log = logging.getLogger("gevent.pywsgi")


def create(
    app: WSGIApplication,
    host: str | None,
    port: int | None,
    lane: Callable[[str], str | None],
    options: dict[str, Any],
) -> Gevent:
    """Make the server, bound and listening. Probes need no lane: no request ever queues for a greenlet."""
    where = {name: value for name, value in options.items() if name in _binding.OPTIONS}
    for option in options:
        if option not in where and option != "backlog":
            raise ValueError(
                f"gevent has no option '{option}'; it takes 'host', 'port', 'listen', 'unix_socket', 'sockets' and"
                " 'backlog'."
            )
    try:
        backlog = int(options.get("backlog", 128))
    except (TypeError, ValueError):
        raise ValueError(f"gevent's option 'backlog' is to be a number, and not {options['backlog']!r}.") from None
    return Gevent(app, _binding.bind(host, port, where, backlog))


class Gevent:
    """A server of gevent that is ours from its first to its last connection."""

    name = "gevent"
    ours = True
    means = "started by flask_lifecycle"
    promise = FULL
    advice = ""

    def __init__(self, app: WSGIApplication, bound: list[_binding.Bound]) -> None:
        self._app = app
        self._bound = bound
        self._conductor = Conductor(lambda: self._listeners)
        self._listeners: list[Listening] = []
        self._held_back = False
        _sockets.close_in_children(self)

    # -- verbs, from any thread but the hub's ---------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """Everything that a forked child must not keep open."""
        # Where sockets are patched the one below: another hub than the child's is waiting for that of gevent.
        bound = [getattr(each.socket, "_sock", each.socket) for each in self._bound]
        return [*bound, *(handler.raw for handler in self._conductor.handlers.copy())]

    def addresses(self) -> list[str]:
        return [_sockets.describe(each.socket) for each in self._bound]

    def listeners(self) -> list[socket.socket]:
        return [each.own for each in self._bound]

    def hold_back(self) -> None:
        self._held_back = True

    def take_over(self, ours: Collection[socket.socket]) -> None:
        self._conductor.post(lambda: self._take_over(ours))

    def hand_over(self) -> None:
        self._conductor.post(self._conductor.hand_over)

    def announce(self) -> None:
        self._conductor.announced = True

    def stop_accepting(self, timeout: float) -> None:
        self._conductor.stop_accepting(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        return self._conductor.wait_idle(timeout, linger)

    def unfinished(self) -> list[RequestInfo]:
        return self._conductor.unfinished()

    def load(self) -> Load:
        return self._conductor.load()

    def canary(self, done: Callable[[], None]) -> bool:
        self._conductor.post(done)  # each connection has a greenlet of its own; what may stand still is the hub
        return True

    def stop(self) -> None:
        self._conductor.end()

    # -- the hub's thread -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until :meth:`stop`, in the calling thread."""
        handler = type("_Handler", (_Handler,), {"conductor": self._conductor})
        for bound in self._bound:
            # Without a name pywsgi would ask the name service for one.
            name = str(bound.socket.getsockname()[0]) if bound.path is None else ""
            environ = {"SERVER_NAME": name}
            server = WSGIServer(bound.socket, guarded(self._app), handler_class=handler, log=None, environ=environ)
            server.init_socket()
            self._listeners.append(Listening(server, bound.path, bound.identity))
        if not self._held_back:
            self._take_over(())
        self._conductor.held_back = self._held_back
        self._conductor.run()

    def _take_over(self, ours: Collection[socket.socket]) -> None:
        self._held_back = self._conductor.held_back = False
        for bound, listener in zip(self._bound, self._listeners, strict=True):
            bound.take_over(ours)
            listener.given = bound.given is not None
            listener.server.start()

    def close(self) -> None:
        """Let go of everything without having served."""
        for bound in self._bound:
            bound.close_unserved(self._held_back)


class _Handler(Tracked, WSGIHandler):  # type: ignore[misc]
    """One connection."""

    requestline: str
    _given = 0  # bytes of the answer's body

    def handle(self) -> None:
        try:
            while (result := self._one_request()) is True:
                pass
            if result is not None:
                self.status, body = result
                self.socket.sendall(body)
                self.log_request()
        except OSError:
            pass  # the client has gone, or was hung up
        finally:
            self._close()

    def _one_request(self) -> Any:
        self.time_start = time.time()
        self.time_finish = 0
        return self.handle_one_request()

    def _close(self) -> None:
        try:
            farewell(self)
        finally:
            self.conductor.closed(self)
            with contextlib.suppress(OSError):
                self.raw.close()
                self.socket.close()

    def read_request(self, raw_requestline: str) -> Any:
        read = super().read_request(raw_requestline)
        length, encoding = (self.headers.get_all(name, []) for name in ("content-length", "transfer-encoding"))
        said = self.headers.as_string().lower().count("content-length:")  # also what pywsgi has thrown away
        odd = self.headers.defects or self.headers.get_payload() or len(encoding) > 1 or said > 1
        framed_twice = bool(encoding) and (bool(length) or said)
        if odd or framed_twice or [each for each in encoding if each.lower() != "chunked"]:
            raise ValueError("it can be read in two ways")
        if length and not length[0].isdecimal():
            raise ValueError("malformed Content-Length")
        return read

    def handle_one_response(self) -> None:
        self._given = 0
        super().handle_one_response()
        length = self.provided_content_length
        bodiless = self.command == "HEAD" or self.code in (204, 304)
        if length is not None and not bodiless and self._given != int(length):
            self.close_connection = True

    def log_request(self) -> None:
        if _access_log.isEnabledFor(logging.INFO):
            host = self.client_address[0] if isinstance(self.client_address, tuple) else "-"
            _access_log.info(
                '"%s" %s %s from %s', self.requestline, self.code, self._given, host,
                extra={"lifecycle_server": "gevent"},
            )  # fmt: skip

    def process_result(self) -> None:
        try:
            super().process_result()
        except (SystemExit, KeyboardInterrupt) as error:  # the hub would take it for its own end
            raise RuntimeError(f"the application raised {type(error).__name__}") from error

    def _write(self, data: bytes) -> None:
        length = self.provided_content_length
        if length is not None:
            data = data[: max(0, int(length) - self._given)]
        self._given += len(data)
        super()._write(data)
