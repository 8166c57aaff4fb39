"""The work that the application under test does: requests of known shape, and a hook that records its run.

They exist only in a process that ``flask lifecycle verify`` has started. It sets ``LIFECYCLE_VERIFY`` to a random path,
which the routes are under, and the name of a file, to which the process appends what happens and when.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request

from .._core.feature import Feature

VARIABLE = "LIFECYCLE_VERIFY"
LARGE = b"".join(b"%07d\n" % number for number in range(1 << 20))  # a missing or moved piece shows
PARTS = 10
_HOOK = "lifecycle-verify"
_PROBES = {"ready": "readyz", "live": "livez"}


class Record:
    """The file to which the process under test appends what happens; each line is one write with O_APPEND."""

    def __init__(self, path: str) -> None:
        self.path = path

    def add(self, text: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{time.monotonic():.6f} {text}\n".encode())
        finally:
            os.close(descriptor)


class VerifyRoutes(Feature):
    """The routes and the hooks; they are registered with the application, so there is nothing to begin or stop."""

    def __init__(self, application: Any) -> None:
        prefix, _, path = os.environ[VARIABLE].partition(":")
        if not (prefix and os.path.isfile(path)):
            raise ValueError(f"{VARIABLE} is set, but not by 'flask lifecycle verify'; unset it.")
        record = Record(path)
        blueprint = _blueprint(prefix, record)

        @blueprint.get("/guarantee")
        def guarantee() -> str:
            info = application.serving.info()
            return "" if info is None else str(info.guarantee)

        application.flask.register_blueprint(blueprint)
        if not any(hook.name == _HOOK for hook in application.hooks.of("shutdown")):  # several applications share it
            application.hooks.add("shutdown", lambda: record.add("shutdown"), _HOOK, None)
        settings = application.settings
        paths = {kind: settings.url_prefix + settings.paths[name] for kind, name in _PROBES.items()}
        record.add(
            "settings " + json.dumps({**paths, "grace": settings.grace_period, "probe_port": settings.probe_port})
        )

    @classmethod
    def of(cls, application: Any) -> VerifyRoutes:
        return cls(application)


def _blueprint(prefix: str, record: Record) -> Blueprint:
    blueprint = Blueprint("lifecycle_verify", __name__, url_prefix=f"/{prefix}")

    def seconds() -> float:
        return min(float(request.args.get("seconds", "1")), 600.0)

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

    return blueprint
