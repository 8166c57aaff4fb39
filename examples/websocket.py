"""A websocket that closes when the shutdown begins.

It needs Flask-Sock, and Werkzeug's server, because waitress does not support websockets. Serve it with ::

    pip install flask-sock
    flask --app examples/websocket.py lifecycle run -p 8000 --server werkzeug

and connect from a browser's console: ``new WebSocket("ws://localhost:8000/echo")``. A websocket is one long request: it
is in flight until its function returns. Without a check of ``lifecycle.draining`` it lasts until the deadline, is cut
off, and the exit code is 1.
"""

from __future__ import annotations

from flask import Flask
from flask_sock import Sock  # type: ignore[import-untyped]  # it has no types
from simple_websocket import Server  # type: ignore[import-untyped]  # it has no types

from flask_lifecycle import Lifecycle

# Seconds until a websocket notices the shutdown.
PERIOD = 0.5
GOING_AWAY = 1001  # close code of RFC 6455 for a server that stops

app = Flask(__name__)
lifecycle = Lifecycle(app)
sock = Sock(app)


@sock.route("/echo")  # type: ignore[untyped-decorator]  # it has no types
def echo(ws: Server) -> None:
    """Echo messages until the client leaves (Flask-Sock handles that) or the shutdown begins."""
    while not lifecycle.draining.is_set():
        message = ws.receive(timeout=PERIOD)
        if message is not None:
            ws.send(message)
    ws.send("good-bye, please connect again")
    ws.close(GOING_AWAY, "the server stops")
