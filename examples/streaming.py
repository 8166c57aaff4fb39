"""Server-sent events without an end that notice the drain, end by themselves and go on elsewhere.

Serve it with ::

    flask --app examples/streaming.py lifecycle run -p 8000

then ``curl -N localhost:8000/ticks``, and press Ctrl-C in the first terminal: the client gets a last event. A browser's
``EventSource`` connects again by itself, to the next process, and tells it the last id that it has seen. Without the
look at ``lifecycle.draining`` the stream would go on until the deadline and be cut off there.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, request

from flask_lifecycle import Lifecycle

PERIOD = 0.2
RETRY = 1000  # milliseconds until the client connects again; the next process should be there by then

app = Flask(__name__)
lifecycle = Lifecycle(app)


@app.get("/ticks")
def ticks() -> Response:
    # Taken here: the body is produced when the view has returned and its context is gone.
    draining = lifecycle.draining
    count = request.headers.get("Last-Event-ID", 0, type=int)

    def events(count: int) -> Iterator[str]:
        yield f"retry: {RETRY}\n\n"
        # wait() returns True the moment the shutdown begins: a sleep that can be cut short.
        while not draining.wait(PERIOD):
            count += 1
            yield f"id: {count}\ndata: tick\n\n"
        yield "event: bye\ndata: reconnect\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter for nginx
    return Response(events(count), mimetype="text/event-stream", headers=headers)


@lifecycle.on_drain
def tell() -> None:
    """Runs when the shutdown begins, before anything is refused or closed."""
    app.logger.warning("streams are asked to end")
