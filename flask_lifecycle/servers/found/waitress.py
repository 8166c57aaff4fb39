"""waitress that we did not start: ``waitress-serve`` or ``serve()``.

The canary is the one thing that goes in; see ``_canary.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from waitress.server import BaseWSGIServer

from ..._inflight import Load, RequestInfo
from .._pools import distinct, pool_load, waiting
from . import Found, instances


def find() -> FoundWaitress | None:
    """The one in this process whose listener is open."""
    found = [server for server in instances(BaseWSGIServer) if server.accepting]
    return FoundWaitress(found) if found else None


class FoundWaitress(Found):
    """waitress, by ``waitress-serve`` or ``serve()``."""

    name = "waitress"
    advice = "'flask lifecycle run' has more"

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers

    def unfinished(self) -> Sequence[RequestInfo]:
        return [info for server in self._servers for channel in _values(server) for info in self._of(channel)]

    def load(self) -> Load:
        now = time.time()
        queued = [channel for pool in self._pools() for channel in waiting(pool)]
        oldest = max((now - channel.last_activity for channel in queued), default=0.0)
        return pool_load(self._pools(), max(0.0, oldest))

    def canary(self, done: Callable[[], None]) -> bool | None:
        from .._canary import send_through  # few want one

        return send_through([server for server in self._servers if server.accepting], done)

    def _pools(self) -> list[Any]:
        return distinct(server.task_dispatcher for server in self._servers)

    def _of(self, channel: Any) -> Iterator[RequestInfo]:
        age = max(0.0, time.time() - channel.last_activity)
        queued = channel in channel.server.task_dispatcher.queue
        for request in list(channel.requests)[0 if queued else 1 :]:
            yield _info(request, age, "queued")
        if channel.request is not None:
            yield _info(channel.request, age, "receiving")
        elif channel.total_outbufs_len or channel.close_when_flushed:
            yield RequestInfo("-", "-", age, stage="sending")


def _values(server: Any) -> list[Any]:
    return list(server.active_channels.copy().values())


def _info(request: Any, age: float, stage: str) -> RequestInfo:
    return RequestInfo(str(getattr(request, "command", "-")), str(getattr(request, "path", "-")), age, stage=stage)
