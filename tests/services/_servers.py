"""PostgreSQL, Redis and Celery on loopback, started once for all tests, well for each, ended by their pids."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests._fakes import BOUND, ROOT, until
from tests._needs import program
from tests.live._client import free_port
from tests.live._process import children_of, wait_until
from tests.services._tasks import BROKER

# How long initdb may take on a busy machine, in seconds.
PATIENCE = 60.0
# The name under which the tests look at a server from outside, so that they do not see themselves.
OBSERVER = "observer"


class Server:
    """A process that answers on a port of its own, the same after each start."""

    end_signal = signal.SIGKILL
    user: str | None = None

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.environ: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._hung: list[int] = []

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # It ends with us, also when we are killed.
                [program("setpriv"), "--pdeathsig", "KILL", *self.command()],
                cwd=self.home,
                env={**os.environ, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self.user,
                group=pwd.getpwnam(self.user).pw_gid if self.user else None,
                extra_groups=[] if self.user else None,
                start_new_session=True,
            )
        wait_until(self._up, "an answer of the server")

    def _up(self) -> bool:
        assert self._process is not None
        ended = self._process.poll()
        assert ended is None, f"ended with {ended}: " + (self.home / "log").read_text(errors="replace")[-2000:]
        return self.answers()

    def stop(self) -> None:
        """Kill it: it closes nothing in order."""
        self.resume()
        if self._process is not None:
            self._process.send_signal(self.end_signal)
            try:
                self._process.wait(BOUND)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(BOUND)
            self._process = None

    def hang(self) -> None:
        """Stop it and its children where they are; connections stay open, and the kernel takes new ones."""
        assert self._process is not None
        # The parent first, so that there are no children that nobody knows.
        for pid in [self._process.pid, *children_of(self._process.pid)]:
            os.kill(pid, signal.SIGSTOP)
            self._hung.append(pid)

    def resume(self) -> None:
        """Let it go on."""
        while self._hung:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._hung.pop(), signal.SIGCONT)

    def well(self) -> None:
        """Make it answer, whatever a test has done to it."""
        self.resume()
        if self._process is None or self._process.poll() is not None:
            self.start()
        else:
            wait_until(self._up, "an answer of the server")


T = TypeVar("T", bound=Server)


class Postgres(Server):
    """A PostgreSQL with an empty cluster of its own, which trusts whoever comes from this machine."""

    # An immediate shutdown: connections break and nothing is written. After SIGKILL its children would linger.
    end_signal = signal.SIGQUIT

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        directories = sorted((str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
        self._postgres = program("postgres", *directories)
        initdb = program("initdb", *directories)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            users = {entry.pw_name for entry in pwd.getpwall()}
            self.user = "postgres" if "postgres" in users else "nobody"
            os.chown(home, pwd.getpwnam(self.user).pw_uid, pwd.getpwnam(self.user).pw_gid)
        subprocess.run(
            [initdb, "-D", str(home / "data"), "-A", "trust", "-U", "tests", "-E", "UTF8", "--locale=C", "--no-sync"],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            user=self.user,
            timeout=PATIENCE,
            check=True,
        )

    def command(self) -> list[str]:
        options = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "max_connections=30"]
        return [
            self._postgres,
            *("-D", str(self.home / "data"), "-p", str(self.port)),
            *(part for option in options for part in ("-c", option)),
        ]

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tests@127.0.0.1:{self.port}/postgres"

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.Error):
            self.ask("SELECT 1")
            return True
        return False

    def ask(self, query: str) -> list[Any]:
        """What the server says on a connection that is not the one under test."""
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="tests",
            dbname="postgres",
            application_name=OBSERVER,
            connect_timeout=2,
            autocommit=True,
        ) as connection:
            answer = connection.execute(query.encode())
            return answer.fetchall() if answer.description else []

    def sessions(self) -> list[tuple[int, str]]:
        """Process id and state of each connection but ours: ``idle``, ``idle in transaction``, ``active``."""
        return self.ask(
            "SELECT pid, state FROM pg_stat_activity WHERE backend_type = 'client backend'"
            f" AND application_name <> '{OBSERVER}' ORDER BY pid"
        )


class Redis(Server):
    """A Redis that keeps nothing unless it is told to."""

    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        return [
            program("redis-server"),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.home), "--save", "", *self.options),
        ]

    def client(self, **options: Any) -> redis.Redis:
        """A client that says at once what is wrong: it repeats nothing."""
        return redis.Redis(host="127.0.0.1", port=self.port, **{"retry": Retry(NoBackoff(), 0), **options})

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        with (
            self.client(socket_timeout=2, client_name=OBSERVER) as client,
            contextlib.suppress(redis.ConnectionError, redis.TimeoutError),
        ):
            with contextlib.suppress(redis.BusyLoadingError, redis.ResponseError):  # answers too
                client.ping()
            return True
        return False

    def clients(self) -> list[str]:
        """The ids of the connections that the server has, but for ours."""
        with self.client(client_name=OBSERVER) as client:
            return sorted(entry["id"] for entry in client.client_list() if entry["name"] != OBSERVER)

    def subscribers(self) -> set[str]:
        """The ids of the connections that get what is broadcast."""
        with self.client(client_name=OBSERVER) as client:
            return {entry["id"] for entry in client.client_list() if entry["psub"] != "0"}


class Worker(Server):
    """A Celery worker of the tests' application; with ``threads`` it answers while it works, with ``solo`` not."""

    def __init__(self, home: Path, broker: Redis, pool: str) -> None:
        super().__init__(home)
        self._pool = pool
        self._broker = broker
        self._others: set[str] = set()
        self.environ = {BROKER: broker.url, "PYTHONPATH": str(ROOT)}

    def command(self) -> list[str]:
        # By a port that nobody listens on, its name is its own; what it would say to other workers is left out.
        return [
            *(sys.executable, "-m", "celery", "--app", "tests.services._tasks", "--workdir", str(ROOT), "worker"),
            *("--hostname", f"w{self.port}@localhost", "--loglevel", "INFO"),
            *("--pool", self._pool, "--concurrency", "1"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]

    def start(self) -> None:
        self._others = self._broker.subscribers()
        super().start()

    def answers(self) -> bool:
        """Whether it listens; its log and the broker tell, so that nothing has to be sent."""
        # It says that it is ready before it subscribes to what is broadcast, and a ping that comes between is lost.
        return b" ready." in (self.home / "log").read_bytes() and bool(self._broker.subscribers() - self._others)

    def stop(self) -> None:
        super().stop()
        (self.home / "log").unlink(missing_ok=True)


@contextlib.contextmanager
def at_home(kind: Callable[..., T], *arguments: Any) -> Iterator[T]:
    """A server, stopped at the end, with a directory that other users may enter, as PostgreSQL does not run as root."""
    with tempfile.TemporaryDirectory(prefix="flask_lifecycle-", ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o755)
        server = kind(Path(home), *arguments)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The PostgreSQL of all tests."""
    with at_home(Postgres) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """The Redis of all tests."""
    with at_home(Redis) as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """A PostgreSQL that is well, empty and asked by nobody, and resumed afterwards so that what waits for it ends."""
    postgres_server.well()
    for pid, _ in postgres_server.sessions():  # what a test has left that failed
        postgres_server.ask(f"SELECT pg_terminate_backend({pid})")
    until(lambda: not postgres_server.sessions())  # a process ends a little after the connection that it had
    postgres_server.ask("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    yield postgres_server
    postgres_server.resume()


@pytest.fixture
def broker(redis_server: Redis) -> Iterator[Redis]:
    """A Redis that is well, empty and asked by nobody, and resumed afterwards so that what waits for it ends."""
    redis_server.well()
    with redis_server.client(client_name=OBSERVER) as client:
        client.flushall()
    until(lambda: not redis_server.clients())
    yield redis_server
    redis_server.resume()


@pytest.fixture
def worker(broker: Redis) -> Iterator[Callable[[str], Worker]]:
    """Starts a Celery worker of a pool, and ends it when the test is over."""
    with contextlib.ExitStack() as stack:

        def start(pool: str) -> Worker:
            server = stack.enter_context(at_home(Worker, broker, pool))
            server.start()
            return server

        yield start
