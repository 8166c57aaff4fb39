"""What an application raises is its own, and its client is to hear of it.

Servers take a ``ConnectionError`` for the client's having gone and a ``SystemExit`` for their own end: either way the
request would get no answer. As an ordinary exception it is answered with 500.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def guarded(app: WSGIApplication) -> WSGIApplication:
    """The application, whose call raises nothing that a server would take for something else."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except (OSError, SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(f"the application raised {type(error).__name__}") from error

    return call
