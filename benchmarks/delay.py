"""Requests lost in rolling stops behind a real HAProxy, and how long each stop takes, by the kind of delay.

Two instances of ``flask lifecycle run`` on waitress are stopped and started in turn, under steady load on new
connections, with a delay of 0, of 5 s, and one that ends when it may (``auto``). HAProxy asks ``/readyz`` each 500 ms,
or each 2 s, with ``fall 3 rise 2``. It is asked for work at two addresses: at one it tries once, so that each loss
shows, at the other it tries again as it does by default, which hides some and makes clients wait. Needs HAProxy
(Debian: ``apt-get install haproxy``) and takes about two minutes::

    python benchmarks/delay.py [--stops N] [--inter 500ms] [--inter 2s] [--clients N]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flask_lifecycle._verify.subject import free_port

if TYPE_CHECKING:
    from flask import Flask

ROOT = Path(__file__).resolve().parent.parent
DELAYS = ("0", "5", "auto")
FIXED = "5"
PATIENCE = 30.0  # seconds: the bound of every wait
PACE = 0.02  # seconds between two requests of a client

# The servers of the second are not asked again: they are up when those of the first are.
CONFIGURATION = """
global
    stats socket {home}/stats
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    option httpclose
listen once
    bind fd@{once}
    retries 0
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter {inter} fall 3 rise 2
    server a 127.0.0.1:{a}
    server b 127.0.0.1:{b}
listen again
    bind fd@{again}
    server a 127.0.0.1:{a} track once/a
    server b 127.0.0.1:{b} track once/b
"""


def create_app() -> Flask:
    """The application under load; its delay is in the environment."""
    from flask import Flask

    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    app.config.from_prefixed_env()
    Lifecycle(app)

    @app.get("/work")
    def work() -> str:
        time.sleep(0.005)
        return "done\n"

    return app


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            sys.exit(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.02)


class Instance:
    """One instance, on one port whatever process serves there."""

    def __init__(self, home: Path, name: str, delay: str) -> None:
        self.name = name
        self.port = free_port()
        self._log = home / f"{name}.log"
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT), "FLASK_LIFECYCLE_SHUTDOWN_DELAY": delay}
        self.start()

    def start(self) -> None:
        command = (sys.executable, "-m", "flask", "--app", f"{Path(__file__).resolve()}:create_app", "lifecycle", "run")
        with self._log.open("w") as log:
            self.process = subprocess.Popen((*command, "-p", str(self.port)), env=self._environ, stderr=log)
        wait_until(lambda: "-> READY" in self.log, f"start of instance {self.name}")

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> float:
        """Seconds from SIGTERM until it is gone."""
        since = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        if code:
            sys.exit(f"instance {self.name} left with {code}, not with 0:\n{self.log}")
        return time.monotonic() - since

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Balancer:
    """HAProxy, with its two addresses."""

    def __init__(self, home: Path, inter: str, a: Instance, b: Instance) -> None:
        command = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if command is None:
            sys.exit("haproxy is missing; install it (Debian: apt-get install haproxy)")
        self._stats = home / "stats"
        with socket.socket() as once, socket.socket() as again:
            self.ports = []
            for sock in (once, again):
                sock.bind(("127.0.0.1", 0))
                self.ports.append(int(sock.getsockname()[1]))
            descriptors = {"once": once.fileno(), "again": again.fileno()}
            text = CONFIGURATION.format(home=home, inter=inter, a=a.port, b=b.port, **descriptors)
            (home / "haproxy.cfg").write_text(text)
            self._process = subprocess.Popen(
                (command, "-db", "-q", "-f", str(home / "haproxy.cfg")), pass_fds=descriptors.values()
            )
        wait_until(lambda: self.up(a) and self.up(b), "HAProxy has both instances")

    def up(self, instance: Instance) -> bool:
        """Whether it sends work to an instance whose checks all succeed, and has asked it before."""
        return self._status(instance) == ("UP", "200")

    def down(self, instance: Instance) -> bool:
        """Whether it has given an instance up; one of which some checks have failed is still sent work."""
        return self._status(instance)[0].startswith("DOWN")

    def _status(self, instance: Instance) -> tuple[str, str]:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self._stats))
            sock.sendall(b"show stat once 4 -1\n")
            with sock.makefile() as answer:
                rows = [line.split(",") for line in answer]
            heads = {name: n for n, name in enumerate(rows[0])}
            (row,) = [row for row in rows if row[1:2] == [instance.name]]
            return row[heads["status"]], row[heads["check_code"]]
        return "", ""

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Load:
    """Clients that ask for work at one address, each time on a new connection."""

    def __init__(self, port: int, clients: int) -> None:
        self._port = port
        self.asked = 0
        self.lost = 0
        self.slowest = 0.0  # seconds
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards the three
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._over.wait(PACE):
            since = time.monotonic()
            answered = self._ask()
            with self._lock:
                self.asked += 1
                self.lost += not answered
                self.slowest = max(self.slowest, time.monotonic() - since)

    def _ask(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request("GET", "/work")
            response = connection.getresponse()
            return (response.status, response.read()) == (200, b"done\n")
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Outcome(NamedTuple):
    """What some rolling stops of one kind have cost."""

    stops: list[float]
    once: Load
    again: Load
    ends: list[str]  # what the log says of the end of the delay


@contextlib.contextmanager
def fleet(delay: str, inter: str) -> Iterator[tuple[list[Instance], Balancer]]:
    """Two instances and HAProxy in front; each is ended by its own pid."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        home = Path(directory)
        instances = []
        for name in ("a", "b"):
            instances.append(Instance(home, name, delay))
            stack.callback(instances[-1].end)
        balancer = Balancer(home, inter, *instances)
        stack.callback(balancer.end)
        yield instances, balancer


def roll(delay: str, inter: str, count: int, clients: int) -> Outcome:
    """Stop and start the instances in turn, so many times in all, under load."""
    stops, ends = [], []
    with fleet(delay, inter) as (instances, balancer):
        loads = [Load(port, clients) for port in balancer.ports]
        try:
            for number in range(count):
                instance = instances[number % 2]
                time.sleep(0.3 + 0.37 * number)  # at another moment between two checks
                stops.append(instance.stop())
                ends += re.findall(r"delay ended (.*)", instance.log)
                # It is down for HAProxy before it is there again; else what is seen as up is the old one.
                wait_until(lambda instance=instance: balancer.down(instance), "HAProxy misses it")  # type: ignore[misc]
                instance.start()
                wait_until(lambda instance=instance: balancer.up(instance), "HAProxy has it again")  # type: ignore[misc]
        finally:
            for load in loads:
                load.end()
    return Outcome(stops, loads[0], loads[1], ends)


def report(inter: str, count: int, clients: int) -> None:
    fixed = 0.0
    rows = {}
    for delay in (FIXED, *(each for each in DELAYS if each != FIXED)):  # what the ratio is to, first
        rows[delay] = roll(delay, inter, count, clients)
        fixed = fixed or statistics.median(rows[delay].stops)
    for delay in DELAYS:
        stops, once, again, _ = rows[delay]
        median = statistics.median(stops)
        losses = f"{f'{once.lost} of {once.asked}':>17}{f'{again.lost} of {again.asked}':>17}{again.slowest:9.2f}"
        label = f"inter {inter}, delay {delay}{'' if delay == 'auto' else ' s'}"
        print(f"{label:28}{losses}{median:11.2f}{max(stops):9.2f}{median / fixed:12.2f}", flush=True)
    for end in rows["auto"].ends:
        print(f"    auto: delay ended {end}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--inter", action="append")
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    title = f"{options.stops} rolling stops of 2 instances"
    losses = f"{'lost, one try':>17}{'lost, 3 retries':>17}{'slowest':>9}"
    print(f"{title:28}{losses}{'stop, s':>11}{'worst':>9}{'stop : 5 s':>12}")
    for inter in options.inter or ("500ms", "2s"):
        report(inter, options.stops, options.clients)


if __name__ == "__main__":
    main()
