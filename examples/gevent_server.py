"""gevent's WSGI server, started by this program itself, after patching the standard library.

Serve it with one of ::

    pip install '/path/to/flask_lifecycle[gevent]'
    python examples/gevent_server.py
    python -m gevent.monkey --module flask --app examples/gevent_server.py lifecycle run -p 8000 --server gevent

request ``localhost:8000/slow`` and send SIGTERM while it runs: the request is answered, and then the pool is closed.
While one greenlet computes without yielding, no request or probe is answered.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import logging
import os
import time

from flask import Flask
from gevent.pywsgi import WSGIServer

from flask_lifecycle import Lifecycle

app = Flask(__name__)
lifecycle = Lifecycle(app)


@app.get("/slow")
def slow() -> dict[str, float]:
    """Take a second. Other requests run at the same time, because the sleep is gevent's."""
    time.sleep(1.0)
    return {"slept": 1.0}


@lifecycle.on_shutdown
def close_pool() -> None:
    """Runs after the last request has been answered."""
    logging.getLogger(__name__).info("the pool is closed")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    server = WSGIServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), app, log=None)
    server.start()
    logging.info("listening on http://127.0.0.1:%d", server.server_port)
    server.serve_forever()
