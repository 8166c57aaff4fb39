"""The second listener: the probes, on a port of their own, from threads of their own.

It answers while every worker of the application is busy, and it closes last. It serves whatever WSGI application it is
given (the probe views) with Werkzeug's threaded server, which is there wherever Flask is. A connection holds a thread
only while it speaks: it is given five seconds in all for its request, and of more than 64 at once the one that has been
silent longest is hung up, so that a port which is open to the network can neither be made to use up the process's
threads nor be blocked for the prober. Of those whose request is here 256 are answered at once; the engine of the checks
lets no more than half as many wait for a check, so that liveness has room while readiness is flooded.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from . import _sockets
from ._state import logger

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

# A key of the environ: the request has come to this listener, and has a thread of its own.
LISTENER = "flask_lifecycle.listener"

_REQUEST_TIMEOUT = 5.0
_CONNECTIONS = 64
# How long nothing is accepted when there are no descriptors left, in milliseconds: the connection stays in the queue,
# and to look at it again at once would take all of a processor.
_BREATH = 100
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# More than wait for checks at most (see the engine), so that liveness, which waits for none, always finds room.
_ANSWERS = 256


class ProbeServer:
    """A listener bound when it is made, answering from :meth:`start` to :meth:`close`.

    :param shared: other processes of this user may listen on the same port: workers of one server.
    :param handed: the listener of another process, which is used if it has this address.
    :raises OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        app: WSGIApplication,
        host: str,
        port: int,
        *,
        shared: bool = False,
        handed: socket.socket | None = None,
    ) -> None:
        try:
            family, kind, address = _sockets.resolve(host, port)
            usable = handed is not None and _is_at(handed, family, address)
            sock = handed if handed is not None and usable else socket.socket(family, kind)
        except OSError as error:
            raise _taken(error, host, port) from None
        with sock:
            try:
                if sock is not handed:
                    _listen(sock, address, shared)
            except OSError as error:
                raise _taken(error, host, port) from None
            self._server = _Server(host, port, app, handler=_Handler, fd=sock.fileno())
        self._server.socket.setblocking(False)
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="lifecycle-probes", daemon=True)
        self.host = host
        self.port: int = self._server.socket.getsockname()[1]
        _sockets.close_in_children(self)

    @property
    def listener(self) -> socket.socket:
        """Its listening socket."""
        return self._server.socket

    def sockets(self) -> list[socket.socket]:
        """Everything that a forked child must not keep open."""
        return [self._server.socket, *self._server.connections()]

    @property
    def url(self) -> str:
        """Where it listens."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        logger.info("probe listener on %s", self.url, extra={"lifecycle_port": self.port})

    def close(self) -> None:
        """Stop listening. Does not wait for answers under way, which have threads of their own."""
        os.write(self._end_write, b"x")
        if self._thread.is_alive():
            self._thread.join(1.0)
        os.close(self._end_write)
        os.close(self._end_read)
        self._server.server_close()

    def _serve(self) -> None:
        """Accept until a byte comes through the pipe; no polling, unlike ``serve_forever``."""
        poll = select.poll()
        poll.register(self._server.fileno(), select.POLLIN)
        poll.register(self._end_read, select.POLLIN)
        end = select.poll()
        end.register(self._end_read, select.POLLIN)
        while True:
            ready = dict(poll.poll(self._server.hang_up_late()))
            if self._end_read in ready:
                return
            if ready and not self._server.accept_one():
                end.poll(_BREATH)


def _is_at(sock: socket.socket, family: int, address: Any) -> bool:
    name = sock.getsockname()
    return sock.family == family and name[0] == address[0] and address[1] in (0, name[1])


def _listen(sock: socket.socket, address: Any, shared: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    sock.listen(128)


def _taken(error: OSError, host: str, port: int) -> OSError:
    cure = "set 'LIFECYCLE_PROBE_PORT' to a free port, or to 0 for any"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        cure = "set 'LIFECYCLE_PROBE_HOST' to an address of this machine, or to '0.0.0.0' for all"
    return OSError(error.errno, f"The probe listener cannot listen on {host}:{port} ({error.strerror}); {cure}.")


class _Server(ThreadedWSGIServer):
    lifecycle_probes = True  # so that nobody takes it for the application's own server

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = threading.Lock()  # guards both collections
        # Connections whose request is not read yet, oldest first, by when they were accepted; and all the others.
        self._reading: dict[socket.socket, float] = {}
        self._answering: set[socket.socket] = set()

    def accept_one(self) -> bool:
        """Take up a connection; ``False`` if that cannot be done now, nor in the next moment."""
        try:
            sock, address = self.get_request()
        except OSError as error:
            return error.errno not in _EXHAUSTED
        with self._lock:
            if len(self._answering) >= _ANSWERS:
                sock.close()  # as many as that wait for slow checks
                return True
            if len(self._reading) >= _CONNECTIONS:
                # The one that has kept silent longest makes room: what comes now is more likely a prober.
                oldest = next(iter(self._reading))
                del self._reading[oldest]
                _sockets.hang_up(oldest)
            self._reading[sock] = time.monotonic()
        try:
            self.process_request(sock, address)
        except RuntimeError:  # no thread to be had
            self.forget(sock)
            self.shutdown_request(sock)
        return True

    def connections(self) -> list[socket.socket]:
        """Those that are open. Takes no lock, which nobody would give back in a child."""
        return [*self._reading.copy(), *self._answering.copy()]

    def hang_up_late(self) -> float | None:
        """End the connections that have not sent their request in time; milliseconds until the next is due, or none."""
        now = time.monotonic()
        with self._lock:
            for sock, since in self._reading.items():
                if now - since < _REQUEST_TIMEOUT:
                    return (since + _REQUEST_TIMEOUT - now) * 1000 + 1
                _sockets.hang_up(sock)
        return _REQUEST_TIMEOUT * 1000 if self._reading else None

    def answering(self, sock: socket.socket) -> None:
        """The request is here: from now on it takes as long as the checks do."""
        with self._lock:
            self._reading.pop(sock, None)
            self._answering.add(sock)

    def forget(self, sock: socket.socket) -> None:
        with self._lock:
            self._reading.pop(sock, None)
            self._answering.discard(sock)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("probe connection failed", exc_info=True, extra={"lifecycle_port": self.server_address[1]})


class _Lines(io.BufferedReader):
    """What a client sends, and the last line of it that was read."""

    last = b""

    def readline(self, size: int | None = -1, /) -> bytes:
        self.last = super().readline(size)
        return self.last


class _Handler(WSGIRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_TIMEOUT

    def setup(self) -> None:
        super().setup()
        self.rfile: _Lines = _Lines(self.rfile.detach())

    def parse_request(self) -> bool:
        """Read the headers; ``False`` if there is nothing to be answered.

        For the base class the end of a connection ends them, too. But what was cut off may have been meant otherwise:
        a drain that somebody thought better of, or a silent client whom we have hung up on and who is no prober.
        """
        if not super().parse_request():
            return False
        whole = self.rfile.last in (b"\r\n", b"\n")
        self.close_connection = self.close_connection or not whole
        return whole

    def make_environ(self) -> Any:
        self.server.answering(self.request)
        return {**super().make_environ(), LISTENER: True}

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A probe is never logged."""

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's own name
        logger.debug("probe listener: " + format, *args, extra={"lifecycle_port": self.server.server_address[1]})
