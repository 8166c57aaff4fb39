"""The live application with threads that crash when the test opens their gates.

The plan's ``crashing`` names them. As a script it has no ``run``: with ``serve`` in the plan waitress serves in a
thread, without it the process only has jobs, with ``job`` one of its main thread. That crashes at the gate ``main``.
"""

from __future__ import annotations

import threading

from live_app import PLAN, app, event, lifecycle, pass_gate

__all__ = ["app", "lifecycle"]


def crash(name: str) -> None:
    pass_gate(name)
    raise ValueError(f"boom of {name}")


def serve() -> None:
    from waitress.server import create_server

    server = create_server(app, host="127.0.0.1", port=0)
    print(f"listening on http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


for name in PLAN.get("crashing", []):
    threading.Thread(target=crash, args=(name,), name=name, daemon=True).start()
if __name__ == "__main__":
    if PLAN.get("serve"):
        threading.Thread(target=serve, name="server", daemon=True).start()
    if PLAN.get("job"):
        with lifecycle.work("job"):
            event("job")
    event("main waits")
    crash("main")
