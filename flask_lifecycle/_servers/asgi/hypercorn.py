"""hypercorn with its asyncio or uvloop workers: ``hypercorn wsgi:app:app``, or with a2wsgi in the application.

Its workers get no signal: their parent sets a shared event, which each worker checks ten times a second. We replace
that check, and let the worker see the event when the shutdown is over. With ``--workers 0`` there is no parent, and the
loop handles the signal; we replace that handler.

The listeners, the loop and the event are variables of the coroutine that serves.

The parent exits with 0 even if a worker exits with 1: it forgets the code when it joins the other workers
(``hypercorn/run.py``, 0.18). A worker cannot change that.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import util
from typing import TYPE_CHECKING, Any

from h11 import SEND_BODY, SEND_RESPONSE
from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.tcp_server import TCPServer

from ..._core.inflight import RequestInfo
from ..._core.shutdown import StopRequest
from ..adapter import Adapter, missing, watched_only
from ..discovery import instances, made_from
from . import LoopAdapter, is_child, request_info

if TYPE_CHECKING:
    from ..._core.process import Process

# The names that the adapter uses: variables of the coroutine that serves, and methods of a connection.
_OF_SERVING = ("config", "loop", "servers", "shutdown_trigger")
_OF_CONNECTION = ("run", "_initiate_server_close")

attached: Adapter | None = None


def find() -> Adapter | None:
    """The adapter of this worker, as soon as it serves."""
    global attached
    for coroutine in made_from(worker_serve.__code__) if attached is None else ():
        lacking = missing((worker_serve, _OF_SERVING), (TCPServer.__init__, ("writer",)), (TCPServer, _OF_CONNECTION))
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and (lacking or frame.f_locals.get("servers")):
            attached = watched_only("hypercorn", lacking) if lacking else Hypercorn(dict(frame.f_locals))
            break
    return attached


class Hypercorn(LoopAdapter):
    """hypercorn.

    :param serving: the variables of the coroutine that serves.
    """

    name = "hypercorn"

    def __init__(self, serving: dict[str, Any]) -> None:
        bind = [*serving["config"].bind, *serving["config"].insecure_bind]
        alone = not is_child() and not any(address.startswith("fd://") for address in bind)
        super().__init__(serving["loop"], serving["servers"], alone=alone)
        self._trigger = serving["shutdown_trigger"]
        self._over = False
        self._running: dict[Any, None] = {}

    def begin(self, process: Process) -> None:
        self._running.update(dict.fromkeys(instances(TCPServer)))
        setattr(TCPServer, "run", self._noted(TCPServer.run))  # noqa: B010 - it is a method to mypy
        if isinstance(self._trigger, functools.partial):
            self._watch(self._trigger.args[0], process)
        else:
            self._loop.call_soon_threadsafe(self._loop.remove_signal_handler, signal.SIGTERM)
        super().begin(process)

    def _noted(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        async def noted(connection: Any) -> None:
            self._running[connection] = None
            try:
                await run(connection)
            finally:
                self._running.pop(connection, None)

        return noted

    def _watch(self, event: Any, process: Process) -> None:
        is_set = event.is_set

        def is_over() -> bool:
            if is_set():
                process.begin(StopRequest("SIGTERM", signal.SIGTERM))
            return self._over

        event.is_set = is_over
        util.Finalize(None, process.exit.finish, exitpriority=100)

    def connections(self) -> Iterable[Any]:
        # Connections that are older than the adapter stay in the list when they end.
        return [each for each in self._running.copy() if not self.transport(each).is_closing() or self._unsent(each)]

    def transport(self, connection: Any) -> Any:
        return connection.writer.transport

    def _unsent(self, connection: Any) -> bool:
        return bool(self.transport(connection).get_write_buffer_size())

    def under_way(self, connection: Any) -> Sequence[RequestInfo]:
        protocol = getattr(getattr(connection, "protocol", None), "protocol", None)
        stream = getattr(protocol, "stream", None)
        if stream is not None or getattr(protocol, "streams", None):  # HTTP/2 has several
            return request_info(getattr(stream, "scope", None), "queued")
        connection_state = getattr(getattr(protocol, "connection", None), "our_state", None)
        if connection_state in (SEND_RESPONSE, SEND_BODY):  # the client has closed its sending side, and waits
            return request_info(None, "queued")
        if self._unsent(connection):
            return request_info(None, "sending")
        trailing = getattr(getattr(protocol, "connection", None), "trailing_data", (b"",))
        return request_info(None, "receiving") if trailing[0] else ()

    def close_idle(self, connection: Any) -> None:
        self._loop.create_task(connection._initiate_server_close())

    def end(self) -> bool:
        self._over = True
        if not isinstance(self._trigger, functools.partial):
            self._loop.call_soon_threadsafe(self._trigger.__self__.set)
        return self.in_main
