"""A connection of waitress that tells when it is busy, says when it ends, and ends without harm to its last answer.

A channel is *busy* while it has parsed ``requests`` (running or queued), a part of a ``request``, unflushed output, or
while bytes wait in the kernel in either direction: unread ones are a request that we have been handed, unacknowledged
ones an answer that could die with this network namespace. The order of reading matters, because a worker ends its
request meanwhile: it appends its output (or sets ``close_when_flushed``) before it takes the request off the list, so
who finds the list empty finds the output.

``Connection: close``: from the announcement on, every answer says so, and waitress then closes the connection after
it. But closing also discards requests that were pipelined behind, so an answer says close only if no further
request is parsed, partly parsed or unread in the kernel. The application cannot say it (waitress answers 500); a task
class can.

The farewell: closing a socket with unread input sends a reset, which destroys the end of an answer that the client is
still reading. A channel that wants to close with all its output flushed is shut down for writing, then read until the
client has closed its side too, and only then closed; at the latest after two seconds, or, in a drain, a linger after
the client has acknowledged everything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from waitress.channel import HTTPChannel
from waitress.task import WSGITask

from .. import _sockets
from .._inflight import RequestInfo

if TYPE_CHECKING:
    from ._loop import Loop


class _ClosingTask:
    """Mixed into waitress' tasks: says ``Connection: close`` where the drain has begun and nothing waits behind."""

    def build_response_header(self) -> bytes:
        channel: Channel = self.channel  # type: ignore[attr-defined]
        request = self.request  # type: ignore[attr-defined]
        channel.last_request = request
        if channel.owner.announced and channel.last_in_line():
            # HTTP/1.0 with keep-alive would be told Keep-Alive as well.
            request.headers.pop("CONNECTION", None)
            self.set_close_on_finish()  # type: ignore[attr-defined]
        header: bytes = super().build_response_header()  # type: ignore[misc]
        return header


class _WorkTask(_ClosingTask, WSGITask):  # type: ignore[misc]
    def execute(self) -> None:
        try:
            super().execute()
        except Exception:
            raise
        except BaseException as error:
            # waitress lets a SystemExit go by and keeps its request on the channel for ever: unanswered, and in the
            # way of every drain. As an ordinary exception it is answered with 500.
            raise RuntimeError(f"the application raised {type(error).__name__}") from error


def channel_class(base: Any, owner: Loop) -> type[Channel]:
    """A class of channels like ``base``, waitress' own or one derived from it, for one loop."""
    tasks = {
        "task_class": type("Task", (_WorkTask, base.task_class), {}),
        "error_task_class": type("ErrorTask", (_ClosingTask, base.error_task_class), {}),
    }
    return type("Channel", (Channel, base), {"owner": owner, **tasks})


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. Except for ``last_in_line`` and ``unfinished``, for the loop's thread only."""

    owner: ClassVar[Loop]
    saying_farewell = False
    heard_all = False
    farewell_began = last_heard = 0.0
    idle_since: float | None = None
    last_request: Any = None
    work_since: float | None = None  # when its request was given to the pool; None: to the lane of a probe

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.owner.last_accept = time.monotonic()

    # -- what it is doing -----------------------------------------------------------------------------------------

    def receiving(self) -> bool:
        """Whether a part of a request is here; the line end that some clients send after a body is none."""
        request = self.request
        return request is not None and bool(request.headers_finished or request.header_plus.strip())

    def busy(self) -> bool:
        """Whether a request or an answer is on its way through this connection (the order matters: see top)."""
        return bool(
            self.requests
            or self.close_when_flushed
            or self.will_close
            or self.total_outbufs_len
            or self.receiving()
            or _sockets.has_input(self.socket)
            or _sockets.unsent(self.socket)
        )

    def last_in_line(self) -> bool:
        """Whether no request waits behind the one that is being answered. Called by the worker that answers it."""
        with self.requests_lock:
            sock = self.socket
            return len(self.requests) <= 1 and not self.receiving() and not (sock and _sockets.has_bytes(sock))

    def unfinished(self, queued: bool) -> Iterable[RequestInfo]:
        """What is lost if the process leaves now, less what an application is running."""
        age = max(0.0, time.time() - self.last_activity)
        requests = list(self.requests)
        for request in requests if queued else requests[1:]:
            yield _info(request, age, "queued")
        if self.receiving():
            yield _info(self.request, age, "receiving")
        elif not requests and (self.total_outbufs_len or (self.socket and _sockets.unsent(self.socket))):
            yield _info(self.last_request, age, "sending")

    # -- how it ends ----------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Close at once: for a connection on which nothing is under way."""
        _sockets.hang_up(self.socket)
        super().handle_close()

    def handle_close(self) -> None:
        flushed = self.connected and not self.requests and not self.total_outbufs_len
        if not self.owner.runs:
            super().handle_close()  # nobody would end a farewell
        elif flushed and not self.saying_farewell and self.will_close and _sockets.half_close(self.socket):
            self.say_farewell()
        elif flushed and not self.heard_all and self.owner.draining and _sockets.unsent(self.socket):
            # The client has shut down its side, and still reads the answer.
            self.heard_all = True
            self.say_farewell()
        else:
            super().handle_close()

    def say_farewell(self) -> None:
        self.saying_farewell = True
        self.farewell_began = self.last_heard = time.monotonic()
        self.owner.farewells.add(self)

    def del_channel(self, map: dict[int, Any] | None = None) -> None:  # noqa: A002  waitress' own name
        self.owner.farewells.discard(self)
        super().del_channel(map)

    def end_farewell(self, now: float, patience: float, draining: bool) -> None:
        """Close if the client has had its time. In a drain that begins when it has acknowledged everything."""
        if draining and _sockets.unsent(self.socket):
            self.last_heard = now
        elif (
            self.heard_all or now - self.last_heard >= patience or now - self.farewell_began >= _sockets.FAREWELL_IN_ALL
        ):
            self.hang_up()

    def readable(self) -> bool:
        return not self.heard_all if self.saying_farewell else bool(super().readable())

    def writable(self) -> bool:
        return not self.saying_farewell and bool(super().writable())

    def handle_read(self) -> None:
        if not self.saying_farewell:
            super().handle_read()
            return
        try:
            if self.recv(65536):  # thrown away; an end of file closes
                self.last_heard = time.monotonic()
        except OSError:
            self.hang_up()


def _info(request: Any, age: float, stage: str) -> RequestInfo:
    method = getattr(request, "command", None) or "-"
    return RequestInfo(str(method), str(getattr(request, "path", "") or "-"), age, stage=stage)
