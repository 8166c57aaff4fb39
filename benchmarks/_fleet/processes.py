"""The processes of a fleet: each is started on a port that is its own, and ended by its own pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flask_lifecycle._verify.subject import free_port

from .client import Connection, LostError

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60.0  # seconds: the bound of every wait
_LOOK = 0.02  # seconds between two looks


class FleetError(Exception):
    """A part of the fleet does not do what it should, so that nothing can be measured."""


async def wait_until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not true():
        if time.monotonic() > end:
            raise FleetError(f"not within {patience:g} s: {what}")
        await asyncio.sleep(_LOOK)


async def ask(port: int, path: str, timeout: float = 1.0) -> tuple[int, bytes]:
    """Status and body of an answer; 0 if there is none in time."""
    with contextlib.suppress(OSError, LostError, asyncio.TimeoutError):
        return await asyncio.wait_for(_ask(port, path), timeout)
    return 0, b""


async def _ask(port: int, path: str) -> tuple[int, bytes]:
    connection = await Connection.open(("127.0.0.1", port))
    try:
        return await connection.exchange(f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
    finally:
        connection.close()


def find(command: str, cure: str) -> str:
    """The path of a program that comes with this environment, or with Debian."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin"
    found = shutil.which(command, path=path)
    if found is None:
        raise FleetError(f"'{command}' is missing; {cure}.")
    return found


class Process:
    """One process at a time, which may be started again."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self._process: asyncio.subprocess.Process | None = None

    async def spawn(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        with (self.home / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return (self.home / f"{self.name}.log").read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def gone(self, patience: float | None = PATIENCE) -> int:
        """Wait for the exit, with ``None`` for as long as it takes; return its code."""
        assert self._process is not None
        try:
            return await asyncio.wait_for(self._process.wait(), patience)
        except asyncio.TimeoutError:
            raise FleetError(f"{self.name} is not gone after {patience:g} s:\n{self.log[-3000:]}") from None

    async def end(self) -> None:
        if self.running:
            self.send(signal.SIGTERM)
            try:
                await self.gone(5.0)
            except FleetError:
                self.send(signal.SIGKILL)
                await self.gone()


class Instance(Process):
    """The application on one server.

    :param delay: ``LIFECYCLE_SHUTDOWN_DELAY``.
    :param capable: whether it may stop its listener from accepting (``CAP_NET_ADMIN``), if this process may.
    """

    def __init__(
        self, name: str, home: Path, server: str, *, delay: str = "0", capable: bool = True, **settings: str
    ) -> None:
        super().__init__(name, home)
        self.port = free_port()
        self.server = server
        self._capable = capable
        self._settings = {"SHUTDOWN_DELAY": delay, **settings}

    @property
    def _command(self) -> list[str]:
        app = f"{Path(__file__).parent / 'app.py'}:create_app"
        if self.server == "waitress":
            command = ["-m", "flask", "--app", app, "lifecycle", "run", "-p", str(self.port), "--threads", "8"]
        else:
            config = str(ROOT / "examples" / "gunicorn" / "gunicorn.conf.py")
            place = ["--chdir", str(Path(__file__).parent), "--bind", f"127.0.0.1:{self.port}"]
            command = ["-m", "gunicorn", "--config", config, *place, "--no-control-socket", "app:create_app()"]
        return [*([] if self._capable else WITHOUT_NET_ADMIN), sys.executable, *command]

    async def launch(self) -> None:
        foreign = ("FLASK_", "LIFECYCLE_", "KUBERNETES_", "WERKZEUG_")
        env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        env |= {f"FLASK_LIFECYCLE_{key}": value for key, value in self._settings.items()}
        await self.spawn(self._command, env | {"PYTHONPATH": str(ROOT)})

    async def start(self) -> None:
        """Start it and wait until it says of itself that it is ready."""
        await self.launch()
        end = time.monotonic() + PATIENCE
        while (await ask(self.port, "/readyz"))[0] != 200:
            if time.monotonic() > end or not self.running:
                raise FleetError(f"{self.name} does not start:\n{self.log[-3000:]}")
            await asyncio.sleep(_LOOK)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the exit and return its code."""
        self.send(number)
        return await self.gone()


WITHOUT_NET_ADMIN = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"]
