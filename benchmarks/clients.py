"""What a shutdown loses with real client libraries: on servers alone, and on the same ones with this package.

Each library sends POST requests on four keep-alive connections without a pause, with its retries off, from before the
signal until connections are refused; all libraries do so at the same time. No load balancer is in front, and there is
no delay before the listener closes. Prints how many requests were lost of how many, and with ``--write`` writes the
table into ``docs/peers.md``. Takes about three minutes::

    pip install requests httpx aiohttp
    python benchmarks/clients.py [--node DIR] [--only NAME] [--stops N] [--write]

``--node`` is a directory in which ``npm install undici@7`` has been run. Without it undici is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from peers import HERE, PAGE, SERVERS, Server, command_of, missing, provenance, version, versions, write

from flask_lifecycle._verify.client import is_refused
from flask_lifecycle._verify.subject import ServerProcess, free_port

LIBRARIES = ("requests", "httpx", "aiohttp")
CONNECTIONS = 4  # of each library
PATIENCE = 60.0  # seconds
NAMES = (
    "waitress alone", "gunicorn alone, gthread", "uvicorn alone (a WSGI application)",
    "net/http with `Server.Shutdown` (Go)", "flask_lifecycle on waitress", "flask_lifecycle on gunicorn, gthread",
    "flask_lifecycle on Werkzeug (`flask run`)", "flask_lifecycle on cheroot", "flask_lifecycle on uvicorn",
)  # fmt: skip


def clients(node: Path | None) -> dict[str, list[str]]:
    """The command of each library, without the URL."""
    commands = {name: [sys.executable, str(HERE / "_peers" / "client.py"), name] for name in LIBRARIES}
    if node is not None:
        # Node looks for packages beside the program, so the program goes to them.
        program = shutil.copy(HERE / "_peers" / "client.mjs", node / "_peers_client.mjs")
        commands["undici"] = ["node", str(program)]
    return commands


def stop(words: list[str], environment: dict[str, str], commands: dict[str, list[str]]) -> dict[str, Counter[str]]:
    """Stop a server once: the answered requests of each library, and how often it lost one in which way."""
    ports = free_port(), free_port()
    address = ("127.0.0.1", ports[0])
    with contextlib.ExitStack() as stack:
        server = ServerProcess(words, ports, {**os.environ, **environment}, PATIENCE)
        stack.callback(server.end)
        if not server.wait_for(lambda: not is_refused(address, PATIENCE), PATIENCE):
            raise SystemExit(server.log)
        started = {}
        for name, command in commands.items():
            url = f"http://127.0.0.1:{address[1]}/upload"
            started[name] = stack.enter_context(subprocess.Popen([*command, url], text=True, stdout=subprocess.PIPE))
            stack.callback(started[name].kill)
        for name, client in started.items():
            assert client.stdout is not None
            for _ in range(CONNECTIONS):
                if client.stdout.readline() != "ready\n":
                    raise SystemExit(f"{name} had no responses.")
        time.sleep(0.2)  # the signal is to come at any moment of a request
        server.signal(signal.SIGTERM)
        seen = {}
        for name, client in started.items():
            said = json.loads(client.communicate(timeout=PATIENCE)[0].splitlines()[-1])
            seen[name] = Counter(answered=said["answered"]) + Counter(said["lost"])
        if server.wait_gone(PATIENCE) is None:
            raise SystemExit(f"The server did not exit.\n{server.log}")
        return seen


def measure(server: Server, node: Path | None, stops: int) -> dict[str, Counter[str]]:
    """The sums of some stops."""
    commands = clients(node)
    sums: dict[str, Counter[str]] = {name: Counter() for name in commands}
    with tempfile.TemporaryDirectory() as home:
        words, environment = command_of(server, node, Path(home))
        for _ in range(stops):
            for name, seen in stop(words, environment, commands).items():
                sums[name] += seen
    return sums


def table(results: dict[str, dict[str, Counter[str]]]) -> str:
    """Lost requests, of all, by server and library."""
    libraries = list(next(iter(results.values())))
    rows = [f"| server | {' | '.join(libraries)} |", "|---" * (len(libraries) + 1) + "|"]
    for name, sums in results.items():
        cells = [f"{each.total() - each['answered']:,} of {each.total():,}" for each in sums.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--node", type=Path, help="a directory with the packages of Node")
    parser.add_argument("--only", action="append", choices=NAMES, help="a server; may be repeated")
    parser.add_argument("--stops", type=int, default=10, help="of each server")
    parser.add_argument("--write", action="store_true", help="write the table into the document")
    options = parser.parse_args()
    found = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    if options.node is not None:
        found.append(f"undici {version('undici', options.node)}")
    results = {}
    for name in options.only or NAMES:
        if not missing(SERVERS[name], options.node):
            results[name] = sums = measure(SERVERS[name], options.node, options.stops)
            found += versions(SERVERS[name], options.node)
            print(f"{name}: {sums}", file=sys.stderr, flush=True)
    print(table(results), provenance(found), sep="\n\n")
    if options.write:
        write(PAGE, Path(__file__).name, table(results), provenance(found))


if __name__ == "__main__":
    main()
