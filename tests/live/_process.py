"""Processes under test: started, watched by log and event file, signalled, and ended by their own pid."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ._client import PATIENCE, Address, answers, free_port

APPS = Path(__file__).parent.parent / "live_apps"
ROOT = APPS.parent.parent
BIG = b"".join(b"%07d\n" % number for number in range(1 << 20))  # as the live app makes it

# A plan whose delay lasts until the test has asked, and opens this gate, however long that takes on a busy machine.
UNTIL_ASKED: dict[str, Any] = {"hooks": {"drain": [["asked", "hold", None]]}}
# What a process prints when something went wrong that nobody caught.
TROUBLE = re.compile(r"Traceback \(most recent call last\)|Exception ignored|Fatal Python error")
# A terminal sends Ctrl-C to the session that it controls.
OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
LISTENING = re.compile(r"(?:listening|Serving|Running) on (http://\S+|unix:\S+)")


def waitress_serve(app: str, threads: int | None, options: Sequence[str]) -> list[str]:
    """What starts waitress by itself, by the options of ``flask lifecycle run``."""
    pool = [] if threads is None else ["--threads", str(threads)]
    names = {"-h": "--host", "-p": "--port"}
    where = [names.get(option, option) for option in options]
    return ["-m", "waitress", *pool, *where, f"{app.removesuffix('.py')}:app"]


# Servers that know nothing of the package and take the options of ``flask lifecycle run``.
THEIRS = {"waitress-serve": waitress_serve}
_UVICORN = (
    "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}", "--timeout-keep-alive", "60", "live_app:app",
)  # fmt: skip
_HYPERCORN = ("--workers", "0", "--bind", "127.0.0.1:{port}", "--keep-alive", "60", "wsgi:live_app:app")
# Those that do not, with ``init_app`` alone. By default some close a connection that was idle for less than PATIENCE.
ALONE = {
    "flask-run": ("-m", "flask", "--app", "live_app.py", "run", "--no-reload", "-p", "{port}"),
    "cheroot-alone": ("serve_elsewhere.py", "main", "cheroot", "{port}"),
    "gevent-alone": ("-m", "gevent.monkey", "serve_elsewhere.py", "main", "gevent", "{port}"),
    "uvicorn": ("-m", "uvicorn", *_UVICORN),
    "uvicorn-native": ("-c", "import sys; sys.modules['a2wsgi'] = None; import uvicorn; uvicorn.main()", *_UVICORN),
    "hypercorn": ("-m", "hypercorn", *_HYPERCORN),
    "granian": ("-m", "granian", "--interface", "wsgi", "--port", "{port}", "live_app:app"),
}


class Event(NamedTuple):
    """A line of the event file; ``when`` is ``time.monotonic``, which all processes of a machine share."""

    when: float
    text: str


class Resources(NamedTuple):
    """What a process has of the machine; ``peak`` is the most memory that it ever had, in KB."""

    peak: int
    threads: int
    descriptors: int


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is true, looking each 5 ms; fail after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    """The processes that the threads of a process have started and that still are."""
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for children in tasks for child in children.read_text().split()]
    return []


def parse_address(text: str) -> Address:
    """Turn a listener's address, as the log tells it, into what ``connect`` takes."""
    text = text.replace("http://unix:", "unix:")  # as waitress says it
    if text.startswith("unix:"):
        return text[len("unix:") :]
    host, _, port = text[len("http://") :].rstrip("/").rpartition(":")
    return host.strip("[]"), int(port)


class Running:
    """A process under test.

    :param excuse: pattern of the tracebacks that the test provokes; each other one fails the test.
    :param terminal: give it a terminal of its own, on which the test can type.
    """

    def __init__(
        self,
        command: Sequence[str],
        home: Path,
        env: dict[str, str],
        *,
        excuse: str,
        fds: Sequence[int],
        terminal: bool,
    ) -> None:
        self.home = home
        self.excuse = excuse
        self.signalled_at = self.gone_at = 0.0
        self.gone = threading.Event()
        self.given: Address | None = None  # where it was told to listen, if its log does not say
        self.keyboard: int | None = None
        self._screen: threading.Thread | None = None
        with (home / "log").open("wb") as log:
            stdin, output = subprocess.DEVNULL, log.fileno()
            if terminal:
                self.keyboard, stdin = os.openpty()
                output = stdin
                command = (sys.executable, "-c", OWN_TERMINAL, *command)
            self.popen = subprocess.Popen(
                command, env=env, cwd=APPS, stdin=stdin, stdout=output, stderr=output, pass_fds=fds
            )
        if self.keyboard is not None:
            os.close(stdin)
            self._screen = threading.Thread(target=self._copy_screen, args=(self.keyboard,), daemon=True)
            self._screen.start()
        self.target = self.popen.pid  # who gets the signals: under unshare it is the child
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _copy_screen(self, screen: int) -> None:
        with (self.home / "log").open("wb", buffering=0) as log, contextlib.suppress(OSError):
            while data := os.read(screen, 65536):  # EIO when the last process has closed it
                log.write(data)
        os.close(screen)

    def type(self, keys: bytes) -> None:
        """Type on the process's terminal."""
        assert self.keyboard is not None, "not started on a terminal"
        self.signalled_at = time.monotonic()
        os.write(self.keyboard, keys)

    def _watch(self) -> None:
        self.popen.wait()
        self.gone_at = time.monotonic()
        if self._screen is not None:
            self._screen.join(PATIENCE)
        self.gone.set()

    @property
    def log(self) -> str:
        """What the process has printed so far."""
        path = self.home / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def log_tail(self) -> str:
        """The end of the log, for the message of a failure: a storm writes thousands of lines."""
        return self.log[-3000:]

    @property
    def events(self) -> list[Event]:
        """What the application has told so far."""
        path = self.home / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Event(float(when), text) for when, _, text in (x.partition(" ") for x in lines)]

    def told(self, text: str) -> list[float]:
        """Return when the application told this event."""
        return [event.when for event in self.events if event.text == text]

    def hooks(self, kind: str = "shutdown") -> list[str]:
        """Return the names of the hooks of a kind that ran, in their order."""
        prefix = f"{kind} "
        return [e.text[len(prefix) :] for e in self.events if e.text.startswith(prefix)]

    def wait_for(self, true: Callable[[], object], what: str) -> None:
        def happened() -> bool:
            gone = self.gone.is_set()  # asked first: what it did before it went counts
            if true():
                return True
            assert not gone, f"process gone before {what}; its log:\n{self.log_tail}"
            return False

        try:
            wait_until(happened, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog of the process:\n{self.log_tail}") from None

    def wait_log(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log and return the match."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            found.extend(re.finditer(pattern, self.log))
            return bool(found)

        self.wait_for(look, f"the log line {pattern!r}")
        return found[0]

    def wait_event(self, text: str, times: int = 1) -> None:
        """Wait until the application has told this event."""
        self.wait_for(lambda: len(self.told(text)) >= times, f"{times} events {text!r}")

    def open_gate(self, name: str) -> None:
        """Let whoever waits at this gate go on."""
        (self.home / f"gate-{name}").touch()

    @property
    def addresses(self) -> list[Address]:
        """Where the process listens, in the order of its log."""
        return [self.given] if self.given else [parse_address(match[1]) for match in LISTENING.finditer(self.log)]

    @property
    def address(self) -> tuple[str, int]:
        """Where the process listens, if that is one TCP address."""
        (address,) = self.addresses
        assert not isinstance(address, str)
        return address

    def send(self, number: int) -> None:
        """Send a signal, to this one process only."""
        self.signalled_at = time.monotonic()
        os.kill(self.target, number)

    def begin_stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and wait until the drain has begun."""
        self.send(number)
        self.wait_log("-> DRAINING")

    def wait_gone(self) -> int:
        """Wait until the process has gone and return its code, as subprocess tells it."""
        if not self.gone.wait(PATIENCE):
            raise AssertionError(f"not gone within {PATIENCE:g} s; its log:\n{self.log_tail}")
        self._watcher.join()
        return int(self.popen.returncode)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait until the process has gone and return its code."""
        self.send(number)
        return self.wait_gone()

    @property
    def lasted(self) -> float:
        """Seconds from the last signal to the end of the process."""
        return self.gone_at - self.signalled_at

    def process_state(self) -> str:
        """Return the letter that the kernel has for the state of the process (T: stopped)."""
        stat = Path(f"/proc/{self.target}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    def resources(self) -> Resources:
        """Return what the process has of the machine."""
        lines = [line.split() for line in Path(f"/proc/{self.target}/status").read_text().splitlines()]
        numbers = {line[0]: int(line[1]) for line in lines if line[0] in ("VmHWM:", "Threads:")}
        return Resources(numbers["VmHWM:"], numbers["Threads:"], len(os.listdir(f"/proc/{self.target}/fd")))

    def processor_time(self) -> float:
        """Return the seconds of a processor that the process has used."""
        fields = Path(f"/proc/{self.target}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> str:
        """End the process if it still runs; return the end of its log if that has a traceback that nobody excused."""
        if not self.gone.is_set():
            if self.target != self.popen.pid:
                os.kill(self.target, signal.SIGKILL)
            self.popen.kill()
        self.gone.wait(PATIENCE)
        log = self.log
        excused = len(re.findall(self.excuse, log)) if self.excuse else 0
        return f"a process printed a traceback:\n{log[-6000:]}\n" if len(TROUBLE.findall(log)) > excused else ""


class Starter:
    """Starts the processes of one test, each with a directory of its own, and ends them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._running: list[Running] = []

    def start(
        self,
        *command: str,
        settings: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
        excuse: str = "",
        env: dict[str, str] | None = None,
        fds: Sequence[int] = (),
        terminal: bool = False,
        control_dir: bool = False,
    ) -> Running:
        """Start a command; settings and plan are for the live app, ``control_dir`` lets it have ``control``."""
        home = self.home / f"process-{len(self._running)}"
        home.mkdir()
        if control_dir:
            (home / "control").mkdir(0o700)
            settings = {**(settings or {}), "LIFECYCLE_CONTROL_DIR": str(home / "control")}
        foreign = ("FLASK_", "LIFECYCLE_", "LIVE_", "WERKZEUG_", "KUBERNETES_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        told = {
            "LIVE_HOME": str(home),
            "LIVE_SETTINGS": json.dumps(settings or {}),
            "LIVE_PLAN": json.dumps(plan or {}),
            "PYTHONPATH": str(ROOT),  # the package that these tests stand beside, whatever is installed
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        env = {**inherited, **told, **(env or {})}
        running = Running(command, home, env, excuse=excuse, fds=fds, terminal=terminal)
        self._running.append(running)
        return running

    def serve(
        self,
        server: str,
        *options: str,
        threads: int | None = None,
        app: str = "live_app.py",
        listeners: int = 1,
        prefix: Sequence[str] = (),
        **more: Any,
    ) -> Running:
        """Serve on a free port, by ``flask lifecycle run`` or another server, and wait until it is ready.

        :param server: one of ours, or one that knows nothing of the package and gets Ctrl-C as well as SIGTERM.
        :param threads: how many for work, where the server has a pool of them.
        :param listeners: how many to wait for; with 0 do not wait at all.
        :param prefix: a command to start it by.
        """
        if server in ALONE:
            return self._serve_alone(server, prefix, more)
        if not {"--listen", "--unix-socket", "-p", "--fd"} & set(options):
            options = ("-p", "0", *options)
        if server in THEIRS:
            more["settings"] = {"LIFECYCLE_SIGNALS": ["SIGTERM", "SIGINT"], **(more.get("settings") or {})}
            more["plan"] = {"logging": True, **(more.get("plan") or {})}
            command = THEIRS[server](app, threads, options)
        else:
            pool = [] if threads is None or server not in ("waitress", "cheroot") else ["--threads", str(threads)]
            # The application's sleep is to be gevent's, or it would hold up all connections.
            patched = ["gevent.monkey", "--module"] if server == "gevent" else []
            command = ["-m", *patched, "flask", "--app", app, "lifecycle", "run", "--server", server, *pool, *options]
        running = self.start(*prefix, sys.executable, *command, **more)
        if listeners:
            running.wait_for(lambda: len(running.addresses) >= listeners, "all its listeners")
            running.wait_log("STARTING -> READY")
        return running

    def _serve_alone(self, server: str, prefix: Sequence[str], more: dict[str, Any]) -> Running:
        address = ("127.0.0.1", free_port())
        command = [word.format(port=address[1]) for word in ALONE[server]]
        more["plan"] = {"logging": True, **(more.get("plan") or {})}
        running = self.start(*prefix, sys.executable, *command, **more)
        running.given = address
        # Some are detected with the first request.
        running.wait_for(lambda: answers(address, "/readyz"), "readiness")
        running.wait_log("a shutdown answers ")
        return running

    def end(self) -> None:
        """End every process; then fail if one of them printed a traceback."""
        troubles = [running.end() for running in self._running]
        assert not any(troubles), "".join(troubles)
