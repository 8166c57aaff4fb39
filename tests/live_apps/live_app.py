"""The application of the live tests; each of its parts is told by the test what to do.

``LIVE_HOME`` is a directory of the test: the application appends what happens to its file
``events``, and waits there for the files ``gate-<name>``, so that a test orders things without
sleeping. ``LIVE_SETTINGS`` (JSON) goes into ``app.config``; ``LIVE_PLAN`` (JSON) says which hooks
there are and how they behave.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request, send_file
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_lifecycle import Lifecycle, ShutdownReport

HOME = Path(os.environ["LIVE_HOME"])
PLAN: dict[str, Any] = json.loads(os.environ.get("LIVE_PLAN", "{}"))
if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LONGEST = 60.0  # seconds: longer than any test waits, so that a forgotten process still ends


def event(text: str) -> None:
    """Append one line to the event file; one write of O_APPEND, so that threads do not mix their
    lines.
    """
    line = f"{time.monotonic():.6f} {text}\n".encode()
    handle = os.open(HOME / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def pass_gate(name: str) -> None:
    """Wait until the test has made the gate's file."""
    end = time.monotonic() + LONGEST
    while not (HOME / f"gate-{name}").exists() and time.monotonic() < end:
        time.sleep(0.005)


def hook(kind: str, name: str, conduct: str) -> Callable[[], None]:
    """Make a hook that says on the event file when it runs, and then does as the plan says."""

    def behave() -> None:
        event(f"{kind} {name}")
        if conduct == "raise":
            raise ValueError("boom")
        if conduct == "hang":
            threading.Event().wait(LONGEST)
        if conduct == "gate":
            pass_gate(name)
        if conduct == "thread":  # not a daemon: it holds the interpreter open
            forever = threading.Event().wait
            threading.Thread(target=forever, args=(LONGEST,), name=name, daemon=False).start()

    return behave


def big_body() -> bytes:
    """Return 8 MB in which a lost, doubled or moved piece shows."""
    return b"".join(b"%07d\n" % number for number in range(1 << 20))


def numbered_chunks(gate: str | None) -> Iterator[bytes]:
    """Give 12 chunks; wait for the gate, if there is one, after the third."""
    try:
        for number in range(12):
            if number == 3 and gate is not None:
                event("begin stream")
                pass_gate(gate)
            time.sleep(0.01)
            yield b"chunk %02d\n" % number
    finally:
        event("end stream")


def chunks_until_drain(lifecycle: Lifecycle) -> Iterator[bytes]:
    """Give chunks until the drain begins, then a last one."""
    event("begin until-drain")
    for _ in range(int(LONGEST / 0.05)):
        yield b"tick\n"
        if lifecycle.draining.wait(0.05):
            break
    yield b"drained\n"


def raising_body() -> Iterator[bytes]:
    """Give one chunk, then raise."""
    yield b"one chunk\n"
    raise RuntimeError("raised in the body")


def add_waiting_routes(app: Flask, name: str) -> None:
    """Add the routes that begin, wait for something, and answer."""

    @app.get("/sleep/<float:seconds>")
    def sleep(seconds: float) -> str:
        event(f"begin {request.path}")
        time.sleep(seconds)
        event(f"end {request.path}")
        return f"slept {seconds}"

    @app.get("/gate/<gate>")
    def wait_at_gate(gate: str) -> str:
        event(f"begin {name} {gate}")
        pass_gate(gate)
        event(f"end {name} {gate}")
        return f"passed {gate}"

    @app.get("/gated-big/<gate>")
    def gated_big(gate: str) -> bytes:
        body = big_body()
        event(f"begin {name} {gate}")
        pass_gate(gate)
        return body

    @app.get("/pool/<gate>")
    def use_thread_pool(gate: str) -> str:
        event(f"begin {name} {gate}")
        pass_gate(gate)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: "from the pool").result(LONGEST)


def add_body_routes(app: Flask) -> None:
    """Add the routes that are about the body of the request or of the answer."""

    @app.get("/stream")
    def stream() -> Response:
        return Response(numbered_chunks(request.args.get("gate")), mimetype="text/plain")

    @app.get("/big")
    def big() -> bytes:
        return big_body()

    @app.get("/file")
    def file() -> Response:
        path = HOME / "big.bin"
        if not path.exists():
            path.write_bytes(big_body())
        return send_file(path, mimetype="application/octet-stream")

    @app.post("/echo")
    def echo() -> str:
        event("begin echo")
        return f"{len(request.get_data())} bytes"

    @app.get("/raise-in-body")
    def raise_in_body() -> Response:
        return Response(raising_body(), mimetype="text/plain")


def add_lifecycle_routes(app: Flask, lifecycle: Lifecycle) -> None:
    """Add the routes that use the lifecycle object."""

    @app.get("/fast")
    def fast() -> str:
        return "fast"

    @app.get("/in-flight")
    def in_flight() -> str:
        return str(lifecycle.in_flight)

    @app.get("/until-drain")
    def until_drain() -> Response:
        return Response(chunks_until_drain(lifecycle), mimetype="text/plain")

    @app.post("/stop")
    def stop() -> str:
        lifecycle.shutdown("asked by a request", wait=False)
        return "stopping"


def add_hooks(lifecycle: Lifecycle, name: str) -> None:
    """Register the hooks of the plan: lists of name, conduct and timeout (``None``: no timeout of
    its own).
    """
    decorators: dict[str, Callable[..., Any]] = {
        "startup": lifecycle.on_startup,
        "drain": lifecycle.on_drain,
        "shutdown": lifecycle.on_shutdown,
    }
    hooks = {"shutdown": [["first", "ok", None], ["last", "ok", None]], **PLAN.get("hooks", {})}
    for kind, decorate in decorators.items():
        for label, conduct, timeout in hooks.get(kind, []):
            options = {} if timeout is None else {"timeout": timeout}
            prefix = "" if name == "live" else f"{name} "
            decorate(name=label, **options)(hook(kind, prefix + label, conduct))


def create_app(name: str = "live") -> tuple[Flask, Lifecycle]:
    """Make an application with every route, the hooks of the plan and the settings of the test."""
    app = Flask(name)
    app.config.update(json.loads(os.environ.get("LIVE_SETTINGS", "{}")))
    lifecycle = Lifecycle()
    add_waiting_routes(app, name)
    add_body_routes(app)
    add_lifecycle_routes(app, lifecycle)
    add_hooks(lifecycle, name)
    event(f"made {name}")
    lifecycle.init_app(app)
    event(f"ready {name}")
    return app, lifecycle


def force_fallback() -> None:
    """Make the socket filter unavailable, as it is without CAP_NET_ADMIN on recent kernels."""
    from flask_lifecycle.servers import _closing

    def refuse(sock: socket.socket) -> bool:
        return False

    _closing.attach_syn_filter = refuse


def write_report(report: ShutdownReport) -> None:
    """Leave what a test wants to know of the report in the file ``report.json``."""
    told = {
        "signal": report.signal,
        "clean": report.clean,
        "exit_code": report.exit_code,
        "duration": report.duration,
        "phases": [record.name for record in report.phases],
        "hooks": [[record.name, record.kind, record.outcome] for record in report.hooks],
        "abandoned": [[info.method, info.path] for info in report.abandoned],
    }
    (HOME / "report.json").write_text(json.dumps(told))


def run_by_script() -> int:
    """Serve by ``Lifecycle.run``, with the options of the plan or on a socket of the test; return
    the exit code.
    """

    def before(_number: int, _frame: object) -> None:
        """Stand for a handler that the program had before."""

    options: dict[str, Any] = dict(PLAN.get("run", {}))
    if "descriptor" in PLAN:
        options["sockets"] = [socket.socket(fileno=PLAN["descriptor"])]
    else:
        options["port"] = 0
    signal.signal(signal.SIGINT, before)
    report = lifecycle.run(app, **options)
    write_report(report)
    event(f"restored {signal.getsignal(signal.SIGINT) is before}")
    return report.exit_code


if PLAN.get("logging"):
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
if PLAN.get("fallback"):
    force_fallback()
app, lifecycle = create_app()
if PLAN.get("second"):  # another application in this process, with a lifecycle of its own
    second, second_lifecycle = create_app("second")
    mounts: dict[str, WSGIApplication] = {"/second": second}
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(run_by_script())
