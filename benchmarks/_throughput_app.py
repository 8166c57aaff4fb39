"""The application that ``throughput.py`` measures, and how a program serves it itself.

``BENCHMARK_KIND`` says whether it has the extension: ``bare`` or ``ours``.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask

OURS = os.environ.get("BENCHMARK_KIND") == "ours"
HOST = "127.0.0.1"
THREADS = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "waitress": {"threads": THREADS, "connection_limit": 1000},
    "cheroot": {"threads": THREADS},
}

app = Flask(__name__)


@app.get("/fast")
def fast() -> str:
    """Answer two bytes."""
    return "ok"


if OURS:
    from flask_lifecycle import Lifecycle

    lifecycle = Lifecycle(app)


def serve(server: str, port: int) -> None:
    """Serve by what the server itself offers."""
    if server == "waitress":
        import waitress

        waitress.serve(app, host=HOST, port=port, **OPTIONS["waitress"])
    elif server == "cheroot":
        from cheroot.wsgi import Server

        Server((HOST, port), app, numthreads=THREADS).start()
    elif server == "gevent":
        from gevent.pywsgi import WSGIServer

        WSGIServer((HOST, port), app).serve_forever()
    else:
        app.run(HOST, port, threaded=True)


if __name__ == "__main__":
    how, name, number = sys.argv[1:]
    if OURS and how == "run":
        lifecycle.run(app, HOST, int(number), name, **OPTIONS.get(name, {}))
    else:
        serve(name, int(number))
