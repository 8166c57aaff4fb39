"""The live application behind asgiref's adapter, which never calls ``close()``, as Flask's page about ASGI has it."""

from __future__ import annotations

from asgiref.wsgi import WsgiToAsgi
from live_app import app

asgi_app = WsgiToAsgi(app)  # type: ignore[no-untyped-call]
