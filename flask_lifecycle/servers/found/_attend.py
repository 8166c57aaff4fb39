"""The application as servers get it that let us put something around it.

One cannot set ``Connection: close`` otherwise, nor tell a request that the application runs, which the ledger knows,
from one that the server has. Besides, uvicorn's own WSGI middleware never calls ``close()``: each request would be in
flight for ever, with its environ. What has been iterated to its end is closed here. Other servers pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Attendance:
    """Applications that are counted, closed, and whose answers tell their connections to close in a shutdown."""

    def __init__(self) -> None:
        self.closing = False  # whether answers tell their connections to close
        self.running: dict[object, None] = {}  # the requests that the applications have

    def attend(self, app: WSGIApplication) -> WSGIApplication:
        """The application, counted, closed, and with answers that tell their connections to close in a shutdown."""

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
                if self.closing:
                    headers = [*headers, ("Connection", "close")]
                return start_response(status, headers, *more)

            attended = _Attended(self.running)
            try:
                attended.result = app(environ, start)
            except BaseException:
                attended.close()
                raise
            return attended

        return application


class _Attended:
    """An application's result, which is closed when it has been iterated to its end, if nobody does it before."""

    def __init__(self, running: dict[object, None]) -> None:
        self.result: Iterable[bytes] = ()
        self._running = running
        running[self] = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            # And not "yield from", which would close the iterator besides.
            for chunk in self.result:  # noqa: UP028
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        result, self.result = self.result, ()
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        finally:
            self._running.pop(self, None)
