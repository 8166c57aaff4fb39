"""Whole servers with the extension beside the same servers without it: CPU, throughput, latency, memory.

Both serve two bytes on loopback. wrk loads them in turns, in an order that each round shuffles anew, and each round
starts them anew. CPU is what the kernel has accounted to the server's processes (user and system). Nothing else may run
meanwhile: a core that is busy anyway hides the cost of an interpreter lock that changes hands between cores::

    python benchmarks/throughput.py [--servers NAME ...] [--loads NAME ...] [--rounds N] [--pairs N] [--seconds N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
APP = "_throughput_app"
BARE, OURS = "bare", "ours"
THREADS = 4
# For a server to start, and to end after SIGTERM, in seconds.
PATIENCE = 20.0

Command: TypeAlias = "Callable[[str, int], list[str]]"


def program(how: str, server: str, *before: str) -> Command:
    """What starts a server in a program: by ``lifecycle.run`` (``run``) or by the server's own API (``own``)."""
    return lambda kind, port: [sys.executable, *before, str(HERE / f"{APP}.py"), how, server, str(port)]


def module(*arguments: str) -> Command:
    """What starts a server by its own command; ``{port}`` stands for the port."""
    return lambda kind, port: [sys.executable, "-m", *(part.format(port=port) for part in arguments)]


def gunicorn(worker_class: str) -> Command:
    """gunicorn, and with our hooks where the application has the extension."""

    def command(kind: str, port: int) -> list[str]:
        hooks = ["--config", str(ROOT / "examples/gunicorn/gunicorn.conf.py")] if kind == OURS else []
        # Those of the command line take the place of the file's.
        options = ["--workers", "1", "--keep-alive", "120", "--worker-class", worker_class, "--threads", str(THREADS)]
        options += ["--bind", f"127.0.0.1:{port}"]
        return [sys.executable, "-m", "gunicorn", *hooks, *options, f"{APP}:app"]

    return command


SERVERS: dict[str, Command] = {
    "waitress": program("run", "waitress"),
    "waitress-serve": module(
        *("waitress", "--threads", str(THREADS), "--connection-limit", "1000"),
        *("--listen", "127.0.0.1:{port}", f"{APP}:app"),
    ),
    "werkzeug": program("run", "werkzeug"),
    "flask-run": module("flask", "--app", APP, "run", "--port", "{port}"),
    "cheroot": program("run", "cheroot"),
    "cheroot-own": program("own", "cheroot"),
    "gevent": program("run", "gevent", "-m", "gevent.monkey"),
    "gevent-own": program("own", "gevent", "-m", "gevent.monkey"),
    "gunicorn-gthread": gunicorn("gthread"),
    "gunicorn-sync": gunicorn("sync"),
    "gunicorn-gevent": gunicorn("gevent"),
    "uvicorn": module("uvicorn", "--interface", "wsgi", "--port", "{port}", "--no-access-log", f"{APP}:app"),
    "hypercorn": module("hypercorn", "--bind", "127.0.0.1:{port}", f"{APP}:app"),
    "granian": module("granian", "--interface", "wsgi", "--port", "{port}", f"{APP}:app"),
}


@dataclass(frozen=True)
class Load:
    """What the clients do."""

    connections: int
    idle: int = 0
    close: bool = False


LOADS = {
    "16": Load(16),
    "100": Load(100),
    "16+300": Load(16, idle=300),
    "16+500": Load(16, idle=500),
    "16-close": Load(16, close=True),
    "100-close": Load(100, close=True),
}
USUAL_LOADS = ["16", "100", "16+300", "16-close", "100-close"]


@dataclass(frozen=True)
class Figures:
    """What one run of wrk has measured. Times in milliseconds but for ``cpu``, in microseconds a request."""

    cpu: float
    rate: float
    p50: float
    p99: float
    pss: float  # MiB
    failed: int


# -- the process under load -------------------------------------------------------------------------------------------


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """The CPU time that a tree of processes has had."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, and those of children that have ended; proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> float:
    """The memory of a tree of processes in MiB, with its part of what is shared."""
    kilobytes = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{each}/smaps_rollup").read_text(), re.MULTILINE)
            kilobytes += int(found[1]) if found else 0
    return kilobytes / 1024


@contextlib.contextmanager
def serving(name: str, kind: str) -> Iterator[tuple[int, int]]:
    """Start a server and give its pid and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        SERVERS[name](kind, port),
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "BENCHMARK_KIND": kind},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await_start(process, port, f"{name} ({kind})")
        yield process.pid, port
    finally:
        family = tree(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def await_start(process: subprocess.Popen[bytes], port: int, what: str) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as sock:
            if ask(sock).startswith(b"HTTP/1.1 200 "):
                return
        time.sleep(0.05)
    sys.exit(f"{what} does not answer; is it installed? Choose others with '--servers'.")


def ask(sock: socket.socket) -> bytes:
    sock.settimeout(5.0)
    sock.sendall(b"GET /fast HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return sock.recv(4096)


@contextlib.contextmanager
def idle(port: int, count: int) -> Iterator[None]:
    """Keep so many connections open that have had an answer and say nothing more."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5.0))
            ask(sock)
        yield


# -- measuring --------------------------------------------------------------------------------------------------------


def milliseconds(text: str) -> float:
    """A duration as wrk prints it."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]


def wrk(port: int, load: Load, seconds: int) -> dict[str, float]:
    """Load a server, and return what wrk prints."""
    options = ["-t1", f"-c{load.connections}", f"-d{seconds}s", "--latency", "--timeout", "10s"]
    header = ["-H", "Connection: close"] if load.close else []
    done = subprocess.run(
        ["wrk", *options, *header, f"http://127.0.0.1:{port}/fast"], capture_output=True, text=True, check=False
    )
    found = {name: re.search(pattern, done.stdout) for name, pattern in PATTERNS.items()}
    if done.returncode or not found["requests"] or not found["rate"] or not found["p50"] or not found["p99"]:
        sys.exit(f"wrk has failed:\n{done.stdout}{done.stderr}")
    figures = {name: float(match[1]) for name, match in found.items() if match and name not in ("p50", "p99", "errors")}
    errors = found["errors"]
    figures["failed"] = figures.get("refused", 0.0) + (sum(map(int, errors.groups())) if errors else 0)
    return figures | {name: milliseconds(match[1]) for name in ("p50", "p99") if (match := found[name])}


PATTERNS = {
    "requests": r"(\d+) requests in",
    "rate": r"Requests/sec:\s+([\d.]+)",
    "p50": r"(?m)^\s+50%\s+(\S+)",
    "p99": r"(?m)^\s+99%\s+(\S+)",
    "refused": r"Non-2xx or 3xx responses: (\d+)",
    "errors": r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)",
}


def measure(pid: int, port: int, load: Load, seconds: int) -> Figures:
    with idle(port, load.idle):
        before = cpu_seconds(pid)
        said = wrk(port, load, seconds)
        cpu = (cpu_seconds(pid) - before) / max(1.0, said["requests"]) * 1e6
        return Figures(cpu, said["rate"], said["p50"], said["p99"], pss(pid), int(said["failed"]))


Results: TypeAlias = "dict[tuple[str, str], dict[str, list[Figures]]]"


def measure_round(name: str, loads: list[str], seconds: int, results: Results) -> None:
    """One round of a server: both kinds under each load, in an order of chance; a load that is named twice is twice."""
    with serving(name, BARE) as bare, serving(name, OURS) as ours:
        where = {BARE: bare, OURS: ours}
        for process in where.values():
            wrk(process[1], Load(4), 1)  # caches, and the start-up of our side
        for load in random.sample(loads, len(loads)):
            for kind in random.sample((BARE, OURS), 2):
                kinds = results.setdefault((name, load), {BARE: [], OURS: []})
                kinds[kind].append(measure(*where[kind], LOADS[load], seconds))


def spread(values: list[float]) -> str:
    """The median, with the quartiles."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{statistics.median(values):5.2f} ({low:.2f}-{high:.2f})"


def report(results: Results) -> None:
    print(
        f"{'server':18}{'load':11}{'CPU bare':>9} {'ratio':>18}{'rate bare':>11} {'ratio':>18}"
        f" {'p50 ms':>14} {'p99 ms':>16} {'PSS MiB':>14}{'failed':>8}"
    )
    for (name, load), kinds in sorted(results.items()):
        bare, ours = kinds[BARE], kinds[OURS]
        cpu = [ours.cpu / bare.cpu for bare, ours in zip(bare, ours, strict=True) if bare.cpu]
        rate = [ours.rate / bare.rate for bare, ours in zip(bare, ours, strict=True) if bare.rate]

        def median(figures: list[Figures], what: str) -> float:
            return statistics.median(float(getattr(each, what)) for each in figures)

        both = {what: f"{median(bare, what):.1f} / {median(ours, what):.1f}" for what in ("p50", "p99", "pss")}
        print(
            f"{name:18}{load:11}{median(bare, 'cpu'):9.0f} {spread(cpu or [0.0]):>18}"
            f"{median(bare, 'rate'):11.0f} {spread(rate or [0.0]):>18}"
            f" {both['p50']:>14} {both['p99']:>16} {both['pss']:>14}{sum(each.failed for each in ours):8}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for what, known, default in (("servers", list(SERVERS), list(SERVERS)), ("loads", list(LOADS), USUAL_LOADS)):
        text = f"of: {', '.join(known)}"
        parser.add_argument(f"--{what}", nargs="+", choices=known, default=default, metavar="NAME", help=text)
    parser.add_argument("--rounds", type=int, default=5, help="each starts the servers anew")
    parser.add_argument("--pairs", type=int, default=2, help="of measurements, for each load in each round")
    parser.add_argument("--seconds", type=int, default=2, help="of load for each figure")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("This benchmark needs 'wrk', which makes the load; on Debian: apt install wrk")
    results: Results = {}
    for _ in range(options.rounds):
        for name in random.sample(options.servers, len(options.servers)):
            measure_round(name, options.pairs * options.loads, options.seconds, results)
    report(results)


if __name__ == "__main__":
    main()
