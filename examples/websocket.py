"""A websocket that notices the drain, says good-bye and ends by itself.

It needs Flask-Sock, and Werkzeug's server, as waitress has no websockets. Serve it with ::

    pip install flask-sock
    flask --app examples/websocket.py lifecycle run -p 8000 --server werkzeug

and open one in the console of a browser: ``new WebSocket("ws://localhost:8000/echo")``. A websocket is one long
request: it is in flight until its function returns. Without the look at ``lifecycle.draining`` it would hold the stop
until the deadline, be cut off there and make the exit code 1.
"""

from __future__ import annotations

from flask import Flask
from flask_sock import Sock  # type: ignore[import-untyped]  # it has no types
from simple_websocket import Server  # type: ignore[import-untyped]  # it has no types

from flask_lifecycle import Lifecycle

# How long a websocket may take to notice, in seconds.
PERIOD = 0.5
GOING_AWAY = 1001  # the close code of RFC 6455 for a server that stops

app = Flask(__name__)
lifecycle = Lifecycle(app)
sock = Sock(app)


@sock.route("/echo")  # type: ignore[untyped-decorator]  # it has no types
def echo(ws: Server) -> None:
    """Send back what comes, until the client leaves (Flask-Sock catches that) or the shutdown begins."""
    while not lifecycle.draining.is_set():
        message = ws.receive(timeout=PERIOD)
        if message is not None:
            ws.send(message)
    ws.send("good-bye, please connect again")
    ws.close(GOING_AWAY, "the server stops")
