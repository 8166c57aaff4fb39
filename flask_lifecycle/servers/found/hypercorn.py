"""hypercorn with its asyncio or uvloop workers: ``hypercorn wsgi:app:app``, or with a2wsgi in the application.

Its workers get no signal: their parent sets an event that is shared with them, and each looks at it ten times a second.
So we look at it in their place, and let them see it when the shutdown is over. With ``--workers 0`` there is no parent,
and the loop itself has the signal; it is taken from it.

What there is, the listeners, the loop and what the worker waits for, are variables of the coroutine that serves.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterable
from types import CoroutineType
from typing import Any

from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.tcp_server import TCPServer

from ..._inflight import RequestInfo
from . import Carried, instances
from ._asyncio import Loop, is_child

_found: FoundHypercorn | None = None


def find() -> FoundHypercorn | None:
    """The one whose worker this is, once it serves."""
    global _found
    for coroutine in instances(CoroutineType) if _found is None else ():
        frame = coroutine.cr_frame
        if coroutine.cr_code is worker_serve.__code__ and frame is not None and frame.f_locals.get("servers"):
            _found = FoundHypercorn(dict(frame.f_locals))
            break
    return _found


class FoundHypercorn(Loop):
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
        self._open: dict[Any, None] = {}

    def begin(self, process: Carried) -> None:
        self._open.update(dict.fromkeys(instances(TCPServer)))
        setattr(TCPServer, "run", self._noted(TCPServer.run))  # noqa: B010 - it is a method to mypy
        if isinstance(self._trigger, functools.partial):
            self._watch(self._trigger.args[0], process)
        else:
            self._loop.call_soon_threadsafe(self._loop.remove_signal_handler, signal.SIGTERM)
        super().begin(process)

    def _noted(self, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        async def noted(connection: Any) -> None:
            self._open[connection] = None
            try:
                await run(connection)
            finally:
                self._open.pop(connection, None)

        return noted

    def _watch(self, event: Any, process: Carried) -> None:
        from multiprocessing import util

        is_set = event.is_set

        def is_over() -> bool:
            if is_set():
                process.stop("SIGTERM", signal.SIGTERM, delay=True)
            return self._over

        event.is_set = is_over
        util.Finalize(None, process.hold, exitpriority=100)

    def connections(self) -> Iterable[Any]:
        # Those that were there before we were are not taken out when they end.
        return [each for each in self._open.copy() if not self.transport(each).is_closing() or self._unsent(each)]

    def transport(self, connection: Any) -> Any:
        return connection.writer.transport

    def _unsent(self, connection: Any) -> bool:
        return bool(self.transport(connection).get_write_buffer_size())

    def doing(self, connection: Any) -> RequestInfo | None:
        protocol = getattr(getattr(connection, "protocol", None), "protocol", None)
        stream = getattr(protocol, "stream", None)
        if stream is not None or getattr(protocol, "streams", None):  # HTTP/2 has several
            scope = getattr(stream, "scope", None) or {}
            return RequestInfo(str(scope.get("method", "-")), str(scope.get("path", "-")), 0.0, stage="queued")
        if self._unsent(connection):
            return RequestInfo("-", "-", 0.0, stage="sending")
        trailing = getattr(getattr(protocol, "connection", None), "trailing_data", (b"",))
        return RequestInfo("-", "-", 0.0, stage="receiving") if trailing[0] else None

    def hang_up(self, connection: Any) -> None:
        self._loop.create_task(connection._initiate_server_close())

    def end(self) -> bool:
        self._over = True
        if not isinstance(self._trigger, functools.partial):
            self._loop.call_soon_threadsafe(self._trigger.__self__.set)
        return True
