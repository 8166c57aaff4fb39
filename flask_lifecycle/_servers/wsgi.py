"""Wrappers around the WSGI application, for servers that use one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class WSGIWrapper:
    """Wraps applications: counts their requests, closes their results, and closes connections in a drain.

    These servers have no other way to send ``Connection: close``, or to distinguish the requests that the application
    runs (the in-flight set has these) from those that the server still holds. In addition, the adapters of uvicorn and
    asgiref never call ``close()``, which runs functions of the application, so we close a result at its end.
    """

    def __init__(self) -> None:
        self.closing = False  # whether responses say "Connection: close"
        self.running: dict[int, None] = {}  # the requests that the applications run, by the ids of their results

    def wrap(self, app: WSGIApplication) -> WSGIApplication:
        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
                if self.closing:
                    headers = [*headers, ("Connection", "close")]
                return start_response(status, headers, *more)

            result = _Result(self.running)
            try:
                result.wrapped = app(environ, start)
            except BaseException:
                result.close()
                raise
            return result

        return application


class _Result:
    """An application's result. It closes itself at its end if the server does not."""

    def __init__(self, running: dict[int, None]) -> None:
        self.wrapped: Iterable[bytes] = ()
        self._running = running
        running[id(self)] = None

    def __del__(self) -> None:
        self._running.pop(id(self), None)

    def __iter__(self) -> Iterator[bytes]:
        try:
            # Not "yield from", which would also close the iterator.
            for chunk in self.wrapped:  # noqa: UP028
                yield chunk
        finally:
            self.close()

    def close(self) -> None:
        wrapped, self.wrapped = self.wrapped, ()
        try:
            close = getattr(wrapped, "close", None)
            if close is not None:
                close()
        finally:
            self._running.pop(id(self), None)


def guarded(app: WSGIApplication) -> WSGIApplication:
    """The application, with a 500 response to every exception.

    For servers a ``ConnectionError`` means that the client has gone, and a ``SystemExit`` ends them, so the request
    would not be answered.
    """

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except (OSError, SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, ConnectionError) and _is_taken(environ):
                raise
            raise as_error(error) from error

    return call


def _is_taken(environ: WSGIEnvironment) -> bool:
    """Whether the application may have taken the connection for a websocket, which needs no response."""
    return "werkzeug.socket" in environ and "HTTP_UPGRADE" in environ


def as_error(error: BaseException) -> RuntimeError:
    """An error to raise instead of a ``SystemExit``, which would end the server; the client gets 500."""
    return RuntimeError(f"the application raised {type(error).__name__}")
