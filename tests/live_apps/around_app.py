"""The live app, with a dispatcher around it that answers ``/outside``: ``around_app.py SERVER PORT``."""

from __future__ import annotations

import sys
from typing import Any

import live_app
import serve_elsewhere
from werkzeug.middleware.dispatcher import DispatcherMiddleware


def outside(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    name = environ["PATH_INFO"].strip("/")
    live_app.event(f"begin {name}")
    live_app.pass_gate(name)
    start_response("200 OK", [("Content-Length", "7")])
    return [b"outside"]


app = DispatcherMiddleware(live_app.app, {"/outside": outside})
if __name__ == "__main__":
    vars(serve_elsewhere)["app"] = app
    getattr(serve_elsewhere, sys.argv[1])(int(sys.argv[2]))
