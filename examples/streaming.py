"""A response without an end that notices the drain and ends by itself.

Serve it with ::

    flask --app examples/streaming.py lifecycle run -p 8000

then ``curl -N localhost:8000/ticks``, and press Ctrl-C in the first terminal: the client gets a
last event. Without the look at ``lifecycle.draining`` the stream would go on until the deadline
and be cut off there.
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response

from flask_lifecycle import Lifecycle

PERIOD = 0.2

app = Flask(__name__)
lifecycle = Lifecycle(app)


@app.get("/ticks")
def ticks() -> Response:
    # Taken here: the body is produced when the view has returned and its context is gone.
    draining = lifecycle.draining

    def events() -> Iterator[str]:
        count = 0
        # wait() returns True the moment the shutdown begins: a sleep that can be cut short.
        while not draining.wait(PERIOD):
            count += 1
            yield f"data: {count}\n\n"
        # The id lets the client go on from here with the next process.
        yield f"event: bye\nid: {count}\ndata: reconnect\n\n"

    return Response(events(), mimetype="text/event-stream", headers={"Cache-Control": "no-store"})


@lifecycle.on_drain
def tell() -> None:
    """Runs when the shutdown begins, before anything is refused or closed."""
    app.logger.warning("streams are asked to end")
