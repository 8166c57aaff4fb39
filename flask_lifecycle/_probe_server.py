"""The second listener: the probes, on a port of their own, from threads of their own.

It answers while every worker of the application is busy, and it closes last. It serves whatever WSGI application it is
given (the probe views) with Werkzeug's threaded server, which is there wherever Flask is. A connection holds a thread
only while it speaks: it is given five seconds for its request, and no more than 64 are served at once, so that a
port which is open to the network cannot be made to use up the process's threads.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from ._state import logger

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_REQUEST_TIMEOUT = 5.0
_CONNECTIONS = 64


class ProbeServer:
    """A listener bound when it is made, answering from :meth:`start` to :meth:`close`.

    :raises OSError: the address cannot be listened on.
    """

    def __init__(self, app: WSGIApplication, host: str, port: int) -> None:
        try:
            family, kind, _proto, _name, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = socket.socket(family, kind)
        except OSError as error:
            raise _taken(error, host, port) from None
        with sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address)
                sock.listen(128)
            except OSError as error:
                raise _taken(error, host, port) from None
            self._server = _Server(host, port, app, handler=_Handler, fd=sock.fileno())
        self._server.socket.setblocking(False)
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="lifecycle-probes", daemon=True)
        self.host = host
        self.port: int = self._server.socket.getsockname()[1]

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
        os.close(self._end_write)
        if self._thread.is_alive():
            self._thread.join(1.0)
        os.close(self._end_read)
        self._server.server_close()

    def _serve(self) -> None:
        """Accept until the other end of the pipe is closed; no polling, unlike ``serve_forever``."""
        poll = select.poll()
        poll.register(self._server.fileno(), select.POLLIN)
        poll.register(self._end_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._end_read in ready:
                return
            self._server.accept_one()


def _taken(error: OSError, host: str, port: int) -> OSError:
    return OSError(
        error.errno,
        f"The probe listener cannot listen on {host}:{port} ({error.strerror});"
        " set 'LIFECYCLE_PROBE_PORT' to a free port, or to 0 for any.",
    )


class _Server(ThreadedWSGIServer):
    lifecycle_probes = True  # so that nobody takes it for the application's own server

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._places = threading.BoundedSemaphore(_CONNECTIONS)

    def accept_one(self) -> None:
        try:
            request, address = self.get_request()
        except OSError:
            return
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            self.process_request(request, address)
        except RuntimeError:  # no thread to be had
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("probe connection failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_TIMEOUT

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A probe is never logged."""

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's own name
        logger.debug("probe listener: " + format, *args)
