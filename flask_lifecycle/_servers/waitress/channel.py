"""A connection of waitress that reports what it does, and closes without damaging its last response.

A channel is *busy* while it has parsed ``requests`` (running or queued), a part of a ``request``, unflushed output, or
while the client's kernel has not acknowledged all of a response, which could be lost with this network namespace. A
worker may end its request while we read these: it appends its output (or sets ``close_when_flushed``) before it removes
the request from the list, so a reader that finds the list empty finds the output.

``Connection: close``: once a shutdown is announced, each response says so, and waitress closes the connection after it.
That discards requests that were pipelined behind, so a response says it only if no further request is parsed, partly
parsed or unread in the kernel. If the application said it, waitress would answer 500; a task class can.

The lingering close: closing a socket with unread input sends a reset, and the client loses the end of the response. So
a channel with all its output flushed is shut down for writing, then read until the client closes too or has been silent
for two seconds; in a drain, until the client has acknowledged everything and been silent for the drain's linger. Before
a shutdown this is done for clients that may still be sending: those whose request was refused, perhaps in the middle of
its body, and those with unread input.

None of this costs a request anything before a shutdown. In each round of its loop waitress asks each connection whether
it is ``readable`` and ``writable``: overriding these two methods for sixteen connections halved the throughput. So a
channel gets them only for its lingering close (:class:`_Lingering`), and the tasks change only with the announcement
(:func:`say_close`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from waitress.channel import HTTPChannel
from waitress.task import ErrorTask

from ..._core.inflight import RequestInfo
from .. import sockets
from ..wsgi import as_error

if TYPE_CHECKING:
    from . import Waitress


def _answering(execute: Callable[[Any], None]) -> Callable[[Any], None]:
    # A closure, because "super()" costs each request more, before Python 3.12.
    def execute_and_answer(task: Any) -> None:
        task.channel.last_request = task.request
        try:
            execute(task)
        except Exception:
            raise
        except BaseException as error:
            # waitress does not catch SystemExit and keeps its request on the channel: it is never answered, and blocks
            # every drain. As an ordinary exception it is answered with 500.
            raise as_error(error) from error

    return execute_and_answer


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    def execute(self) -> None:
        self.channel.refused = True
        super().execute()


def say_close(channel: type[Channel]) -> None:
    """Have all tasks of a class of channels say ``Connection: close`` where nothing waits behind; once is enough."""
    for kind in (channel.task_class, channel.error_task_class):
        if "build_response_header" not in vars(kind):
            kind.build_response_header = _closing(kind.build_response_header)


def _closing(build: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def build_response_header(task: Any) -> bytes:
        if task.channel.last_in_line():
            # HTTP/1.0 with keep-alive would get Keep-Alive as well.
            task.request.headers.pop("CONNECTION", None)
            task.set_close_on_finish()
        return build(task)

    return build_response_header


def channel_class(base: Any, adapter: Waitress) -> type[Channel]:
    """A class of channels like ``base``, waitress' own or one derived from it."""
    tasks = {
        "task_class": type("Task", (base.task_class,), {"execute": _answering(base.task_class.execute)}),
        "error_task_class": type("ErrorTask", (_ErrorTask, base.error_task_class), {}),
    }
    kind: type[Channel] = type("Channel", (Channel, base), {"adapter": adapter, **tasks})
    kind.in_linger = type("LingeringChannel", (_Lingering, kind), {})
    return kind


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection. Except for ``last_in_line`` and ``under_way``, for the loop's thread only."""

    adapter: ClassVar[Waitress]
    in_linger: ClassVar[type[Channel]]
    lingering = False
    heard_all = False
    refused = False  # whether waitress has answered in place of the application
    linger_began = last_heard = 0.0
    last_request: Any = None

    # -- what it is doing -----------------------------------------------------------------------------------------

    def receiving(self) -> bool:
        """Whether a part of a request is here; the line end that some clients send after a body is none."""
        request = self.request
        return request is not None and bool(request.headers_finished or request.header_plus.strip())

    def last_in_line(self) -> bool:
        """Whether no request waits behind the one that is being answered. Called by the worker that answers it."""
        with self.requests_lock:
            sock = self.socket
            return len(self.requests) <= 1 and not self.receiving() and not (sock and sockets.has_bytes(sock))

    def under_way(self, queued: bool) -> list[RequestInfo]:
        """Its requests; the first one runs if it is not queued. The order of reading matters, see top."""
        requests = list(self.requests)
        age = max(0.0, time.time() - self.last_activity)
        infos = [
            _info(request, age, "queued" if queued or number else "running") for number, request in enumerate(requests)
        ]
        if self.receiving():
            infos.append(_info(self.request, age, "receiving"))
        elif not requests and self._sending():
            infos.append(_info(self.last_request, age, "sending"))
        return infos

    def _sending(self) -> bool:
        ends = not self.lingering and (self.close_when_flushed or self.will_close)
        return bool(ends or self.total_outbufs_len or (self.socket and sockets.unsent(self.socket)))

    # -- how it ends ----------------------------------------------------------------------------------------------

    def hang_up_if_idle(self) -> None:
        """Close, unless a request has come meanwhile."""
        if self._fileno is None or self.under_way(queued=True):
            return
        if self.lingering or not sockets.has_input(self.socket):
            self.hang_up()

    def hang_up(self) -> None:
        """Close at once: for a connection on which nothing is under way."""
        sockets.hang_up(self.socket)
        super().handle_close()

    def handle_close(self) -> None:
        flushed = self.connected and not self.requests and not self.total_outbufs_len
        if not self.adapter.lingers:
            super().handle_close()
        elif flushed and not self.lingering and self.will_close and self._is_to_linger():
            self.linger()
        elif flushed and not self.heard_all and self.adapter.draining and sockets.unsent(self.socket):
            # The client has shut down its side, and still reads the answer.
            self.heard_all = True
            self.linger()
        else:
            super().handle_close()

    def _is_to_linger(self) -> bool:
        wanted = self.adapter.announced or self.refused or sockets.has_bytes(self.socket)
        return wanted and sockets.half_close(self.socket)

    def linger(self) -> None:
        self.linger_began = self.last_heard = time.monotonic()
        self.__class__ = self.in_linger


class _Lingering(Channel):
    """A connection whose last response is sent, and which is read until the client closes it too."""

    lingering = True

    def readable(self) -> bool:
        """waitress calls this in each round, and closes nothing meanwhile: it is the place to check the time."""
        now = time.monotonic()
        if self.adapter.draining:  # the drain looks, and hangs up
            self.last_heard = now
        elif now - self.last_heard >= sockets.LINGER or now - self.linger_began >= sockets.LINGER_IN_ALL:
            self.hang_up()
        return self._fileno is not None and not self.heard_all

    def writable(self) -> bool:
        return False

    def handle_read(self) -> None:
        try:
            if self.recv(65536):  # thrown away; an end of file closes
                self.last_heard = time.monotonic()
        except OSError:
            self.hang_up()


def _info(request: Any, age: float, stage: str) -> RequestInfo:
    method = getattr(request, "command", None) or "-"
    return RequestInfo(str(method), str(getattr(request, "path", "") or "-"), age, stage=stage)
