"""The live application with websockets that end in their own ways, or do not."""

from __future__ import annotations

import threading

from flask_sock import Sock  # type: ignore[import-untyped]  # it has no types
from live_app import app, event, lifecycle
from simple_websocket import ConnectionClosed, Server  # type: ignore[import-untyped]  # it has no types

sock = Sock(app)


@sock.route("/polite")  # type: ignore[untyped-decorator]  # it has no types
def polite(ws: Server) -> None:
    """Send back what comes, and end by itself when the drain begins."""
    while not lifecycle.draining.is_set():
        message = ws.receive(timeout=0.05)
        if message is not None:
            ws.send(message)
    ws.send("bye")
    ws.close(1001, "going away")
    event("ended")


@sock.route("/deaf")  # type: ignore[untyped-decorator]  # it has no types
def deaf(ws: Server) -> None:
    """Send back what comes, whatever else happens."""
    try:
        while True:
            ws.send(ws.receive())
    except ConnectionClosed:
        event("closed")
        raise


@sock.route("/raises")  # type: ignore[untyped-decorator]  # it has no types
def raises(ws: Server) -> None:
    """Fail when something comes."""
    ws.receive()
    raise ValueError("boom")


@app.get("/paths")
def paths() -> list[str]:
    return [info.path for info in lifecycle.requests()]


@app.get("/daemons")
def daemons() -> list[bool]:
    """Whether the threads that read websockets are daemons."""
    return [thread.daemon for thread in threading.enumerate() if "simple_websocket" in thread.name]
