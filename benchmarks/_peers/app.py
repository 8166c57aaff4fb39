"""The Flask application that ``peers.py`` stops; with the extension if ``PEERS`` is ``lifecycle``."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator

from flask import Flask, Response, request, send_file

LARGE = b"x" * (8 << 20)  # more than the socket buffers hold
PARTS = 10
FILE = tempfile.NamedTemporaryFile()  # noqa: SIM115  as long as the process
FILE.write(LARGE)
FILE.flush()

app = Flask(__name__)
app.config.from_prefixed_env()


@app.get("/fast")
def fast() -> str:
    return "fast"


@app.get("/slow")
def slow() -> str:
    time.sleep(float(request.args["s"]))
    return "slow"


@app.get("/stream")
def stream() -> Response:
    pause = float(request.args["s"]) / PARTS

    def parts() -> Iterator[str]:
        for number in range(PARTS):
            yield f"part {number}\n"
            time.sleep(pause)

    return Response(parts(), mimetype="text/plain")


@app.post("/upload")
def upload() -> str:
    return str(len(request.get_data()))


@app.get("/large")
def large() -> bytes:
    return LARGE


@app.get("/file")
def file() -> Response:
    return send_file(FILE.name, mimetype="text/plain")


@app.get("/health")
def health() -> str:
    return "ok"


if os.environ.get("PEERS") == "lifecycle":
    from flask_lifecycle import Lifecycle

    Lifecycle(app)
