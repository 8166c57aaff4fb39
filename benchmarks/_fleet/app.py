"""The application of a fleet: each answer is unique, so a client notices a wrong one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

from flask import Flask, Response, request

from flask_lifecycle import Lifecycle

WORK = 0.05  # seconds
CHUNKS = 5
CHUNK_PAUSE = 0.01  # seconds


def chunks(number: int) -> Iterator[bytes]:
    for chunk in range(CHUNKS):
        time.sleep(CHUNK_PAUSE)
        yield b"chunk %d of %d\n" % (chunk, number)


def create_app() -> Flask:
    """Make it; the settings are in the environment."""
    app = Flask(__name__)
    app.config.from_prefixed_env()
    Lifecycle(app)

    @app.get("/fast/<int:number>")
    def fast(number: int) -> str:
        return f"fast {number}\n"

    @app.get("/work/<int:number>")
    def work(number: int) -> str:
        time.sleep(WORK)
        return f"work {number}\n"

    @app.post("/digest/<int:number>")
    def digest(number: int) -> str:
        return f"{hashlib.sha256(request.get_data()).hexdigest()} {number}\n"

    @app.get("/stream/<int:number>")
    def stream(number: int) -> Response:
        return Response(chunks(number), mimetype="text/plain")

    return app
