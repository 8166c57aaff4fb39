"""The Flask side of the probes: a blueprint with their URLs, and the guard that refuses requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from flask import Blueprint, Flask, Response, json, request
from werkzeug import Response as BaseResponse

if TYPE_CHECKING:
    from .endpoints import Probes


def make_blueprint(probes: Probes, paths: dict[str, str]) -> Blueprint:
    """The probes as Flask views, for ``url_for`` and for requests that reach Flask past the middleware."""
    blueprint = Blueprint("lifecycle", __name__)
    for name, path in paths.items():

        def view(path: str = path) -> BaseResponse:
            handler = probes.handler(path)
            assert handler is not None  # no path is ever removed
            return handler(request) or probes.not_found()

        blueprint.add_url_rule(path, name, view, strict_slashes=False, provide_automatic_options=False)
    return blueprint


class Guard:
    """Refuses every request that begins after :meth:`install`, so that it costs nothing before.

    :param remaining: returns the seconds left of the grace period.
    """

    def __init__(self, remaining: Callable[[], float | None]) -> None:
        self.refused = 0
        self.installed = False
        self._remaining = remaining
        self._lock = threading.Lock()  # guards both

    def install(self, app: Flask) -> None:
        """Run before the application's own ``before_request`` functions. Idempotent."""
        with self._lock:
            if not self.installed:
                self.installed = True
                # A new list in one assignment: a request that iterates over the old one is not disturbed.
                app.before_request_funcs[None] = [self, *app.before_request_funcs.get(None, [])]

    def __call__(self) -> Response:
        """503 as RFC 9457 has it."""
        with self._lock:
            self.refused += 1
        problem = {
            "type": "about:blank",
            "title": "Service Unavailable",
            "status": 503,
            "detail": "This instance is shutting down and takes no new requests; try again.",
        }
        headers = {"Retry-After": str(max(1, round(self._remaining() or 0))), "Cache-Control": "no-store"}
        return Response(json.dumps(problem), 503, headers, content_type="application/problem+json")
