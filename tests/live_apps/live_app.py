"""The application of the live tests; each of its parts is told by the test what to do.

``LIVE_HOME`` is a directory of the test: the application appends what happens to its file
``events``, and waits there for the files ``gate-<name>``, so that a test orders things without
sleeping. ``LIVE_SETTINGS`` (JSON) goes into ``app.config``; ``LIVE_PLAN`` (JSON) says which hooks
there are and how they behave, and what else of the process misbehaves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request, send_file
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_lifecycle import Lifecycle, State, state_changed

HOME = Path(os.environ["LIVE_HOME"])
PLAN: dict[str, Any] = json.loads(os.environ.get("LIVE_PLAN", "{}"))
if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LONGEST = 60.0  # seconds: longer than any test waits, so that a forgotten process still ends
measured = sys.modules["coverage"].Coverage.current() if "coverage" in sys.modules else None
if measured is not None:  # It saves at the interpreter's exit and at a forced one; both at once crash.
    saved = threading.Lock()
    measured.save = lambda save=measured.save: saved.acquire(blocking=False) and save()


def event(text: str) -> None:
    """Append one line to the event file; one write of O_APPEND, so that threads do not mix their lines."""
    with (HOME / "events").open("ab", buffering=0) as events:
        events.write(f"{time.monotonic():.6f} {text}\n".encode())


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
        if conduct in ("gate", "hold"):
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


def short_body(begin: bytes, fails: bool) -> Iterator[bytes]:
    """Give one chunk, and then perhaps raise."""
    yield begin
    if fails:
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
        from concurrent.futures import ThreadPoolExecutor  # as in hang_async()

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
        return Response(short_body(b"one chunk\n", fails=True), mimetype="text/plain")


def add_rude_routes(app: Flask) -> None:
    """Add the routes that do what no application should."""

    @app.get("/misframed/<int:given>")
    def misframed(given: int) -> Response:
        body = short_body(b"x" * given, "raise" in request.args)
        return Response(body, headers={"Content-Length": "100"}, mimetype="text/plain")

    @app.post("/refuse")
    def refuse() -> tuple[str, int]:
        return "too large, and not read", 413

    @app.get("/exit/<gate>")
    def leave(gate: str) -> str:
        event(f"begin exit {gate}")
        pass_gate(gate)
        raise SystemExit(3)

    @app.get("/fork")
    def fork() -> str:
        child = os.fork()
        if child == 0:
            event("forked")
            time.sleep(LONGEST)
            os._exit(0)
        return str(child)

    if PLAN.get("catch_all"):
        app.url_map.merge_slashes = False

        @app.get("/<path:rest>")
        def catch_all(rest: str) -> str:
            event(f"begin catch-all {request.path}")
            pass_gate("catch-all")
            return rest


def do_work(lifecycle: Lifecycle, gate: str) -> None:
    """Do a piece of work that ends when the test opens its gate."""
    with lifecycle.work("job", gate=gate):
        event(f"begin work {gate}")
        pass_gate(gate)
        event(f"end work {gate}")


def begin_task(lifecycle: Lifecycle, name: str, conduct: str, on_failure: str) -> None:
    """Begin a start-up task that ends as the plan says."""
    task = lifecycle.startup_task(name, on_failure=on_failure)

    def run() -> None:
        with contextlib.suppress(ValueError), task:
            hook("task", name, conduct)()

    threading.Thread(target=run, name=f"task-{name}", daemon=True).start()


def add_lifecycle_routes(app: Flask, lifecycle: Lifecycle) -> None:
    """Add the routes that use the lifecycle object."""

    @app.get("/fast")
    def fast() -> str:
        return "fast"

    @app.get("/in-flight")
    def in_flight() -> str:
        return str(lifecycle.in_flight)

    @app.get("/visits")
    def visits() -> str:
        return str(min((prober.count for prober in lifecycle.probers()), default=0))

    @app.get("/until-drain")
    def until_drain() -> Response:
        return Response(chunks_until_drain(lifecycle), mimetype="text/plain")

    @app.get("/work/<gate>")
    def work(gate: str) -> tuple[str, int]:
        threading.Thread(target=do_work, args=(lifecycle, gate), name="worker", daemon=True).start()
        return "begun", 202

    @app.post("/stop")
    def stop() -> str:
        lifecycle.shutdown("asked by a request", wait=False)
        return "stopping"


def add_hooks(lifecycle: Lifecycle, name: str) -> None:
    """Register the hooks of the plan: lists of name, conduct and timeout (``None``: no timeout of its own)."""
    decorators: dict[str, Callable[..., Any]] = {
        "startup": lifecycle.on_startup,
        "drain": lifecycle.on_drain,
        "shutdown": lifecycle.on_shutdown,
    }
    hooks = {"shutdown": [["first", "ok", None], ["last", "ok", None]], **PLAN.get("hooks", {})}
    for kind, decorate in decorators.items():
        for label, conduct, timeout in hooks.get(kind, []):
            options = {} if timeout is None else {"timeout": timeout}
            options |= {"hold": True} if conduct == "hold" else {}
            options |= {"scope": "process-group"} if label.startswith("once") else {}
            prefix = "" if name == "live" else f"{name} "
            decorate(name=label, **options)(hook(kind, prefix + label, conduct))


def misbehave(conduct: str, in_words: str) -> None:
    """Hang, or raise, as the plan says."""
    event(in_words)
    if conduct == "hang":
        threading.Event().wait(LONGEST)
    raise ValueError("boom")


async def hang_async() -> None:
    """Hang as a coroutine does."""
    import asyncio  # few need it, and each process would pay for it

    await asyncio.sleep(LONGEST)


class RudeHandler(logging.StreamHandler):  # type: ignore[type-arg]  # subscriptable from Python 3.11 on
    """Writes each record of the package, and then raises, or hangs when a shutdown begins."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if PLAN["log_handler"] == "raise" or record.getMessage().startswith("shutdown begins"):
            misbehave(PLAN["log_handler"], "rude handler")


class RecordsHandler(logging.StreamHandler):  # type: ignore[type-arg]  # subscriptable from Python 3.11 on
    """Writes each record of the package, and appends it with its fields to the file ``records``, as lines of JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        fields = {key: value for key, value in vars(record).items() if key.startswith("lifecycle_")}
        line = json.dumps({"message": record.getMessage(), "level": record.levelname, **fields})
        with (HOME / "records").open("a") as records:
            records.write(f"{line}\n")


def rude_receiver(_app: Flask, new: State, **_more: object) -> None:
    """Hear of changes of the state, and do as the plan says when it is of the drain."""
    if new is State.DRAINING:
        misbehave(PLAN["receiver"], "rude receiver")


def stall_stderr() -> None:
    """Put a pipe in the place of stderr that is full and that nobody reads."""
    pass_gate("stall")
    _read, write = os.pipe()
    os.set_blocking(write, False)
    for size in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write, b"x" * size)
    os.set_blocking(write, True)
    os.dup2(write, sys.stderr.fileno())
    event("stderr stalled")


def add_rude_surroundings(lifecycle: Lifecycle) -> None:
    """Let the log, a receiver, a check and stderr behave as the plan says."""
    if "log_handler" in PLAN:
        handler = RecordsHandler() if PLAN["log_handler"] == "record" else RudeHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.getLogger("flask_lifecycle").addHandler(handler)
        logging.getLogger("flask_lifecycle").setLevel(logging.DEBUG)
    if "receiver" in PLAN:
        state_changed.connect(rude_receiver)
    if "stderr" in PLAN:
        threading.Thread(target=stall_stderr, daemon=True).start()
    if PLAN.get("observed"):
        lifecycle.check("observed", ttl=0)(lambda: {"at": time.monotonic()})
    if "background" in PLAN:
        lifecycle.check("background", interval=PLAN["background"])(lambda: event("background"))
    if "check" in PLAN:
        lifecycle.check("rude", timeout=LONGEST)(lambda: misbehave(PLAN["check"], "rude check"))
    if PLAN.get("check") == "hang":
        lifecycle.check("async", timeout=LONGEST)(hang_async)


def create_app(name: str = "live") -> tuple[Flask, Lifecycle]:
    """Make an application with every route, the hooks of the plan and the settings of the test."""
    app = Flask(name)
    app.config.update(json.loads(os.environ.get("LIVE_SETTINGS", "{}")))
    lifecycle = Lifecycle()
    add_waiting_routes(app, name)
    add_body_routes(app)
    add_rude_routes(app)
    add_lifecycle_routes(app, lifecycle)
    add_hooks(lifecycle, name)
    add_rude_surroundings(lifecycle)
    for task in PLAN.get("tasks", []):
        begin_task(lifecycle, *task)
    event(f"made {name}")
    lifecycle.init_app(app)
    event(f"ready {name}")
    return app, lifecycle


def force_fallback() -> None:
    """Let no listener become deaf, as before Linux 5.7 without CAP_NET_ADMIN and on other systems."""
    from flask_lifecycle._servers import listener

    listener.refuse_connections = lambda sock: None


def run_by_script() -> int:
    """Serve by ``Lifecycle.run``, with the options of the plan; return the exit code."""

    def before(_number: int, _frame: object) -> None:
        """Stand for a handler that the program had before."""

    signal.signal(signal.SIGINT, before)
    report = lifecycle.run(app, port=0, **PLAN.get("run", {}))
    event(f"restored {signal.getsignal(signal.SIGINT) is before}")
    return report.exit_code


if PLAN.get("logging"):
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("flask_lifecycle").setLevel(logging.DEBUG)  # the phases as well
if PLAN.get("fallback"):
    force_fallback()
app, lifecycle = create_app()
if PLAN.get("warm"):
    app.test_client().get("/fast", buffered=True)
if PLAN.get("second"):  # another application in this process, with a lifecycle of its own
    second, second_lifecycle = create_app("second")
    mounts: dict[str, WSGIApplication] = {"/second": second}
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, mounts)  # type: ignore[method-assign]
if __name__ == "__main__":
    sys.exit(run_by_script())
