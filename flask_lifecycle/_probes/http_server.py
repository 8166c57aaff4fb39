"""A small HTTP server with limits, for the probe listener.

It answers while every worker of the application is busy, and closes last. It has a thread for each connection, on
Werkzeug's server, which is installed with Flask.

Clients of a port that is open to the network must not exhaust the process or block the prober. So each connection has
three stages, whose time limits add up to its deadline from accept to close:

- *reading*: until its request has arrived. 64 connections at once; five seconds.
- *answering*: as long as the checks may take, and a few seconds to send the answer. 256, with those that linger.
- *lingering*: the answer is sent and the client still sends, for example a body. It is read for a moment, because a
  connection that is closed with unread input is reset, and the answer may be lost with it.

If a stage is full, the newest connection gets in, because it is more likely a prober, and the oldest is closed; of
answering and lingering connections one that lingers, else the answer that takes longest. At most 64 KB of each
connection are read. Its thread ends when it is closed, unless code of the application holds it (a renderer that hangs):
once hundreds of threads are held, no connection is accepted.

At most half as many requests wait for a check as are answered at once (see the engine), so that a flood of readiness
probes leaves room for liveness, which waits for no check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from werkzeug import Request, Response
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from .._config import PROBE_TIMEOUT
from .._core.log import logger
from .._servers import sockets

_BACKLOG = 128
# The maximum number of bytes read from a connection; a browser may send 16 KB of cookies.
_MOST_READ = 1 << 16
# In bytes, as gunicorn limits a header; Werkzeug takes 4 ms to unquote 60,000.
_LONGEST_REQUEST_LINE = 8190
# Milliseconds for more input to begin after the answer; as in Werkzeug.
_REST = 10.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a listener allows its clients; times in seconds."""

    reading: float = 5.0
    sending: float = 5.0  # beside what the checks take
    lingering: float = 1.0
    connections: int = 64  # reading at once
    answers: int = 256  # answering or lingering at once; more than wait for checks at most (see the engine)
    threads: int = 1024  # of connections, closed ones included
    # Without accepting if no thread or descriptor is left: the connection stays in the queue, and polling it again at
    # once would take all of a processor.
    pause: float = 0.1


_LIMITS = Limits()


def _is_at(sock: socket.socket, family: int, address: Any) -> bool:
    name = sock.getsockname()
    return sock.family == family and name[0] == address[0] and address[1] in (0, name[1])


def _taken(error: OSError, host: str, port: int) -> OSError:
    cure = "set 'LIFECYCLE_PROBE_PORT' to a free port, or to 0 for any"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        cure = "set 'LIFECYCLE_PROBE_HOST' to an address of this machine, or to '0.0.0.0' for all"
    return OSError(error.errno, f"The probe listener cannot listen on {host}:{port} ({error.strerror}); {cure}.")


class _Stage(dict[socket.socket, float]):
    """The connections in one stage, by when they entered it, the oldest first."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def push_out(self) -> None:
        """Close the oldest. Its thread finds the end of the connection, and removes it."""
        sock = next(iter(self))
        del self[sock]
        sockets.hang_up(sock)

    def hang_up_late(self, now: float) -> float | None:
        """Close those whose time is over; return the seconds until the next is due."""
        while self:
            left = next(iter(self.values())) + self.seconds - now
            if left > 0:
                return left
            self.push_out()
        return None


class ProbeServer(ThreadedWSGIServer):
    """A listener that is bound when it is made, and answers from :meth:`start` to :meth:`close`.

    :param answer: returns the response to a request; called in any thread.
    :param shared: other processes of this user, the workers of one server, may listen on the same port.
    :param handed: the listener of another process, used if it has this address.
    :param v6only: the host ``::`` means the IPv6 addresses alone.
    :param timeout: seconds for the answer.
    :param limits: of connections and times.
    :raises OSError: the address cannot be listened on.
    """

    lifecycle_probes = True  # so that discovery does not take it for the application's own server

    def __init__(
        self,
        answer: Callable[[Request], Response],
        host: str,
        port: int,
        *,
        shared: bool = False,
        handed: socket.socket | None = None,
        v6only: bool = False,
        timeout: float = PROBE_TIMEOUT,
        limits: Limits = _LIMITS,
    ) -> None:
        try:
            family, kind, address = sockets.resolve(host, port)
            if handed is None or not _is_at(handed, family, address):
                handed = sockets.listen(family, kind, address, _BACKLOG, shared=shared, v6only=v6only)
        except OSError as error:
            raise _taken(error, host, port) from None
        with handed:
            # By its number, as Werkzeug takes each name for one of IPv4. No application is called.
            super().__init__(address[0], port, None, handler=_Handler, fd=handed.fileno())  # type: ignore[arg-type]
        sockets.probe_listeners.add(self.socket)
        self.socket.setblocking(False)
        self.host, self.answer, self.limits = host, answer, limits
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="lifecycle-probes", daemon=True)
        self._lock = threading.Lock()  # guards what follows
        self.reading, self.lingering = _Stage(limits.reading), _Stage(limits.lingering)
        self.answering = _Stage(timeout + limits.sending)
        self._stages = (self.reading, self.answering, self.lingering)
        self.open: set[socket.socket] = set()  # in any stage or in none, until their threads have ended
        sockets.close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """The sockets that a forked child must close. Takes no lock, which might stay locked there."""
        return [self.socket, *self.open.copy()]

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def allow(self, seconds: float) -> None:
        """Set the time limit of an answer; some seconds for sending are added."""
        self.answering.seconds = seconds + self.limits.sending

    def start(self) -> None:
        self._thread.start()
        logger.info("probe listener on %s", self.url, extra={"lifecycle_port": self.port})

    def close(self) -> None:
        """Stop listening. Does not wait for answers in progress, which have threads of their own."""
        os.write(self._end_write, b"x")
        if self._thread.is_alive():
            self._thread.join(1.0)
        os.close(self._end_write)
        os.close(self._end_read)
        self.server_close()

    def _serve(self) -> None:
        """Accept until the pipe has a byte; without polling, unlike ``serve_forever``."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.register(self._end_read, select.POLLIN)
        end = select.poll()
        end.register(self._end_read, select.POLLIN)
        while True:
            ready = dict(poll.poll(self.hang_up_late()))
            if self._end_read in ready:
                return
            if ready and not self.accept_one():
                end.poll(self.limits.pause * 1000)

    def accept_one(self) -> bool:
        """Accept a connection; ``False`` if that cannot succeed for a moment."""
        if len(self.open) >= self.limits.threads:
            return False
        try:
            sock, address = self.get_request()
        except OSError as error:
            return error.errno not in _EXHAUSTED
        with self._lock:
            self.open.add(sock)
        self.enter(self.reading, sock)
        try:
            self.process_request(sock, address)
        except RuntimeError:  # no thread can be started
            self.forget(sock)
            self.shutdown_request(sock)
        return True

    def hang_up_late(self) -> float | None:
        """Close the connections whose time is over; return the milliseconds until the next is due."""
        now = time.monotonic()
        with self._lock:
            left = [seconds for stage in self._stages if (seconds := stage.hang_up_late(now)) is not None]
        return min(left) * 1000 + 1 if left else None

    def enter(self, stage: _Stage, sock: socket.socket) -> bool:
        """Begin a stage of a connection; ``False`` if it has been closed.

        Interleaving: a connection is pushed out while its thread is between two stages. Either it is out before, and
        the thread finds it in no stage and ends; or it is in the next one already, as the newest.
        """
        with self._lock:
            known = any(each.pop(sock, None) is not None for each in self._stages)
            if not known and stage is not self.reading:
                return False
            if stage is self.reading and len(stage) >= self.limits.connections:
                stage.push_out()
            elif stage is self.answering and len(stage) + len(self.lingering) >= self.limits.answers:
                (self.lingering or stage).push_out()
            stage[sock] = time.monotonic()
            return True

    def forget(self, sock: socket.socket) -> None:
        with self._lock:
            for stage in self._stages:
                stage.pop(sock, None)
            self.open.discard(sock)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.forget(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("probe connection failed", exc_info=True, extra={"lifecycle_port": self.server_address[1]})


class _Input(io.BufferedReader):
    """The input of a connection, which ends at a bound, and the last line that was read."""

    last = b""
    left = _MOST_READ

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self._within(size))
        self.left -= len(line)
        if line.count(b"\r") > 1:  # RFC 9112, 2.2; Python's parser makes a line of each, slowly
            line = line[:-2].replace(b"\r", b" ") + line[-2:]
        self.last = line
        return line

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(self._within(size))
        self.left -= len(data)
        return data

    def _within(self, size: int | None) -> int:
        return self.left if size is None or size < 0 else min(size, self.left)


class _Handler(WSGIRequestHandler):
    server: ProbeServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.reading)
        self.rfile: _Input = _Input(self.rfile.detach())

    def parse_request(self) -> bool:
        """Read the headers; ``False`` if there is no request to answer.

        In the base class the end of a connection ends them, too. But a request that was cut off may be another one than
        the client meant (a drain), and a silent connection that we have closed is not from a prober.
        """
        if len(self.raw_requestline) > _LONGEST_REQUEST_LINE:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return False
        if not super().parse_request():
            return False
        whole = self.rfile.last in (b"\r\n", b"\n") and self.server.enter(self.server.answering, self.request)
        self.close_connection = self.close_connection or not whole
        return whole

    def make_environ(self) -> Any:
        del self.headers["Transfer-Encoding"]  # no chunked body is read, and Werkzeug is slow with long headers
        return super().make_environ()

    def run_wsgi(self) -> None:
        """Answer one request, and close the response, which may begin a drain, also if the client has gone.

        Werkzeug's own method would then read up to 10 GB behind the request, and not close it for such a client.
        """
        environ = self.make_environ()
        with contextlib.ExitStack() as stack:
            try:
                response = stack.enter_context(contextlib.closing(self.server.answer(Request(environ))))
                body, status, headers = response.get_wsgi_response(environ)
            except Exception:
                logger.exception("a request to the probe listener failed", extra=self._extra)
                self.send_error(500)
                return
            code, _, phrase = status.partition(" ")
            self.send_response(int(code), phrase)
            for name, value in (*headers, ("Connection", "close")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.writelines(body)

    def finish(self) -> None:
        super().finish()
        if sockets.half_close(self.connection) and self.server.enter(self.server.lingering, self.request):
            self._linger()

    def _linger(self) -> None:
        """Read what the client still sends, within the limits."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        end, left, patience = time.monotonic() + self.server.limits.lingering, self.rfile.left, _REST
        with contextlib.suppress(OSError):  # it has reset the connection
            while left > 0 and poll.poll(patience) and (data := self.connection.recv(min(left, 8192))):
                left -= len(data)
                patience = max(0.0, end - time.monotonic()) * 1000

    def send_response(self, code: int, message: str | None = None) -> None:
        """Without the base class's header that names Werkzeug, Python and their versions."""
        self.send_response_only(code, message)
        self.send_header("Date", self.date_time_string())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A probe is never logged."""

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's own name
        logger.debug("probe listener: " + format, *args, extra=self._extra)

    @property
    def _extra(self) -> dict[str, Any]:
        return {"lifecycle_port": self.server.server_address[1]}
