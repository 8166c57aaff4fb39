"""cheroot, started by this program itself: the shutdown is graceful with ``init_app`` alone.

Serve it with one of ::

    pip install '/path/to/flask_lifecycle[cheroot]'
    python examples/cheroot_server.py
    flask --app examples/cheroot_server.py lifecycle run -p 8000 --server cheroot

request ``localhost:8000/slow`` and send SIGTERM while it runs: the request is answered, and then the pool is closed.
"""

from __future__ import annotations

import logging
import os
import time

from cheroot.wsgi import Server
from flask import Flask

from flask_lifecycle import Lifecycle

app = Flask(__name__)
lifecycle = Lifecycle(app)


@app.get("/slow")
def slow() -> dict[str, float]:
    """Take a second."""
    time.sleep(1.0)
    return {"slept": 1.0}


@lifecycle.on_shutdown
def close_pool() -> None:
    """Runs after the last request has been answered."""
    logging.getLogger(__name__).info("the pool is closed")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    server = Server(("127.0.0.1", int(os.environ.get("PORT", "8000"))), app, numthreads=8)
    server.prepare()
    logging.info("listening on http://%s:%d", *server.bind_addr)
    server.serve()
