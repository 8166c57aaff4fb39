"""The process under test: started on free ports, watched, signalled, and ended with all that it has started.

Each one is marked by a variable of a random name in its environment. At the end every process with that mark is killed,
also one that has left the session of the command, so none outlives the check.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .client import Connection, LostError, Tcp, is_refused, shown
from .routes import VARIABLE

_LOG_BYTES = 256 * 1024  # of what the process prints, the end is shown
_WORKERS = 3.0  # seconds for the other workers to become ready after the first
_LOOK = 0.01  # seconds between two looks at something that has no event
_HAS_PROC = os.path.exists("/proc/self/environ")


class MisuseError(Exception):
    """The check cannot be made; the text names the cause and the cure."""


# The ports that this process has chosen, each with the descriptor of a socket whose name says so to others.
_chosen: dict[int, int] = {}


def free_port() -> int:
    """A port that nothing listens on, and that no other check has chosen.

    It is below those that the kernel gives to clients and to listeners of port 0, so that none of them takes it before
    the command listens. Interleavings: two checks find the same port free before either's command listens, and the
    responses of one command are taken for the other's; or the second check finds the first one's name in use, and
    chooses another port.
    """
    first = 32_768
    with contextlib.suppress(FileNotFoundError):  # not Linux
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(min(10_000, first - 1_000), first)
        with contextlib.suppress(OSError), socket.socket() as sock, contextlib.ExitStack() as stack:
            sock.bind(("", port))
            if sys.platform == "linux":
                name = stack.enter_context(socket.socket(socket.AF_UNIX))
                name.bind(f"\0lifecycle-verify-port-{port}")
                _chosen[port] = name.detach()
                stack.pop_all()
            return port


def release_port(port: int) -> None:
    """Let other checks choose this port."""
    if port in _chosen:
        os.close(_chosen.pop(port))


class ServerProcess:
    """A command under test and all that it starts.

    :param ports: free ones, which replace ``{port}`` and ``{probe_port}`` in the command; released at its end.
    :param patience: seconds that each wait may take.
    :param mark: a variable of the environment, ``NAME=value`` or its beginning, which no other process has: a command
        may hand on this one and not ours.
    :raises MisuseError: the command cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        ports: tuple[int, int],
        environment: Mapping[str, str],
        patience: float,
        mark: str = "",
    ) -> None:
        port, probe_port = map(str, ports)
        self.command = [word.replace("{port}", port).replace("{probe_port}", probe_port) for word in command]
        self.patience = patience
        self.gone = threading.Event()
        self.signalled_at = self.gone_at = 0.0
        self._ports = ports
        own = f"LIFECYCLE_TEST_PROCESS_{secrets.token_hex(8)}"
        self._marks = [each.encode() for each in (f"{own}=", mark) if each]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed by end()
        # What opens /dev/stdout anew has an offset of its own, and neither may write over the other.
        fcntl.fcntl(self._output, fcntl.F_SETFL, os.O_APPEND)
        self._log = b""  # when it has ended
        try:
            self._popen = subprocess.Popen(
                self.command, env={**environment, own: "", "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL,
                stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._output.close()
            raise MisuseError(f"The command '{command[0]}' cannot be started: {error.strerror}.") from None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        self._popen.wait()
        self.gone_at = time.monotonic()
        self.gone.set()

    @property
    def log(self) -> str:
        """The end of what it has printed up to now."""
        if not self._output.closed:
            output = self._output.fileno()
            self._log = os.pread(output, _LOG_BYTES, max(0, os.fstat(output).st_size - _LOG_BYTES))
        return self._log.decode(errors="replace")

    @property
    def lasted(self) -> float:
        """Seconds from the last signal to the end of the process."""
        return self.gone_at - self.signalled_at

    def wait_for(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is true, at most so long or until the process has gone."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end or self.gone.is_set():
                return true()
            time.sleep(_LOOK)
        return True

    def signal(self, number: int) -> None:
        self.signalled_at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        pids = [self._popen.pid, *self.children()]
        for pid in pids:
            _kill(pid, signal.SIGSTOP)
        try:
            self.wait_for(lambda: all(_state(pid) in "TtZ" for pid in pids), self.patience)
            yield
        finally:
            for pid in pids:
                _kill(pid, signal.SIGCONT)

    def wait_gone(self, seconds: float) -> int | None:
        """The exit code, or ``None`` if it is still there after so long."""
        return self._popen.returncode if self.gone.wait(seconds) else None

    def children(self) -> list[int]:
        """The other processes with a mark of it that have not ended."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()] if _HAS_PROC else []
        return [pid for pid in pids if pid != self._popen.pid and self._is_marked(pid) and _state(pid) != "Z"]

    def _is_marked(self, pid: int) -> bool:
        environment = _environment(pid)
        return any(mark in environment for mark in self._marks)

    def kill(self) -> None:
        """Kill it and all that it has started; without ``/proc``, its process group. From any thread."""
        if not _HAS_PROC:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies are left
                os.killpg(self._popen.pid, signal.SIGKILL)
        while True:
            pids = self.children() + ([] if self.gone.is_set() else [self._popen.pid])
            for pid in pids:
                _kill(pid, signal.SIGKILL)
            if not pids:
                break
            time.sleep(_LOOK)

    def end(self) -> None:
        """Kill all, and close what belongs to it."""
        self.kill()
        self._watcher.join(self.patience)
        self._log = self.log.encode()
        self._output.close()
        for port in self._ports:
            release_port(port)


class Event(NamedTuple):
    """``when`` is by ``time.monotonic``, which all processes share."""

    when: float
    pid: int


def search_path() -> str:
    """A ``PATH`` that begins with the commands of this virtual environment, which may not be activated."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


class Subject(ServerProcess):
    """One run of the command that ``flask lifecycle verify`` checks.

    :param address: where it listens, if not on ``{port}``.
    :param hook: of the scenario, see ``trial.py``.
    :raises MisuseError: the command cannot be started.
    """

    def __init__(self, command: Sequence[str], address: Tcp | None, home: Path, patience: float, hook: str) -> None:
        ports = free_port(), free_port()
        self.address = address or ("127.0.0.1", ports[0])
        self.prefix = f"lifecycle-verify-{secrets.token_hex(8)}"
        self._record = home / "record"
        self._record.touch()
        environment = {**os.environ, "PATH": search_path(), VARIABLE: f"{self.prefix}:{hook}:{self._record}"}
        super().__init__(command, ports, environment, patience, f"{VARIABLE}={self.prefix}:")

    def recorded(self, what: str) -> list[Event]:
        lines = [line.split(" ", 2) for line in self._record.read_text().splitlines()]
        return [Event(float(when), int(pid)) for when, pid, text in lines if text == what]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its ``Lifecycle``; empty if it has none."""
        found = re.search(r"^\S+ \d+ settings (.*)$", self._record.read_text(), re.MULTILINE)
        return dict(json.loads(found[1])) if found else {}

    @property
    def starting(self) -> bool:
        """Whether it shows any sign of its start: output, an application, a listener."""
        return bool(self.log or self.settings) or not is_refused(self.address, self.patience)

    def wait_serving(self) -> None:
        """Wait until it answers, else :exc:`MisuseError`. With ``settings`` it has the routes of ``verify``."""
        statuses: list[int] = []

        def answers() -> bool:
            with (
                contextlib.suppress(OSError, LostError, ValueError),
                Connection(self.address, self.patience) as connection,
            ):
                statuses.append(connection.get(f"/{self.prefix}/fast").status)
            return bool(statuses) and statuses[-1] != 503

        if not self.wait_for(answers, self.patience):
            if self.gone.is_set():
                cure = "" if self._popen.returncode else "; it must stay in the foreground"
                what = f"ended with {self._popen.returncode} before it answered{cure}"
            else:
                what = f"did not answer on {shown(self.address)} within {self.patience:g} s"
            lines = [line.strip() for line in self.log.splitlines() if line.strip()] or ["it printed nothing"]
            raise MisuseError(f"The command {what}. Its last line: {lines[-1][:200]}")
        if not self.settings:  # and not by the status: a server may answer every path with 200
            return
        if statuses[-1] != 200:
            raise MisuseError(f"Another process answers on {shown(self.address)}; try again.")
        # Several workers do not start at the same moment, and one that is stopped before it is ready answers 503.
        # Some record nothing before their first request; and a child may be no worker.
        self.wait_for(lambda: {each.pid for each in self.recorded("ready")}.issuperset(self.children()), _WORKERS)


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has gone, or it is another user's
        return b""


def _state(pid: int) -> str:
    """The kernel's letter for the state of a process; ``Z`` if it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
