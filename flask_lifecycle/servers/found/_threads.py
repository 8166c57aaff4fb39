"""The connections of a Werkzeug server, as the stacks of its threads show them.

Werkzeug publishes no list of its connections. Each has a thread from its accept on (or the server's own, one after the
other, ``--without-threads``), and on that thread's stack lie the connection, its handler, and what has been done with
them. Nothing of the server is replaced for this, and it holds for connections that were accepted before anybody looked.
A look from outside may come at a bad moment and see less than there is; it never sees a connection end early, because
a thread is counted by its name from before it starts.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Container, Iterable, Sequence
from socketserver import BaseRequestHandler, BaseServer, ThreadingMixIn
from types import FrameType
from typing import Any

from werkzeug.serving import WSGIRequestHandler

from ... import _sockets

_IN_THREAD = ThreadingMixIn.process_request_thread.__code__
_IN_TURN = BaseServer.process_request.__code__
_IN_LOOP = BaseServer._handle_request_noblock.__code__  # type: ignore[attr-defined]
_HANDLER = BaseRequestHandler.__init__.__code__
_LOOP = BaseServer.serve_forever.__code__
_WERKZEUG = WSGIRequestHandler.run_wsgi.__code__.co_filename
# How socketserver's threads are named, since Python 3.10.
THREAD_NAME = "(process_request_thread)"

# In struct tcp_info, linux/tcp.h.
_LAST_DATA_RECV = 8 + 11 * 4


class Connection:
    """One connection, at the moment of a look."""

    def __init__(
        self,
        sock: Any = None,
        handler: Any = None,
        *,
        in_loop: bool = False,
        answered: bool = False,
        shaking: bool = False,
    ) -> None:
        self.sock = sock
        self.in_loop = in_loop  # which comes to nothing else until this one has ended
        self.answered = answered  # the answer is out, and what else the client sends is read and thrown away
        self._shaking = shaking  # a TLS handshake is under way
        self._told: dict[str, Any] = {} if handler is None else handler.__dict__
        self._known = handler is not None

    @property
    def stage(self) -> str:
        """``silent`` until the client has said something, then as in :class:`flask_lifecycle._inflight.RequestInfo`."""
        if self._shaking:
            return "silent"
        if self._known and not self._told.get("raw_requestline"):
            return "receiving" if _bytes_received(self.sock) else "silent"
        if self.answered:
            return "sending"
        return "running" if "environ" in self._told else "receiving"

    @property
    def method(self) -> str:
        return str(self._told.get("command") or "-")

    @property
    def path(self) -> str:
        return str(self._told.get("path") or "-").partition("?")[0]

    @property
    def key(self) -> tuple[int, str]:
        """What tells it from the others that are open, and its handshake from what comes after."""
        return id(self.sock), "handshake" if self._shaking else ""

    def is_over(self, seconds: float) -> bool:
        """Whether nothing has come from the client for so long, if it has its answer; ``True`` where nobody tells."""
        milliseconds = _sockets.tcp_info(self.sock, "=I", _LAST_DATA_RECV) if self.answered else None
        return milliseconds is None or milliseconds >= seconds * 1000

    def release(self) -> None:
        """Let whoever reads from it find its end. What is written still reaches the client."""
        # TLS would take its state away from the thread that uses it.
        with contextlib.suppress(OSError, TypeError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)


def _bytes_received(sock: Any) -> int:
    """How much a client has sent. With TLS and Unix sockets a request counts from its first whole line on."""
    if hasattr(sock, "context"):
        return 0
    return _sockets.bytes_received(sock) or 0


def connections(servers: Container[Any]) -> list[Connection]:
    """Those that are open."""
    frames = sys._current_frames()
    found = []
    for thread in threading.enumerate():
        connection = _of(frames.get(thread.ident or 0), servers)
        if connection is None and thread.name.endswith(THREAD_NAME):
            connection = Connection()  # about to begin, or at its end
        if isinstance(connection, Connection):
            found.append(connection)
    return found


def _of(frame: FrameType | None, servers: Container[Any]) -> Connection | bool | None:
    """The connection that a thread works on; ``False`` if it is another server's, ``None`` if there is none."""
    handler, answered, shaking = None, False, None
    handshake = getattr(getattr(sys.modules.get("ssl"), "SSLSocket", None), "do_handshake", None)
    while frame is not None:
        code = frame.f_code
        if code is _HANDLER:
            # A handshake further in is one of the application's own, as a client.
            handler, shaking = frame.f_locals.get("self"), None
        elif code.co_name == "execute" and code.co_filename == _WERKZEUG:
            answered = "selector" in frame.f_locals
        elif handshake is not None and code is handshake.__code__:
            shaking = frame.f_locals.get("self")
        elif code is shake_hands.__code__:
            return Connection(shaking, shaking=True)
        elif code is _IN_THREAD or code is _IN_LOOP or code is _IN_TURN:
            seen = frame.f_locals
            if seen.get("self") not in servers:
                return False
            in_loop = code is not _IN_THREAD
            if shaking is not None:
                return Connection(shaking, in_loop=in_loop, shaking=True)
            return Connection(seen.get("request"), handler, in_loop=in_loop, answered=answered)
        frame = frame.f_back
    return None


def shake_hands(context: Any, sock: socket.socket) -> Any:
    """Secure a connection that was accepted; ``None`` if the client does not go along."""
    try:
        return context.wrap_socket(sock, server_side=True)
    except OSError:
        sock.close()
        return None


def loops(servers: Sequence[Any]) -> list[Any]:
    """Those of the servers that are inside of ``serve_forever``, in any thread."""
    serving = []
    for frame in sys._current_frames().values():
        looked: FrameType | None = frame
        while looked is not None:
            if looked.f_code is _LOOP:
                serving.append(looked.f_locals.get("self"))
            looked = looked.f_back
    return [server for server in servers if any(server is each for each in serving)]


# -- in a process that was forked for one request ---------------------------------------------------------------------


def leave_signals_to_parent(signals: Iterable[int]) -> None:
    """Let a stop's signals do nothing here, and SIGURG, which the parent sends, end a connection that is silent."""
    for signum in signals:
        # Not SIG_IGN, which would be inherited by what the request runs.
        signal.signal(signum, _nothing)
    signal.signal(signal.SIGURG, _release_own)


def _nothing(_signum: int, _frame: FrameType | None) -> None:
    pass


def _release_own(_signum: int, frame: FrameType | None) -> None:
    answered = False
    while frame is not None:
        if frame.f_code.co_name == "execute" and frame.f_code.co_filename == _WERKZEUG:
            answered = "selector" in frame.f_locals
        if frame.f_code is _HANDLER:
            handler = frame.f_locals["self"]
            connection = Connection(handler.request, handler, answered=answered)
            if connection.stage in ("silent", "sending"):
                connection.release()
            return
        frame = frame.f_back
