"""What a shutdown loses elsewhere: ``flask lifecycle verify`` on other servers and libraries, and on this package.

Each server is stopped in every scenario of ``verify``, the scenarios of the family ``accept`` several times, because
bare servers lose requests in some shutdowns and not in others. A server's own option for a graceful shutdown gets
nineteen of the twenty seconds that are allowed. Prints the tables, and with ``--write`` writes them into
``docs/peers.md`` and ``README.md``. Takes about twenty-five minutes::

    python benchmarks/peers.py [--node DIR] [--only NAME] [--write] [--results FILE]

``--node`` is a directory in which ``npm install express @godaddy/terminus lightship close-with-grace`` has been run.
Without it the servers for Node are left out, and so are Go and Puma where they are not installed. ``--results`` keeps
what was seen in a file, and servers that the file has already are not measured again.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGE = ROOT / "docs" / "peers.md"
SCRIPT = Path(__file__).name
BIN = Path(sys.executable).parent
GRACE = 20.0  # seconds that a shutdown may take
REPEATS = 5  # of the scenarios of the family accept
FAMILIES = ("accept", "in-flight", "connections", "probes", "exit")
WORK = (
    "--fast=/fast", "--slow=/slow?s={seconds}", "--stream=/stream?s={seconds}", "--upload=/upload", "--large=/large",
    "--file=/file",
)  # fmt: skip
FLASK_PROBES = ("--ready=/health", "--live=/health")
NODE_PROBES = ("--ready=/ready", "--live=/live")
VERSIONS = {"Go": ("go", "version"), "Puma": ("puma", "--version")}  # commands that print one

Results = dict[str, Any]


class Server(NamedTuple):
    """A server, its command, and the packages whose versions count."""

    command: tuple[str, ...]
    packages: tuple[str, ...]
    paths: tuple[str, ...] = (*WORK, *FLASK_PROBES)


SERVERS = {
    "waitress alone": Server(("waitress-serve", "--listen=127.0.0.1:{port}", "_peers.app:app"), ("waitress",)),
    "gunicorn alone, gthread": Server(
        ("gunicorn", "--bind=127.0.0.1:{port}", "--threads=4", "--graceful-timeout=19", "_peers.app:app"), ("gunicorn",)
    ),
    "gunicorn alone, sync": Server(
        ("gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--graceful-timeout=19", "_peers.app:app"), ("gunicorn",)
    ),
    "Werkzeug alone (`flask run`)": Server(("flask", "--app=_peers.app", "run", "--port={port}"), ("werkzeug",)),
    "uvicorn alone (a WSGI application)": Server(
        ("uvicorn", "--interface=wsgi", "--port={port}", "--timeout-graceful-shutdown=19", "_peers.app:app"),
        ("uvicorn",),
    ),
    "hypercorn alone (a WSGI application)": Server(
        ("hypercorn", "--bind=127.0.0.1:{port}", "--graceful-timeout=19", "wsgi:_peers.app:app"), ("hypercorn",)
    ),
    "granian alone (a WSGI application)": Server(
        ("granian", "--interface=wsgi", "--port={port}", "--workers-kill-timeout=19", "_peers.app:app"), ("granian",)
    ),
    "cheroot alone": Server(("cheroot", "--bind=127.0.0.1:{port}", "_peers.app:app"), ("cheroot",)),
    "net/http with `Server.Shutdown` (Go)": Server(("go", "{port}"), ("Go",)),
    "Puma (Ruby)": Server(
        ("puma", f"--config={HERE / '_peers' / 'app.rb'}", "--bind=tcp://127.0.0.1:{port}"), ("Puma",)
    ),
    "Express alone (Node)": Server(("node", "express"), ("express",), (*WORK, *NODE_PROBES)),
    "close-with-grace (Node)": Server(
        ("node", "close-with-grace"), ("express", "close-with-grace"), (*WORK, *NODE_PROBES)
    ),
    "Terminus (Node)": Server(("node", "terminus"), ("express", "@godaddy/terminus"), (*WORK, *NODE_PROBES)),
    # Its probes are on a port of their own, which the check cannot be given.
    "Lightship (Node)": Server(("node", "lightship"), ("express", "lightship"), WORK),
    "flask_lifecycle on waitress": Server(
        ("waitress-serve", "--listen=127.0.0.1:{port}", "_peers.app:app"), ("waitress", "flask_lifecycle"), ()
    ),
    "flask_lifecycle on gunicorn, gthread": Server(
        ("gunicorn", "--config=python:flask_lifecycle.gunicorn", "--bind=127.0.0.1:{port}", "--threads=4",
         "--graceful-timeout=20", "_peers.app:app"),
        ("gunicorn", "flask_lifecycle"), (),
    ),
    "flask_lifecycle on Werkzeug (`flask run`)": Server(
        ("flask", "--app=_peers.app", "run", "--port={port}"), ("werkzeug", "flask_lifecycle"), ()
    ),
    "flask_lifecycle on cheroot": Server(
        ("cheroot", "--bind=127.0.0.1:{port}", "_peers.app:app"), ("cheroot", "flask_lifecycle"), ()
    ),
    "flask_lifecycle on uvicorn": Server(
        ("uvicorn", "--interface=wsgi", "--port={port}", "_peers.app:app"), ("uvicorn", "flask_lifecycle"), ()
    ),
}  # fmt: skip

# The table of the README: a column for each question, with the scenarios that answer it.
QUESTIONS = {
    "connections in the kernel's queue": ("accept/queue",),
    "one connection per request": ("accept/storm",),
    "keep-alive connections": ("accept/storm-kept",),
    "queued or half-received requests": (
        "in-flight/queued", "in-flight/half-head", "in-flight/half-body", "in-flight/trickled",
    ),
    "running requests": ("in-flight/running",),
    "streams, slow readers": ("in-flight/streamed", "in-flight/slow-reader"),
}  # fmt: skip
README_ROWS = (
    "waitress alone", "gunicorn alone, gthread", "Terminus (Node)", "Lightship (Node)", "flask_lifecycle on waitress",
)  # fmt: skip


def missing(server: Server, node: Path | None) -> bool:
    """Whether the program of a server that ``pip`` does not install is not there."""
    program = server.command[0]
    return node is None if program == "node" else program in ("go", "puma") and shutil.which(program) is None


def version(package: str, node: Path | None) -> str:
    if package in VERSIONS:
        printed = subprocess.run(VERSIONS[package], text=True, capture_output=True, check=True).stdout
        return re.search(r"\d[\d.]*", printed)[0]  # type: ignore[index]
    if node is not None and (found := node / "node_modules" / package / "package.json").exists():
        return str(json.loads(found.read_text())["version"])
    return importlib.metadata.version(package)


def versions(server: Server, node: Path | None) -> list[str]:
    return [f"{package} {version(package, node)}" for package in server.packages if package != "flask_lifecycle"]


def command_of(server: Server, node: Path | None, home: Path) -> tuple[list[str], dict[str, str]]:
    """The command, and what it needs in the environment.

    :param home: a directory for what is built, and for the files of the application, which outlive a killed process.
    """
    name, *words = server.command
    environment = {"TMPDIR": str(home)}
    if name == "node":
        assert node is not None
        # Node looks for packages beside the program, so the program goes to them.
        program = shutil.copy(HERE / "_peers" / "app.mjs", node / "_peers_app.mjs")
        return ["node", str(program), "{port}", "{probe_port}"], environment | {"PEERS": words[0]}
    if name == "go":
        subprocess.run(["go", "build", "-o", str(home / "app"), str(HERE / "_peers" / "app.go")], check=True)
        return [str(home / "app"), *words], environment
    if name == "puma":
        return list(server.command), environment
    command = [str(BIN / name), *words]
    environment |= {"PEERS": "alone", "PYTHONPATH": str(HERE)}
    if "flask_lifecycle" in server.packages:
        command = ["env", "FLASK_LIFECYCLE_PROBE_PORT={probe_port}", *command]
        environment |= {"PEERS": "lifecycle", "FLASK_LIFECYCLE_GRACE_PERIOD": f"{GRACE:g}"}
    return command, environment


def verify(server: Server, node: Path | None, *options: str) -> list[Results]:
    """The outcomes of ``flask lifecycle verify``."""
    with tempfile.TemporaryDirectory() as home:
        command, environment = command_of(server, node, Path(home))
        seen = Path(home) / "seen.json"
        done = subprocess.run(
            [str(BIN / "flask"), "lifecycle", "verify", f"--grace={GRACE:g}", "--jobs=2", f"--json={seen}",
             *options, *server.paths, "--", *command],
            cwd=HERE, env={**os.environ, **environment}, text=True, capture_output=True,
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
    return {"versions": versions(server, node), "scenarios": scenarios}


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
    """In how many of the shutdowns it was broken, if not in all."""
    return f" ({runs['broken']} of {runs.total()} shutdowns)" if runs["holds"] else ""


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


def provenance(versions: Iterable[str]) -> str:
    flask, python = importlib.metadata.version("flask"), sys.version.split()[0]
    node = subprocess.run(["node", "--version"], text=True, capture_output=True).stdout.strip()
    when = datetime.date.today().isoformat()
    return (
        f"Measured on {when}, on two shared cores, with Python {python}, Flask {flask}, Node {node}, "
        f"{', '.join(sorted(set(versions)))}."
    )


def write(path: Path, script: str, *texts: str) -> None:
    """Put texts between the markers that a script has in a document."""
    body = "\n\n".join(texts)
    pattern = rf"(<!-- python benchmarks/{re.escape(script)} --write writes this -->\n).*?(<!-- end -->)"
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
        if name in known or missing(server, options.node):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        known[name] = measure(server, options.node)
        if options.results is not None:
            options.results.write_text(json.dumps(known, indent=1))
    results = {name: known[name] for name in SERVERS if name in known}
    measured = provenance(each for found in results.values() for each in found["versions"])
    print(question_table(results), family_table(results), measured, sep="\n\n")
    if options.write:
        write(PAGE, SCRIPT, family_table(results), measured)
        write(ROOT / "README.md", SCRIPT, question_table(results))


if __name__ == "__main__":
    main()
