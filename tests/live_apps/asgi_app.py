"""The live app as an ASGI application, for gunicorn's workers that serve those."""

from __future__ import annotations

from a2wsgi import WSGIMiddleware
from live_app import app as wsgi_app

app = WSGIMiddleware(wsgi_app)  # type: ignore[arg-type]  # a2wsgi has types of its own for what WSGI is
