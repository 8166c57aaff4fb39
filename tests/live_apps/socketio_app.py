"""The live application with Flask-SocketIO around it, created after the ``Lifecycle``, as docs/work.md has it."""

from __future__ import annotations

from flask_socketio import SocketIO  # type: ignore[import-untyped]  # it has no types
from live_app import PLAN, app, event, lifecycle, pass_gate

socketio = SocketIO(app, async_mode="threading")


@lifecycle.on_drain
def disconnect_clients() -> None:
    if PLAN.get("disconnect"):
        socketio.server.eio.disconnect()


@socketio.on("connect")  # type: ignore[untyped-decorator]  # it has no types
def connect() -> bool:
    return not lifecycle.draining.is_set()


@socketio.on("import")  # type: ignore[untyped-decorator]  # it has no types
@lifecycle.work("import")
def import_file(name: str) -> None:
    event(f"begin {name}")
    pass_gate(name)
    event(f"end {name}")


@socketio.on("copy")  # type: ignore[untyped-decorator]  # it has no types
def copy_file(name: str) -> None:
    event(f"begin {name}")
    pass_gate(name)
    event(f"end {name}")
