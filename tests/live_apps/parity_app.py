"""The applications of the parity tests: as many in one process as the plan has.

``LIVE_HOME`` is a directory of the test: what happens is appended to its file ``events``. ``LIVE_PLAN`` (JSON) says
which applications there are: ``root`` at the root, each of ``mounted`` under its name, and ``settings`` for all of
them. What an application can be told is in :func:`make_app`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_lifecycle import HealthCheckError, HealthReport, Lifecycle, ShutdownContext, State, state_changed

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

HOME = Path(os.environ["LIVE_HOME"])
PLAN: dict[str, Any] = json.loads(os.environ.get("LIVE_PLAN", "{}"))
Tell = Callable[[str], None]


def teller(name: str) -> Tell:
    """What appends a line to the event file; those of a mounted application begin with its name."""

    def tell(text: str) -> None:
        with (HOME / "events").open("ab", buffering=0) as events:  # one write, so that threads do not mix their lines
            events.write(f"{time.monotonic():.6f} {name + ' ' if name else ''}{text}\n".encode())

    return tell


def add_check(lifecycle: Lifecycle, tell: Tell, name: str, plan: dict[str, Any]) -> None:
    """Register a check that says on the event file when it runs, and then does as the plan says."""

    @lifecycle.check(name, ttl=0)
    def check() -> None:
        tell(f"check {name}")
        if "raises" in plan:
            raise ValueError(plan["raises"])
        if "fails" in plan:
            raise HealthCheckError(**plan["fails"])


def body_of_ones_own(report: HealthReport) -> dict[str, str]:
    """A body of one's own for good and for bad."""
    return {"status": "DOWN" if report.status == "fail" else "UP"}


def add_hooks(lifecycle: Lifecycle, tell: Tell, plan: dict[str, list[str]]) -> None:
    """Register hooks, by kind and name, that say when they run and by which signal."""
    for kind, names in plan.items():
        for name in names:

            def hook(context: ShutdownContext, text: str = f"{kind} {name}") -> None:
                tell(f"{text} {context.signal}")

            (lifecycle.on_drain if kind == "drain" else lifecycle.on_shutdown)(name=name)(hook)


def add_routes(app: Flask, lifecycle: Lifecycle, tell: Tell) -> None:
    """Add the work that is asked for, and the ways to move the lifecycle from outside."""

    @app.before_request
    def notice() -> None:
        tell(f"request {request.path}")

    @app.get("/hello")
    def hello() -> str:
        return "hello"

    @app.post("/ready")
    def ready() -> str:
        lifecycle.set_ready()
        return "told"

    @app.post("/not-ready")
    def not_ready() -> str:
        lifecycle.set_not_ready("for maintenance")
        return "told"


def make_app(
    name: str,
    settings: dict[str, Any] | None = None,
    checks: dict[str, dict[str, Any]] | None = None,
    hooks: dict[str, list[str]] | None = None,
    up_or_down: bool = False,
    waits: bool = False,
) -> Flask:
    """Make one application as the plan has it.

    :param settings: for ``app.config``, over those for all.
    :param checks: by name what they do, see :func:`add_check`; by default one that passes.
    :param hooks: see :func:`add_hooks`.
    :param up_or_down: whether the bodies are of one's own.
    :param waits: whether somebody waits until it is ready.
    """
    app = Flask(name or "root")
    app.config.update({**PLAN.get("settings", {}), **(settings or {})})
    tell = teller(name)
    lifecycle = Lifecycle(app)
    for check, plan in ({"database": {}} if checks is None else checks).items():
        add_check(lifecycle, tell, check, plan)
    if up_or_down:
        lifecycle.renderer(body_of_ones_own)
    add_hooks(lifecycle, tell, hooks or {})
    add_routes(app, lifecycle, tell)

    def changed(_sender: Flask, new: State, **_more: Any) -> None:
        tell(f"state {new.name}")

    state_changed.connect(changed, app, weak=False)
    if waits:
        threading.Thread(target=lambda: tell(f"waited {lifecycle.wait_ready(60)}"), daemon=True).start()
    return app


app = make_app("", **PLAN.get("root", {}))
mounts: dict[str, WSGIApplication] = {
    f"/{name}": make_app(name, **plan) for name, plan in PLAN.get("mounted", {}).items()
}
app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
