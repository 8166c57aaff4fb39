"""Endless server-sent events that end when the shutdown begins, and continue at the next process.

Serve it with ::

    flask --app examples/streaming.py lifecycle run -p 8000

then ``curl -N localhost:8000/ticks``, and press Ctrl-C in the first terminal: the client gets a last event. A browser's
``EventSource`` reconnects, to the next process, and sends the last id that it has received. A stream that does not
check ``lifecycle.draining`` lasts until the deadline and is cut off.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, request

from flask_lifecycle import Lifecycle

PERIOD = 0.2
RETRY = 1000  # milliseconds until the client reconnects; the next process should be ready by then

app = Flask(__name__)
lifecycle = Lifecycle(app)


@app.get("/ticks")
def ticks() -> Response:
    # Read it here: the body is produced after the view has returned, without its context.
    draining = lifecycle.draining
    count = request.headers.get("Last-Event-ID", 0, type=int)

    def events(count: int) -> Iterator[str]:
        yield f"retry: {RETRY}\n\n"
        # A sleep that ends early, with True, when the shutdown begins.
        while not draining.wait(PERIOD):
            count += 1
            yield f"id: {count}\ndata: tick\n\n"
        yield "event: bye\ndata: reconnect\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second one is for nginx
    return Response(events(count), mimetype="text/event-stream", headers=headers)


@lifecycle.on_drain
def log_drain() -> None:
    """Runs when the shutdown begins, before requests are refused."""
    app.logger.warning("streams are asked to end")
