"""The work that the application under test does: requests of known shape, and a hook that records its run.

They exist only in a process that ``flask lifecycle verify`` has started. It sets ``LIFECYCLE_VERIFY`` to a random path,
which the routes are under; what one more ``on_shutdown`` function is to do, or nothing; and the name of a file, to
which the process appends what happens and when. Colons separate the three.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request, send_file

from .._core.feature import Feature
from .._core.state import State

VARIABLE = "LIFECYCLE_VERIFY"
LARGE = b"".join(b"%07d\n" % number for number in range(1 << 20))  # a missing or moved piece shows
PARTS = 10
_HOOK = "lifecycle-verify"
_PROBES = {"ready": "readyz", "live": "livez"}


class Record:
    """The file to which the processes under test append what happens; each line is one write."""

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self, text: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # without O_CREAT: it may be over
        with open(descriptor, "w") as file:
            file.write(f"{time.monotonic():.6f} {os.getpid()} {text}\n")


def _misbehave(record: Record, how: str) -> None:
    """Raise or hang, as a hook of the application might."""
    record.add(how)
    if how == "raises":
        raise RuntimeError("as 'flask lifecycle verify' has asked")
    threading.Event().wait()


class VerifyRoutes(Feature):
    """The routes and the hooks; they are registered with the application, so there is nothing to begin or stop."""

    def __init__(self, application: Any) -> None:
        prefix, _, rest = os.environ[VARIABLE].partition(":")
        hook, _, path = rest.partition(":")
        if not (prefix and hook in ("", "raises", "hangs") and os.path.isfile(path)):
            raise ValueError(f"{VARIABLE} is set, but not by 'flask lifecycle verify'; unset it.")
        self._record = record = Record(path)
        application.flask.register_blueprint(_blueprint(prefix, record, application))
        if not any(hook.name == _HOOK for hook in application.hooks.of("shutdown")):  # several applications share it
            application.hooks.add("shutdown", lambda: record.add("shutdown"), _HOOK, None)
            if hook:  # added later, it runs earlier
                application.hooks.add("shutdown", lambda: _misbehave(record, hook), f"{_HOOK}-{hook}", None)
        settings = application.settings
        paths = {kind: settings.url_prefix + settings.paths[name] for kind, name in _PROBES.items()}
        record.add(
            "settings " + json.dumps({**paths, "grace": settings.grace_period, "probe_port": settings.probe_port})
        )

    def state_changed(self, new: State, reason: str) -> None:
        if new is State.READY:
            self._record.add("ready")


def _echo(sock: socket.socket, draining: threading.Event) -> None:
    """Answer the messages of a websocket until the drain begins; then send a close frame, 1001 for "going away"."""
    while not draining.is_set():
        if select.select([sock], [], [], 0.1)[0]:
            frame = sock.recv(1024)  # of `verify`, which masks with zeros and sends one short frame at a time
            if not frame:
                return
            sock.sendall(bytes([frame[0], frame[1] & 0x7F]) + frame[6:])
    sock.sendall(b"\x88\x02\x03\xe9")


def _blueprint(prefix: str, record: Record, application: Any) -> Blueprint:
    blueprint = Blueprint("lifecycle_verify", __name__, url_prefix=f"/{prefix}")

    def seconds() -> float:
        return min(float(request.args.get("seconds", "1")), 600.0)

    @blueprint.get("/guarantee")
    def guarantee() -> str:
        info = application.serving.info()
        return "" if info is None else str(info.guarantee)

    @blueprint.get("/fast")
    def fast() -> str:
        return "fast"

    @blueprint.get("/slow")
    def slow() -> str:
        record.add("begin")
        time.sleep(seconds())
        record.add("end")
        return "slow"

    @blueprint.get("/cpu")
    def cpu() -> str:
        record.add("begin")
        end = time.monotonic() + seconds()
        while time.monotonic() < end:
            pass
        record.add("end")
        return "cpu"

    @blueprint.get("/stream")
    def stream() -> Response:
        pause = seconds() / PARTS

        def parts() -> Iterator[bytes]:
            record.add("begin")
            for number in range(PARTS):
                yield b"part %d\n" % number
                time.sleep(pause)
            record.add("end")

        return Response(parts(), mimetype="text/plain")

    @blueprint.post("/upload")
    def upload() -> str:
        return str(len(request.get_data()))

    @blueprint.get("/large")
    def large() -> bytes:
        return LARGE

    @blueprint.get("/file")
    def file() -> Response:
        path = f"{record.path}-file"
        with open(path, "wb") as made:
            made.write(LARGE)
        return send_file(path, "application/octet-stream")

    @blueprint.get("/thread")
    def thread() -> str:
        threading.Thread(target=threading.Event().wait, daemon=False).start()
        return "thread"

    @blueprint.route("/websocket", websocket=True)
    def websocket() -> Response:
        """Of a server that hands out its socket, as those do on which packages for websockets work."""
        sock = request.environ.get("werkzeug.socket") or request.environ.get("gunicorn.socket")
        if sock is None:
            return Response("This server hands out no socket.", 501)
        key = request.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        head = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}"
        sock.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{head}\r\n\r\n".encode())
        _echo(sock, application.draining)
        return Response()  # which the client ignores

    return blueprint
