"""Werkzeug's threaded server: run it, and stop it without losing a request.

Theory of operation
-------------------

Werkzeug gives every connection a daemon thread from its accept on; its own stop waits for none of them. Here the main
thread accepts, in a loop of its own that a pipe can wake (no 0.5 s poll), and every connection is counted from before
its thread starts until after its farewell, so that the drain knows what is open.

A connection is *silent* until its first byte. Its thread waits for that byte and for the hang-up pipe at once: when
the write end of that pipe is closed, a linger after the listener was, every silent thread sees it and leaves. From
the first byte on the connection is busy, and the drain waits for it.

Werkzeug answers every request with ``Connection: close``. Two things that it does after an answer are replaced:

- It reads what else the client has sent, ten megabytes at a time, which blocks the thread until the client closes if
  there is but one byte, and waits 10 ms for it if there is none. Once the request's own stream has been handed to the
  application, ``rfile`` and ``connection`` are put aside for a stand-in that is always at its end.
- It closes. Here the connection is shut down for writing and read until the client closes too (the farewell, as in the
  waitress runner: a close with unread input resets the connection and destroys the end of the answer), and, in a
  drain, until the client's kernel has acknowledged every byte.

Pipelined requests are answered as well, although Werkzeug has no keep-alive: if a request certainly has no body, so
that the bytes behind it can only be the next one, and such bytes are here, the answer does not say close and the
connection goes on, provided that the answer turns out as long as it said. The head is judged strictly, because two
readings of where a request ends are how requests are smuggled: GET or HEAD, HTTP/1.1, no header that speaks of a body
at all, nothing that the header parser found odd. What comes behind any other request is not looked at: the client
was told close, and sends it again.

A websocket is a request that runs until it ends: it is in flight, its connection is busy, and the drain waits for it.
``_upgrade.py`` tells how it is noticed and kept from being answered. Whoever has not ended it by the end of the
shutdown finds it hung up.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from werkzeug.serving import LISTEN_QUEUE, ThreadedWSGIServer, WSGIRequestHandler

from .. import _sockets
from .._inflight import Load, RequestInfo
from .._parties import FULL
from . import _binding, _closing
from ._upgrade import LentSocket, Unanswered

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def create(
    app: WSGIApplication,
    host: str | None,
    port: int | None,
    lane: Callable[[str], str | None],
    options: dict[str, Any],
) -> Werkzeug:
    """Make the server, bound and listening. Probes need no lane: no request ever queues for a thread."""
    for option in options:
        if option not in _binding.OPTIONS:
            raise ValueError(
                f"werkzeug has no option '{option}'; it takes 'host', 'port', 'listen', 'unix_socket' and 'sockets'."
            )
    return Werkzeug(app, *_binding.where(host, port, options))


def _address(sock: socket.socket) -> str:
    """The address of a socket that was given, as an option would name it."""
    if sock.family == socket.AF_UNIX:
        return f"{_binding.UNIX}{os.path.abspath(os.fsdecode(sock.getsockname()))}"
    return _binding.join(*sock.getsockname()[:2])


class Werkzeug:
    """A threaded Werkzeug server that is ours from its first to its last connection."""

    name = "werkzeug"
    ours = True
    means = "started by flask_lifecycle"
    promise = FULL
    advice = ""

    def __init__(self, app: WSGIApplication, addresses: list[str], given: Sequence[socket.socket] = ()) -> None:
        self.announced = False
        self.last_accept = 0.0
        self._listeners = [_Listener(app, _address(sock), sock, self, given=sock) for sock in given]
        for address in addresses:
            try:
                self._listeners.append(_Listener(app, address, _binding.bind_one(address, LISTEN_QUEUE), self))
            except OSError as error:
                for listener in self._listeners:
                    listener.server_close()
                raise _sockets.bind_error(error, address) from None
        self._wake_read, self._wake_write = os.pipe()
        self.hang_up_read, self._hang_up_write = os.pipe()
        self.ended_read, ended_write = os.pipe()
        os.close(ended_write)  # so that its read end is always ready, with an end of file
        os.set_blocking(self._wake_write, False)
        self._posted: deque[Callable[[], None]] = deque()
        self._closing = _closing.ClosingListeners()
        self._held_back = False  # nobody is accepted: the listeners are another process's, as yet or from now on
        self._ended = False
        self._changed = threading.Condition()  # guards connections
        self._connections: dict[socket.socket, _Connection] = {}
        _sockets.close_in_children(self)

    # -- verbs, from any thread but the loop's --------------------------------------------------------------------

    def sockets(self) -> list[socket.socket]:
        """Everything that a forked child must not keep open."""
        connections = self._connections.copy()
        lent = [connection.lent for connection in connections.values() if connection.lent is not None]
        return [*(listener.socket for listener in self._listeners), *connections, *lent]

    def addresses(self) -> list[str]:
        return [_sockets.describe(listener.socket) for listener in self._listeners]

    def listeners(self) -> list[socket.socket]:
        return [listener.given or listener.socket for listener in self._listeners]

    def hold_back(self) -> None:
        self._held_back = True

    def take_over(self, ours: Collection[socket.socket]) -> None:
        self._post(lambda: self._take_over(ours))

    def hand_over(self) -> None:
        self._post(self._hand_over)

    def announce(self) -> None:
        self.announced = True  # every answer says close anyway

    def stop_accepting(self, timeout: float) -> None:
        self._post(lambda: self._begin_closing(timeout))
        self._closing.done.wait(timeout)

    def wait_idle(self, timeout: float, linger: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, min(timeout, linger))
        # A byte that is never read, so that every silent thread sees it; a close could be hidden by a forked child.
        os.write(self._hang_up_write, b"x")
        with self._changed:
            return self._changed.wait_for(lambda: not self._connections, max(0.0, deadline - time.monotonic()))

    def unfinished(self) -> list[RequestInfo]:
        now = time.monotonic()
        with self._changed:
            connections = list(self._connections.values())
        return [
            RequestInfo(connection.method, connection.path, now - connection.since, stage=connection.stage)
            for connection in connections
            if connection.stage in ("receiving", "sending")
        ]

    def load(self) -> Load:
        now = time.monotonic()
        with self._changed:
            connections = list(self._connections.values())
        ages = [now - connection.since for connection in connections if connection.stage == "running"]
        return Load(0, busy=len(ages), oldest=max(ages, default=0.0))

    def canary(self, done: Callable[[], None]) -> bool:
        self._post(done)  # each connection has a worker of its own; what may stand still is the loop that accepts them
        return True

    def stop(self) -> None:
        with self._changed:
            taken = [sock for sock, connection in self._connections.items() if connection.is_taken]
        for sock in taken:
            _sockets.hang_up(sock)  # its own end it has not found, and there is no answer that would be cut off
        self._post(lambda: setattr(self, "_ended", True))

    def _post(self, function: Callable[[], None]) -> None:
        self._posted.append(function)
        with contextlib.suppress(OSError):
            os.write(self._wake_write, b"x")

    # -- the loop -------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until :meth:`stop`, in the calling thread."""
        while not self._ended:
            self._tick()
        self._release()

    def close(self) -> None:
        """Let go of everything without having served."""
        for listener in self._listeners:
            listener.server_close()
            if listener.given is None and not self._held_back:
                _sockets.unlink(listener.path, listener.identity)
        self._release()

    def _tick(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        accepting = () if self._held_back else self._listeners
        listening = {listener.fileno(): listener for listener in accepting if listener.fileno() >= 0}
        for descriptor in listening:
            poll.register(descriptor, select.POLLIN)
        # At most a second, so that a signal which another thread took is not left lying.
        for descriptor, _event in poll.poll(int((_closing.CLOSING_TICK if self._closing.under_way else 1.0) * 1000)):
            if descriptor == self._wake_read:
                os.read(self._wake_read, 4096)
            else:
                listening[descriptor].accept_one()
        while self._posted:
            self._posted.popleft()()
        self._closing.step()

    def _take_over(self, ours: Collection[socket.socket]) -> None:
        self._held_back = False
        for listener in self._listeners:
            if listener.given is not None and listener.given in ours:
                listener.given.close()  # its duplicate goes on
                listener.given = None

    def _hand_over(self) -> None:
        """Between two ticks, so what has been accepted has its thread; what has not is still in the kernel's queue."""
        if self._closing.begun:
            return  # too late
        self._held_back = True
        for listener in self._listeners:
            listener.server_close()  # our copy: a listener is closed with its last one
            _closing.log_closed("left to another process")
        self._closing.done.set()

    def _begin_closing(self, patience: float) -> None:
        if self._held_back:
            self._hand_over()
            return
        closing = [
            _closing.ClosingListener(
                listener.socket,
                accept=listener.accept_one,
                close=listener.close_and_release,
                hold=listener.hold,
                last_accept=lambda: self.last_accept,
                path=listener.path,
                identity=listener.identity,
                patience=patience,
            )
            for listener in self._listeners
            if listener.given is None
        ]
        for listener in self._listeners:
            if listener.given is not None:
                listener.server_close()  # our duplicate
                _closing.log_closed("left to its giver")
        self._closing.begin(closing)

    def _release(self) -> None:
        with self._changed:
            if self._connections:
                return  # stragglers still poll these, and the process is about to leave anyway
        pipes = (self._wake_read, self._wake_write, self.hang_up_read, self._hang_up_write, self.ended_read)
        for descriptor in pipes:
            os.close(descriptor)

    # -- connections, from their threads --------------------------------------------------------------------------

    def opened(self, sock: socket.socket) -> None:
        self.last_accept = time.monotonic()
        with self._changed:
            self._connections[sock] = _Connection()

    def closed(self, sock: socket.socket) -> None:
        with self._changed:
            self._connections.pop(sock, None)
            self._changed.notify_all()

    def connection(self, sock: socket.socket) -> _Connection:
        return self._connections[sock]


class _Connection:
    """What one connection is doing; written by its own thread alone."""

    def __init__(self) -> None:
        self.stage = "silent"
        self.since = time.monotonic()
        self.method = self.path = "-"
        self.lent: LentSocket | None = None  # what the application may take it over by

    @property
    def is_taken(self) -> bool:
        return self.lent is not None and self.lent.taken

    def enter(self, stage: str) -> None:
        self.stage = stage
        self.since = time.monotonic()


_RESULT = "flask_lifecycle.result"
_SOCKET = "werkzeug.socket"


def _guarded(app: WSGIApplication) -> WSGIApplication:
    """Let the handler find what the application returned, because Werkzeug does not always close it.

    And let nothing that it raises be taken for the client's having gone (``ConnectionError``, ``TimeoutError``) or for
    the thread's end (``SystemExit``): the request would get no answer.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            returned = app(environ, start_response)
        except BaseException as error:
            lent = environ.get(_SOCKET)
            # Over a connection that was taken it is the client's going, or the wish for no answer.
            taken = isinstance(lent, LentSocket) and lent.taken
            if isinstance(error, Exception) and (taken or not isinstance(error, (ConnectionError, TimeoutError))):
                raise
            raise RuntimeError(f"the application raised {type(error).__name__}") from error
        result = environ[_RESULT] = _Result(returned)
        return result

    return guarded


class _Result:
    """What an application returned, closed once however often it is asked to."""

    def __init__(self, result: Iterable[bytes]) -> None:
        self._result = result
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._result)

    def close(self) -> None:
        closed, self._closed = self._closed, True
        if not closed and hasattr(self._result, "close"):
            self._result.close()


class _Listener(ThreadedWSGIServer):
    """One address, served by Werkzeug on a socket that is bound already."""

    def __init__(
        self,
        app: WSGIApplication,
        address: str,
        sock: socket.socket,
        runner: Werkzeug,
        given: socket.socket | None = None,
    ) -> None:
        self.runner = runner
        self.given = given  # whose it is otherwise; what is served is a duplicate
        self.path = address.removeprefix(_binding.UNIX) if address.startswith(_binding.UNIX) else None
        self.identity = _sockets.socket_identity(self.path) if self.path is not None else None
        host, port = (address, 0) if self.path is not None else _binding.split(address)
        if given is not None:
            given.listen(LISTEN_QUEUE)
        with contextlib.nullcontext() if given is not None else sock:
            super().__init__(host, port, _guarded(app), handler=_Handler, fd=sock.fileno())
        self.socket.setblocking(False)
        self._held: list[tuple[Any, Any]] | None = None

    def accept_one(self) -> bool:
        """Accept a waiting connection and start its thread; ``False`` if there was none."""
        try:
            sock, address = self.get_request()
        except OSError:
            return False
        self.runner.opened(sock)
        if self._held is None:
            self._start(sock, address)
        else:
            self._held.append((sock, address))
        return True

    def _start(self, sock: Any, address: Any) -> None:
        try:
            self.process_request(sock, address)
        except RuntimeError:  # no thread to be had
            self.handle_error(sock, address)
            self.close_request(sock)
            self.runner.closed(sock)

    def hold(self) -> None:
        """Accept without answering, until the listener is closed."""
        self._held = []

    def close_and_release(self) -> None:
        self.server_close()
        held, self._held = self._held or [], None
        for sock, address in held:
            self._start(sock, address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.runner.closed(request)

    def shutdown_request(self, request: Any) -> None:
        """The farewell, in the connection's own thread."""
        connection = self.runner.connection(request)
        if connection.stage != "silent" and _sockets.half_close(request):
            connection.enter("sending")
            with contextlib.suppress(OSError):
                self._farewell(request)
        _sockets.hang_up(request)
        self.close_request(request)

    def _farewell(self, sock: socket.socket) -> None:
        hang_up = self.runner.hang_up_read
        until = time.monotonic() + _sockets.FAREWELL_IN_ALL
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.register(hang_up, select.POLLIN)
        while time.monotonic() < until:
            ready = dict(poll.poll(_sockets.FAREWELL * 1000))
            if sock.fileno() not in ready or _is_over(sock):
                break  # silent, or at its end; one that still sends goes on, also after the hang-up
        # In a drain the end of this process may be the end of its network: wait for the acknowledgements, as long as
        # it takes. What the client still sends may stay unread meanwhile: it has been told to send no more.
        pause = threading.Event()
        while self.runner.announced and _sockets.unsent(sock):
            pause.wait(_sockets.ACK_TICK)


def _is_over(sock: socket.socket) -> bool:
    """Read what is there, and say whether it is the end."""
    try:
        return not sock.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:  # whoever has taken the connection over has read it between our poll and our read
        return False


class _AtItsEnd:
    """Stands in for a request's stream and socket once the answer is out: nothing more is to be read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def read(self, size: int = -1) -> bytes:
        return b""


class _Handler(WSGIRequestHandler):
    """One connection."""

    server: _Listener
    # As BaseWSGIServer would set it on a threaded server's handler.
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._stream, self._sink, self._socket = self.rfile, self.wfile, self.connection

    def handle_one_request(self) -> None:
        connection = self.server.runner.connection(self.request)
        while not self._buffered():
            if not self._first_byte() or not _sockets.has_bytes(self._socket):
                self.close_connection = True
                return
        connection.enter("receiving")
        self._answer: _Answer | None = None
        try:
            super().handle_one_request()
        finally:
            if self._answer is not None and not self._answer.complete:
                self.close_connection = True  # what came next would be taken for the rest of this one
            self.rfile, self.wfile, self.connection = self._stream, self._sink, self._socket
            # run_wsgi takes a descriptor (a selector) before it closes the result, and without one never does: the
            # request would be in flight for ever.
            result = getattr(self, "environ", {}).pop(_RESULT, None)
            if result is not None:
                result.close()
            lent = connection.lent
            if lent is not None and not lent.taken:
                lent.close()

    def _first_byte(self) -> bool:
        """Wait for the client to say something; ``False`` when it is time to hang up."""
        hang_up = self.server.runner.hang_up_read
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(hang_up, select.POLLIN)
        return any(descriptor != hang_up for descriptor, _event in poll.poll())

    def _buffered(self) -> bool:
        """Whether bytes of a request are here, in our buffer or the kernel's; empty lines before one are not."""
        self._socket.settimeout(0)
        try:
            while data := self._stream.peek(1):  # type: ignore[attr-defined]
                empty = len(data) - len(data.lstrip(b"\r\n"))
                self._stream.read(empty)
                if empty < len(data):
                    return True
            return False
        except OSError:
            return False
        finally:
            self._socket.settimeout(None)

    def make_environ(self) -> Any:
        environ = super().make_environ()
        connection = self.server.runner.connection(self.request)
        connection.method, connection.path = self.command, environ["PATH_INFO"]
        connection.enter("running")
        self.rfile = self.connection = _AtItsEnd(self.server.runner.ended_read)  # type: ignore[assignment]
        if self._is_whole() and self._buffered():
            self.wfile = self._answer = _Answer(self._sink, self.command)  # type: ignore[assignment]
        if "upgrade" in self.headers:
            self._lend(environ, connection)
        return environ

    def _lend(self, environ: WSGIEnvironment, connection: _Connection) -> None:
        """Let the application take the connection over."""
        self.close_connection = True  # what comes next is no request, whether it does or not
        del environ[_SOCKET]
        # Where no descriptor is to be had, whoever looks for the socket fails, and that is answered.
        with contextlib.suppress(OSError):
            environ[_SOCKET] = connection.lent = lent = LentSocket(self._socket)
            self.wfile = Unanswered(self._sink, lent)  # type: ignore[assignment]

    def _is_whole(self) -> bool:
        """Whether this request certainly ends with its head, so that what comes behind it can only be the next."""
        names = {name.strip().lower() for name in self.headers}
        return (
            self.command in ("GET", "HEAD")
            and self.request_version == "HTTP/1.1"
            and not self.close_connection
            and not names & {"content-length", "transfer-encoding", "upgrade", "expect"}
            and not self.headers.defects
            and not self.headers.get_payload()
        )

    def send_response(self, code: int, message: str | None = None) -> None:
        if self._answer is not None:
            self._answer.code = code
        super().send_response(code, message)

    def send_header(self, keyword: str, value: str) -> None:
        if self._answer is not None:
            if keyword == "Connection" and value == "close" and not self.close_connection:
                return
            self._answer.header(keyword.lower(), value)
        super().send_header(keyword, value)

    def end_headers(self) -> None:
        super().end_headers()
        if self._answer is not None:
            self._answer.begin_body()


class _Answer:
    """An answer behind which the connection goes on: written through, and watched for its own end."""

    def __init__(self, sink: Any, method: str) -> None:
        self.code = 0
        self._sink = sink
        self._method = method
        self._length: int | None = None
        self._chunked = False
        self._in_body = False
        self._body = 0
        self._last = b""

    def header(self, name: str, value: str) -> None:
        if name == "content-length":
            self._length = int(value) if value.strip().isdecimal() and self._length is None else -1
        elif name == "transfer-encoding":
            self._chunked = True

    def begin_body(self) -> None:
        self._in_body = True

    def write(self, data: bytes) -> int:
        if self._in_body:
            self._body += len(data)
            self._last = data
        return int(self._sink.write(data))

    def flush(self) -> None:
        self._sink.flush()

    @property
    def complete(self) -> bool:
        """Whether the client can tell where it ended, and it ended there."""
        if not self._in_body:
            return False
        if self._method == "HEAD" or self.code in (204, 304):
            return self._body == 0
        if self._chunked:
            return self._length is None and self._last == b"0\r\n\r\n"
        return self._body == self._length
