"""The live application with a liveness check that hangs once the test has opened its gate."""

from __future__ import annotations

import os

from live_app import HOME, app, event, lifecycle, pass_gate

__all__ = ["app", "lifecycle"]


@lifecycle.check("pulse", groups=("live",), ttl=0.01, timeout=30)
def pulse() -> None:
    if (HOME / "gate-hang").exists():
        event("hanging")
        pass_gate("never")


@app.get("/environment")
def environment() -> list[str]:
    return sorted(name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_")))
