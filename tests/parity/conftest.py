"""Fixtures of the parity tests: processes that many cases share, and processes of one case."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live._client import Address, Connection, Response
from tests.live._process import Running, Starter

HERE = Path(__file__).parent
# The checks and hooks of the plans fail on purpose, and the log has each failure with its traceback.
PROVOKED = r"(?m)^(?:\S+\.)?(?:HealthCheckError|ValueError)\b"
# Seconds. Long enough for whatever is asked in the delay; the process is not waited for but ended by its pid.
LONG_DRAIN = {"LIFECYCLE_SHUTDOWN_DELAY": 300.0, "LIFECYCLE_GRACE_PERIOD": 600.0}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "app(**plan): the application that a case is asked of, see parity_app.py")


def ask(address: Address, path: str, method: str = "GET", **headers: str) -> Response:
    """Ask over a connection of its own; an answer to HEAD has to end with its head."""
    with Connection(address) as connection:
        connection.ask(path, method, b"", **{"Connection": "close", **headers})
        if method != "HEAD":
            return connection.answer()
        status, received = connection.head()
        return Response(status, received, connection.rest())


def body_of(answer: Response) -> Any:
    """The JSON of an answer."""
    return json.loads(answer.body)


class Mounted:
    """One of the applications that share a process."""

    def __init__(self, running: Running, name: str) -> None:
        self.running = running
        self.name = name

    def ask(self, path: str, method: str = "GET", **headers: str) -> Response:
        return ask(self.running.address, f"/{self.name}{path}", method, **headers)

    def told(self, kind: str) -> list[str]:
        """What it has told of a kind (``check``, ``request``, ``state``) so far."""
        return self.running.hooks(f"{self.name} {kind}")


def name_of(item: pytest.Function) -> str:
    """The name that a test's application is mounted under."""
    return re.sub(r"\W+", "-", f"{item.path.stem}-{item.name}").replace("test_", "").strip("-")


def plans(session: pytest.Session, fixture: str) -> dict[str, dict[str, Any]]:
    """The applications of all the tests here that ask for a fixture."""
    items = [item for item in session.items if isinstance(item, pytest.Function) and item.path.parent == HERE]
    wanted = [item for item in items if fixture in item.fixturenames]
    markers = {name_of(item): item.get_closest_marker("app") for item in wanted}
    return {name: dict(marker.kwargs) if marker else {} for name, marker in markers.items()}


@contextlib.contextmanager
def shared(home: Path, mounted: dict[str, dict[str, Any]], settings: dict[str, Any]) -> Iterator[Running]:
    """Serve applications in one process, and end it."""
    starter = Starter(home)
    try:
        plan = {"mounted": mounted, "settings": settings}
        running = starter.serve("waitress", app="parity_app.py", plan=plan, excuse=PROVOKED)
        wait_for_states(running, "STARTING ->", len(mounted) + 1)
        yield running
    finally:
        starter.end()


def wait_for_states(running: Running, change: str, times: int) -> None:
    """Wait until so many applications have made a change of state."""
    running.wait_for(lambda: running.log.count(f"state {change}") >= times, f"{times} times {change!r}")


@pytest.fixture(scope="package")
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The process of all the cases that only ask."""
    with shared(tmp_path_factory.mktemp("serving"), plans(request.session, "mounted"), {}) as running:
        yield running


@pytest.fixture(scope="package")
def draining(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The process of all the cases that only ask, in the delay of a stop."""
    mounted = plans(request.session, "in_drain")
    with shared(tmp_path_factory.mktemp("draining"), mounted, LONG_DRAIN) as running:
        running.send(signal.SIGTERM)
        wait_for_states(running, "READY -> DRAINING", len(mounted) + 1)
        yield running


@pytest.fixture
def mounted(request: pytest.FixtureRequest, serving: Running) -> Mounted:
    """The application of a case, which serves."""
    return Mounted(serving, name_of(request.node))


@pytest.fixture
def in_drain(request: pytest.FixtureRequest, draining: Running) -> Mounted:
    """The application of a case, which has got SIGTERM and is in the delay."""
    return Mounted(draining, name_of(request.node))


class Own:
    """Starts the process of one case; its application is at the root, and so is its probe listener's."""

    def __init__(self, starter: Starter) -> None:
        self._starter = starter

    def serve(self, *, plan: dict[str, Any] | None = None, **root: Any) -> Running:
        """Serve and wait until it is ready; the plan is of the whole process, ``root`` is for ``make_app``."""
        settings = {"LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_PROBE_HOST": "127.0.0.1", **root.pop("settings", {})}
        whole = {"root": {**root, "settings": settings}, **(plan or {})}
        return self._starter.serve("waitress", app="parity_app.py", plan=whole, excuse=PROVOKED)

    def serve_file(self, path: Path, env: dict[str, str]) -> Running:
        """Serve an application that says all of its settings itself."""
        return self._starter.serve("waitress", app=str(path), env=env)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    """Start the process of one case; it is ended by its pid."""
    starter = Starter(tmp_path)
    yield Own(starter)
    starter.end()
