"""The servers of the table of guarantees, as ``flask lifecycle verify`` starts them, and what it found on each.

``docs/verified.json`` has the results: the name of a server, the name of a scenario, the result. To write it anew:

    python -m tests.catalogue.servers [SERVER ...]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from flask_lifecycle._verify import runner

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "verified.json"
PATIENCE = 60.0  # seconds, for each wait
# Long enough for the second signal to be told from the deadline.
SETTINGS = {"FLASK_LIFECYCLE_GRACE_PERIOD": "10"}

# The main listener of these does not answer probes while all workers are busy.
_PROBE_PORT = ("env", "FLASK_LIFECYCLE_PROBE_PORT={probe_port}")
_PYTHON = (sys.executable, "-m")
_RUN = ("flask", "--app", "quickstart", "lifecycle", "run", "-p", "{port}", "--server")
_BIND = ("--bind", "127.0.0.1:{port}")
_GUNICORN = (*_PROBE_PORT, *_PYTHON, "gunicorn", "--threads", "4", *_BIND)
_HOOKS = ("--config", "gunicorn/gunicorn.conf.py", "--worker-class")
_GEVENT = (
    "from gevent import monkey; monkey.patch_all()",
    "from gevent.pywsgi import WSGIServer",
    "from quickstart import app",
    "WSGIServer(('127.0.0.1', {port}), app).serve_forever()",
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "waitress": (*_PYTHON, *_RUN, "waitress"),
    "Werkzeug": (*_PYTHON, *_RUN, "werkzeug"),
    "standalone waitress": (*_PYTHON, "waitress", "--listen", "127.0.0.1:{port}", "quickstart:app"),
    "cheroot": (*_PROBE_PORT, *_PYTHON, *_RUN, "cheroot"),
    "standalone cheroot": (*_PROBE_PORT, *_PYTHON, "cheroot", "quickstart:app", *_BIND),
    "gevent": (*_PYTHON, "gevent.monkey", "--module", *_RUN, "gevent"),
    "standalone gevent": (sys.executable, "-c", "; ".join(_GEVENT)),
    "Flask's own": (*_PYTHON, "flask", "--app", "quickstart", "run", "-p", "{port}"),
    "gunicorn": (*_GUNICORN, *_HOOKS, "gthread", "quickstart:app"),
    "gunicorn's gevent worker": (*_GUNICORN, *_HOOKS, "gevent", "quickstart:app"),
    "uvicorn": (*_PROBE_PORT, *_PYTHON, "uvicorn", "--interface", "wsgi", "--port", "{port}", "quickstart:app"),
    "hypercorn": (*_PROBE_PORT, *_PYTHON, "hypercorn", *_BIND, "wsgi:quickstart:app"),
    "granian": (*_PROBE_PORT, *_PYTHON, "granian", "--interface", "wsgi", "--port", "{port}", "quickstart:app"),
    "gunicorn without the hooks": (*_GUNICORN, "--worker-class", "gthread", "quickstart:app"),
}


# The signal on which some replace their processes.
RELOAD_ON = {name: signal.SIGHUP for name in COMMANDS if name.startswith("gunicorn")}


def outcomes(server: str, *names: str, jobs: int = 1) -> Iterable[runner.Outcome]:
    """Run scenarios, or all, on a server. Its process needs the environment of :func:`environment`."""
    plan = runner.Plan(COMMANDS[server], None, {}, signal.SIGTERM, None, PATIENCE, RELOAD_ON.get(server))
    return runner.Runner(plan).run(runner.choose(names, ()), jobs)


def environment() -> Mapping[str, str]:
    """What the processes need, which inherit the environment and start in ``examples``."""
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}", **SETTINGS}


def results() -> dict[str, dict[str, str]]:
    """What was found on each server."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def main(names: list[str]) -> None:
    os.environ.update(environment())
    os.chdir(ROOT / "examples")
    found = results() if RESULTS.exists() else {}
    for name in names or COMMANDS:
        by_name = {}
        for outcome in outcomes(name, jobs=4):
            by_name[outcome.scenario] = outcome.result
            if outcome.result != "holds":
                print(f"{name}: {outcome.scenario} {outcome.result}: {outcome.seen}", flush=True)
        found[name] = {each.name: by_name[each.name] for each in runner.choose((), ())}
    text = json.dumps({name: found[name] for name in COMMANDS if name in found}, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
