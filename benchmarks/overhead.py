"""Instructions per request, in process, without the extension, with it, and with all of it turned on; and its import.

Needs valgrind. Each figure is the difference between two runs that differ in the number of requests
alone, so that start-up, imports and exit cancel out::

    python benchmarks/overhead.py [--requests N]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flask import Flask

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 100
BARE, WITH, EVERYTHING = "bare", "lifecycle", "everything"
# Everything that runs beside requests; the status page is not open.
ALL_ON = {
    "LIFECYCLE_DETAILS": "token",
    "LIFECYCLE_LOG_REMOTE_ADDR": True,
    "LIFECYCLE_METRICS": True,
    "LIFECYCLE_PROBE_HOST": "127.0.0.1",
    "LIFECYCLE_PROBE_PORT": 0,
    "LIFECYCLE_SHUTDOWN_DELAY": "auto",
    "LIFECYCLE_STOP_ON_CRASH": ["*"],
    "LIFECYCLE_STUCK_AFTER": 60,
    "LIFECYCLE_TOKEN": "long enough for a token",
}


def make_app(kind: str) -> Flask:
    from flask import Flask

    app = Flask(__name__)

    @app.get("/")
    def index() -> str:
        return "hello\n"

    @app.get("/stream")
    def stream() -> Any:
        return (b"%d\n" % number for number in range(10)), {"Content-Type": "text/plain"}

    if kind != BARE:
        from flask_lifecycle import Lifecycle

        home = os.environ.get("BENCHMARK_HOME", "")
        more = {"LIFECYCLE_CONTROL_DIR": home, "LIFECYCLE_REPORT_FILE": f"{home}/report.json"}
        app.config.update(ALL_ON | more if kind == EVERYTHING else {})
        lifecycle = Lifecycle(app)
        if kind == EVERYTHING:
            lifecycle.check("background", interval=0.5)(lambda: None)
    return app


def serve(kind: str, path: str, count: int) -> None:
    """Call the application as a server does: a fresh environ, all chunks taken, then closed."""
    from werkzeug.test import create_environ

    app = make_app(kind)
    environ = create_environ(path)

    def start_response(status: str, headers: object, exc_info: object = None) -> Any:
        assert status == "200 OK"

    for _ in range(WARM_UP + count):
        result = app(dict(environ), start_response)
        for _chunk in result:
            pass
        close = getattr(result, "close", None)
        if close is not None:
            close()


def environment(cache: str) -> dict[str, str]:
    """What the measured processes see: byte code is cached, as it is wherever a package is installed."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {
        **environ,
        "BENCHMARK_HOME": cache,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(ROOT),
        "PYTHONPYCACHEPREFIX": cache,
    }


def instructions(cache: str, *arguments: str) -> int:
    """How many instructions an interpreter with these arguments executes."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    done = subprocess.run(
        [*command, *arguments],
        env=environment(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(found[1])


def per_request(cache: str, kind: str, path: str, count: int) -> float:
    few, many = (instructions(cache, __file__, "--child", kind, path, str(number)) for number in (count, 3 * count))
    return (many - few) / (2 * count)


def report_requests(cache: str, count: int) -> None:
    kinds = (BARE, WITH, EVERYTHING)
    for kind in kinds:  # fills the cache
        child = [sys.executable, __file__, "--child", kind, "/", "0"]
        subprocess.run(child, env=environment(cache), check=True)
    print(f"{'instructions per request':28}{'bare Flask':>14}{'Lifecycle':>14}{'ratio':>9}{'all on':>14}{'ratio':>9}")
    for path in ("/", "/stream"):
        bare, with_extension, all_on = (per_request(cache, kind, path, count) for kind in kinds)
        ratios = with_extension / bare, all_on / bare
        line = f"GET {path:24}{bare:14,.0f}{with_extension:14,.0f}{ratios[0]:9.4f}{all_on:14,.0f}{ratios[1]:9.4f}"
        print(line, flush=True)


def report_imports(cache: str) -> None:
    codes = ("pass", "import flask", "import flask; import flask_lifecycle")
    for code in codes:
        subprocess.run([sys.executable, "-c", code], env=environment(cache), check=True)
    nothing, flask, both = (instructions(cache, "-c", code) for code in codes)
    print(f"{'instructions of an import':46}{'':>14}{'ratio':>9}")
    print(f"{'flask':46}{flask - nothing:14,}")
    ratio = (both - flask) / (flask - nothing)
    print(f"{'flask_lifecycle, beyond flask':46}{both - flask:14,}{ratio:9.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, path, count = options.child
        serve(kind, path, int(count))
    else:
        with tempfile.TemporaryDirectory() as cache:
            report_imports(cache)
            print()
            report_requests(cache, options.requests)


if __name__ == "__main__":
    main()
