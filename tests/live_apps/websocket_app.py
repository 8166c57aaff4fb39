"""Websockets that end in their own ways, or do not; see live_app.py for the variables ``LIVE_...``."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

from flask import Flask
from flask_sock import Sock  # type: ignore[import-untyped]  # it has no types
from simple_websocket import ConnectionClosed, Server  # type: ignore[import-untyped]  # it has no types

from flask_lifecycle import Lifecycle

HOME = Path(os.environ["LIVE_HOME"])

if json.loads(os.environ["LIVE_PLAN"]).get("logging"):
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")

app = Flask(__name__)
app.config.update(json.loads(os.environ["LIVE_SETTINGS"]))
lifecycle = Lifecycle(app)
sock = Sock(app)


def event(text: str) -> None:
    """Append one line to the event file."""
    with (HOME / "events").open("a") as events:
        events.write(f"{time.monotonic():.6f} {text}\n")


@sock.route("/until-drain")  # type: ignore[untyped-decorator]  # it has no types
def until_drain(ws: Server) -> None:
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


@app.get("/in-flight")
def in_flight() -> list[str]:
    return [info.path for info in lifecycle.requests()]


@app.get("/daemons")
def daemons() -> list[bool]:
    """Whether the threads that read websockets are daemons."""
    return [thread.daemon for thread in threading.enumerate() if "simple_websocket" in thread.name]


@lifecycle.on_shutdown
def close() -> None:
    event("hooks")
