"""The live application with a check, and a view that adds up the metrics of all workers, as one might have it."""

from __future__ import annotations

import importlib

from flask import Response
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

live_app = importlib.import_module("live_app")
app, lifecycle = live_app.app, live_app.lifecycle


@lifecycle.check("disk")  # type: ignore[untyped-decorator]
def disk() -> None:
    """Nothing is wrong with it."""


@app.get("/sum")  # type: ignore[untyped-decorator]
def add_up() -> Response:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), mimetype="text/plain")
