"""What a stop loses elsewhere: ``flask lifecycle verify`` on other servers and libraries, and on this package.

Each server is stopped in every scenario of ``verify``, the scenarios of the family ``accept`` several times, because
bare servers lose requests in some of those stops and not in others. A server's own option for a graceful stop gets
nineteen of the twenty seconds that are allowed. Prints the tables, and with ``--write`` writes them into
``docs/peers.md`` and ``README.md``. Takes about twenty minutes::

    python benchmarks/peers.py [--node DIR] [--only NAME] [--write] [--results FILE]

``--node`` is a directory in which ``npm install express @godaddy/terminus lightship`` has been run. Without it the
three Node servers are left out. ``--results`` keeps what was seen in a file, and servers that the file has already are
not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BIN = Path(sys.executable).parent
GRACE = 20.0  # seconds that a stop may take
REPEATS = 5  # of the scenarios of the family accept
FAMILIES = ("accept", "in-flight", "connections", "probes", "exit")
WORK = (
    "--fast=/fast", "--slow=/slow?s={seconds}", "--stream=/stream?s={seconds}", "--upload=/upload", "--large=/large",
    "--file=/file",
)  # fmt: skip
FLASK_PROBES = ("--ready=/health", "--live=/health")
NODE_PROBES = ("--ready=/ready", "--live=/live")

Results = dict[str, Any]


class Server(NamedTuple):
    """A server, its command, and the packages whose versions count."""

    command: tuple[str, ...]
    packages: tuple[str, ...]
    paths: tuple[str, ...] = (*WORK, *FLASK_PROBES)


SERVERS = {
    "waitress alone": Server(("waitress-serve", "--listen=127.0.0.1:{port}", "_peers_app:app"), ("waitress",)),
    "gunicorn alone, gthread": Server(
        ("gunicorn", "--bind=127.0.0.1:{port}", "--threads=4", "--graceful-timeout=19", "_peers_app:app"), ("gunicorn",)
    ),
    "gunicorn alone, sync": Server(
        ("gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--graceful-timeout=19", "_peers_app:app"), ("gunicorn",)
    ),
    "Werkzeug alone (`flask run`)": Server(("flask", "--app=_peers_app", "run", "--port={port}"), ("werkzeug",)),
    "uvicorn alone (a WSGI application)": Server(
        ("uvicorn", "--interface=wsgi", "--port={port}", "--timeout-graceful-shutdown=19", "_peers_app:app"),
        ("uvicorn",),
    ),
    "hypercorn alone (a WSGI application)": Server(
        ("hypercorn", "--bind=127.0.0.1:{port}", "--graceful-timeout=19", "wsgi:_peers_app:app"), ("hypercorn",)
    ),
    "granian alone (a WSGI application)": Server(
        ("granian", "--interface=wsgi", "--port={port}", "--workers-kill-timeout=19", "_peers_app:app"), ("granian",)
    ),
    # By default its accept queue has room for five connections, and the check opens eight.
    "cheroot alone": Server(
        ("cheroot", "--bind=127.0.0.1:{port}", "--request-queue-size=128", "_peers_app:app"), ("cheroot",)
    ),
    "Express alone (Node)": Server(("node", "express"), ("express",), (*WORK, *NODE_PROBES)),
    "Terminus (Node)": Server(("node", "terminus"), ("express", "@godaddy/terminus"), (*WORK, *NODE_PROBES)),
    # Its probes are on a port of their own, which the check cannot be given.
    "Lightship (Node)": Server(("node", "lightship"), ("express", "lightship"), WORK),
    "flask_lifecycle on waitress": Server(
        ("waitress-serve", "--listen=127.0.0.1:{port}", "_peers_app:app"), ("waitress", "flask_lifecycle"), ()
    ),
    "flask_lifecycle on gunicorn, gthread": Server(
        ("gunicorn", "--config=python:flask_lifecycle.gunicorn", "--bind=127.0.0.1:{port}", "--threads=4",
         "--graceful-timeout=20", "_peers_app:app"),
        ("gunicorn", "flask_lifecycle"), (),
    ),
    "flask_lifecycle on Werkzeug (`flask run`)": Server(
        ("flask", "--app=_peers_app", "run", "--port={port}"), ("werkzeug", "flask_lifecycle"), ()
    ),
    "flask_lifecycle on cheroot": Server(
        ("cheroot", "--bind=127.0.0.1:{port}", "--request-queue-size=128", "_peers_app:app"),
        ("cheroot", "flask_lifecycle"), (),
    ),
    "flask_lifecycle on uvicorn": Server(
        ("uvicorn", "--interface=wsgi", "--port={port}", "_peers_app:app"), ("uvicorn", "flask_lifecycle"), ()
    ),
}  # fmt: skip

# The table of the README: a column for each question, with the scenarios that answer it.
QUESTIONS = {
    "connections in the kernel's queue": ("accept/queue",),
    "new connections": ("accept/storm",),
    "kept connections": ("accept/storm-kept",),
    "queued or half-received requests": (
        "in-flight/queued", "in-flight/half-head", "in-flight/half-body", "in-flight/trickled",
    ),
    "running requests": ("in-flight/running",),
    "streams, slow readers": ("in-flight/streamed", "in-flight/slow-reader"),
}  # fmt: skip
README_ROWS = (
    "waitress alone", "gunicorn alone, gthread", "Terminus (Node)", "Lightship (Node)", "flask_lifecycle on waitress",
)  # fmt: skip


def version(package: str, node: Path | None) -> str:
    if node is not None and (found := node / "node_modules" / package / "package.json").exists():
        return str(json.loads(found.read_text())["version"])
    return importlib.metadata.version(package)


def command_of(server: Server, node: Path | None) -> tuple[list[str], dict[str, str]]:
    """The command, and what it needs in the environment."""
    if server.command[0] == "node":
        assert node is not None
        # Node looks for packages beside the program, so the program goes to them.
        program = shutil.copy(HERE / "_peers_app.mjs", node)
        return ["node", str(program), "{port}", "{probe_port}"], {"PEERS": server.command[1]}
    environment = {"PEERS": "alone"}
    if "flask_lifecycle" in server.packages:
        environment = {"PEERS": "lifecycle", "FLASK_LIFECYCLE_GRACE_PERIOD": f"{GRACE:g}"}
    words = [str(BIN / server.command[0]), *server.command[1:]]
    if "flask_lifecycle" in server.packages:
        words = ["env", "FLASK_LIFECYCLE_PROBE_PORT={probe_port}", *words]
    return words, environment


def verify(server: Server, node: Path | None, *options: str) -> list[Results]:
    """The outcomes of ``flask lifecycle verify``."""
    command, environment = command_of(server, node)
    with tempfile.TemporaryDirectory() as home:
        seen = Path(home) / "seen.json"
        done = subprocess.run(
            [str(BIN / "flask"), "lifecycle", "verify", f"--grace={GRACE:g}", "--jobs=2", f"--json={seen}",
             *options, *server.paths, "--", *command],
            cwd=HERE, env={**os.environ, **environment, "PYTHONPATH": str(HERE)}, text=True, capture_output=True,
        )  # fmt: skip
        if done.returncode not in (0, 1):
            raise SystemExit(f"{done.stdout}{done.stderr}")
        return list(json.loads(seen.read_text())["scenarios"])


def measure(server: Server, node: Path | None) -> Results:
    outcomes = verify(server, node, "--skip=accept") + verify(server, node, "--only=accept", f"--repeat={REPEATS}")
    scenarios: Results = {}
    for outcome in outcomes:
        entry = scenarios.setdefault(outcome["scenario"], {"results": [], "seen": ""})
        entry["results"].append(outcome["result"])
        if outcome["result"] != "holds" or not entry["seen"]:
            entry["seen"] = outcome["seen"]
    versions = [f"{package} {version(package, node)}" for package in server.packages if package != "flask_lifecycle"]
    return {"versions": versions, "scenarios": scenarios}


def verdict(results: list[str]) -> str:
    """``holds``, ``broken`` (at least once) or ``not checked``."""
    counts = Counter(results)
    return "broken" if counts["broken"] else "holds" if counts["holds"] else "not checked"


def verdicts(found: Results, names: tuple[str, ...]) -> list[str]:
    return [verdict(found["scenarios"][name]["results"]) for name in names if name in found["scenarios"]]


def family_table(results: Results) -> str:
    rows = [f"| server | {' | '.join(FAMILIES)} | what does not hold |", "|---" * (len(FAMILIES) + 2) + "|"]
    for name, found in results.items():
        cells, lost = [], []
        for family in FAMILIES:
            seen = {each: Counter(it["results"]) for each, it in found["scenarios"].items() if each.startswith(family)}
            checked = [each for each, runs in seen.items() if runs["holds"] or runs["broken"]]
            broken = sorted(each for each in checked if seen[each]["broken"])
            cells.append(f"{len(checked) - len(broken)} of {len(checked)}" if checked else "-")
            if len(broken) == len(checked) > 1 and all(not seen[each]["holds"] for each in broken):
                lost.append(f"`{family}/*`")
            else:
                lost += [f"`{each}`{often(seen[each])}" for each in broken]
        rows.append(f"| {name} | {' | '.join(cells)} | {', '.join(lost) or 'nothing'} |")
    return "\n".join(rows)


def often(runs: Counter[str]) -> str:
    """In how many of the stops it was broken, if not in all."""
    return f" ({runs['broken']} of {runs.total()} stops)" if runs["holds"] else ""


def question_table(results: Results) -> str:
    rows = [f"| | {' | '.join(QUESTIONS)} |", "|---" * (len(QUESTIONS) + 1) + "|"]
    for name in README_ROWS:
        if name in results:
            cells = []
            for names in QUESTIONS.values():
                seen = verdicts(results[name], names)
                cells.append("no" if "broken" in seen else "yes" if "holds" in seen else "-")
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def provenance(results: Results) -> str:
    versions = sorted({each for found in results.values() for each in found["versions"]})
    flask, python = importlib.metadata.version("flask"), sys.version.split()[0]
    node = subprocess.run(["node", "--version"], text=True, capture_output=True).stdout.strip()
    when = datetime.date.today().isoformat()
    return (
        f"Measured on {when}, on two shared cores, with Python {python}, Flask {flask}, Node {node}, "
        f"{', '.join(versions)}."
    )


def write(path: Path, *texts: str) -> None:
    """Put texts between the markers of a document."""
    body = "\n\n".join(texts)
    pattern = r"(<!-- python benchmarks/peers.py --write writes this -->\n).*?(<!-- end -->)"
    old = path.read_text(encoding="utf-8")
    path.write_text(re.sub(pattern, lambda found: f"{found[1]}\n{body}\n\n{found[2]}", old, flags=re.DOTALL), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--node", type=Path, help="a directory with the packages of Node")
    parser.add_argument("--only", action="append", choices=list(SERVERS), help="a server; may be repeated")
    parser.add_argument("--write", action="store_true", help="write the tables into the documents")
    parser.add_argument("--results", type=Path, help="keep what was seen in this file")
    options = parser.parse_args()
    known: Results = {}
    if options.results is not None and options.results.exists():
        known = json.loads(options.results.read_text())
    for name in options.only or SERVERS:
        server = SERVERS[name]
        if name in known or (server.command[0] == "node" and options.node is None):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        known[name] = measure(server, options.node)
        if options.results is not None:
            options.results.write_text(json.dumps(known, indent=1))
    results = {name: known[name] for name in SERVERS if name in known}
    print(question_table(results), family_table(results), provenance(results), sep="\n\n")
    if options.write:
        write(ROOT / "docs" / "peers.md", family_table(results), provenance(results))
        write(ROOT / "README.md", question_table(results))


if __name__ == "__main__":
    main()
