"""The live application with a check of its worker pool, which tells on the event file what it saw."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

from flask_lifecycle.checks.workers import WorkerPoolCheck

live_app = importlib.import_module("live_app")
app, lifecycle = live_app.app, live_app.lifecycle
pool = WorkerPoolCheck(**live_app.PLAN.get("workers", {}))


@lifecycle.check("workers")  # type: ignore[untyped-decorator]
def workers() -> Mapping[str, Any]:
    result = pool()
    live_app.event("workers " + json.dumps([result.status, result.output, result.observed]))
    return result.observed
