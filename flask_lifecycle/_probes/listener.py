"""The probe listeners of this process. Applications that name the same host and port share one.

A kubelet probes the process, so the listener answers for all its applications: a probe fails if it fails for one of
them. ``/livez`` passes when all are live, ``/readyz`` when all are ready; an application with a
``LIFECYCLE_URL_PREFIX`` of its own can also be probed alone. Applications are referenced weakly and leave at their end;
the last one closes the listener. One that was collected before its end, as in tests, leaves when the next one joins or
leaves.

Interleavings: the last application leaves while another one joins. If the joining one gets the lock first, the listener
stays. Otherwise it waits until the port is free again, and binds it anew.
"""

from __future__ import annotations

import socket
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from werkzeug import Request, Response

from .._config import TOGETHER
from .._core.feature import Feature
from .._core.fork import renew_in_children
from .endpoints import PARTS, Probes
from .http_server import ProbeServer


class ProbeListener(ProbeServer):
    """A probe listener and the applications that it answers for."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        self._members: list[weakref.ref[Probes]] = []
        self._started = False
        super().__init__(lambda request: respond(self.members(), request), host, port, **options)

    def start(self) -> None:
        if not self._started:
            self._started = True
            super().start()

    def members(self) -> list[Probes]:
        return [probes for each in self._members if (probes := each()) is not None]

    def set_members(self, members: list[Probes]) -> None:
        self._members = [weakref.ref(probes) for probes in members]  # requests read the old list
        self.allow(sum(probes.timeout for probes in members))


def respond(members: Sequence[Probes], request: Request) -> Response:
    """Answer as the first application whose answer is an error, or else as the first that answers at all."""
    if not members:  # all applications have gone
        return Response(status=503)
    path = request.environ.get("PATH_INFO", "")
    found = [(probes, handler) for probes in members if (handler := probes.handler(path)) is not None]
    if path.rstrip("/").rpartition("/-/")[2] in PARTS:  # of one application's status page
        del found[1:]
    request.environ[TOGETHER] = [probes for probes, _handler in found]
    chosen = None
    for _probes, handler in found:
        response = handler(request)
        if response is None:
            continue
        failed = response.status_code >= 400  # also 404, which a failure may be configured to answer
        chosen, other = (response, chosen) if failed or chosen is None else (chosen, response)
        if other is not None:
            chosen.call_on_close(other.close)  # it may begin a drain, and the answer must be sent before
        if failed:
            break
    return members[0].not_found() if chosen is None else chosen


_listeners: dict[tuple[str, int], ProbeListener] = {}
_lock = threading.Lock()  # guards _listeners and the members of each


def _forget() -> None:
    """In a forked child the sockets are closed, and another thread may have held the lock."""
    global _lock
    _listeners.clear()
    _lock = threading.Lock()


renew_in_children(_forget)


def join(
    probes: Probes, host: str, port: int, *, shared: bool, handed: socket.socket | None, v6only: bool
) -> ProbeListener:
    """Give the listener at a host and a port, opened if no application of this process has it yet.

    :param port: with 0 each application gets a listener of its own.
    :raises OSError: the address cannot be listened on.
    """
    with _lock:
        _close_unused()
        listener = _listeners.get((host, port)) if port else None
        if listener is None:
            listener = ProbeListener(host, port, shared=shared, handed=handed, v6only=v6only)
            _listeners[host, listener.port] = listener
        listener.set_members([*listener.members(), probes])
        return listener


def _close_unused() -> None:
    """Close the listeners whose applications have all left, or were collected without an end, as in tests."""
    for address, listener in [*_listeners.items()]:
        if not listener.members():
            del _listeners[address]
            listener.close()


class ProbePort(Feature):
    """``LIFECYCLE_PROBE_PORT``: the probe listener of one application, which it may share with others."""

    def __init__(self, application: Any) -> None:
        super().__init__(application)
        self.after_fork()

    def after_fork(self) -> None:
        """The listener's socket is closed in a forked child."""
        self.server: ProbeListener | None = None
        self._lock = threading.Lock()  # guards opening and closing

    def open(self) -> None:
        settings, peers = self._application.settings, self._application.process.shutdown.peers
        with self._lock:
            if self.server is not None:
                return
            # Each worker process has its own listener on the same port, and the kernel distributes the connections.
            shared = not {"gunicorn.arbiter", "uwsgi", "mod_wsgi"}.isdisjoint(sys.modules) or _is_spawned()
            host, v6only = (
                self._application.serving.main_host() if settings.probe_host is None else (settings.probe_host, False)
            )
            self.server = join(
                self._application.probes, host, settings.probe_port,
                shared=shared, handed=peers.probes, v6only=v6only,
            )  # fmt: skip
            if peers.first:
                self.server.start()

    def start(self) -> None:
        """Begin to answer, where :meth:`open` has not."""
        if self.server is not None:
            self.server.start()

    def stop(self) -> None:
        with self._lock:
            listener, self.server = self.server, None
        if listener is not None:
            with _lock:
                listener.set_members([each for each in listener.members() if each is not self._application.probes])
                _close_unused()

    @property
    def socket(self) -> socket.socket | None:
        return None if self.server is None else self.server.socket

    @property
    def address(self) -> tuple[str, int] | None:
        return None if self.server is None else (self.server.host, self.server.port)


def _is_spawned() -> bool:
    """Whether a supervisor that uses multiprocessing has started this process, as those of ASGI servers do."""
    parent = getattr(sys.modules.get("multiprocessing.process"), "parent_process", None)
    return parent is not None and parent() is not None
