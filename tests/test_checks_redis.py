"""The check of Redis, against a real one that the tests hang, kill, refuse and let load."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from flask_lifecycle import Lifecycle
from flask_lifecycle.checks._check import CheckResult, HealthCheckError
from flask_lifecycle.checks.redis import RedisCheck
from tests._fakes import BOUND, make_app, running, until, whole

if TYPE_CHECKING:  # pytest imports it, as a plugin
    from tests._servers import Redis

pytest_plugins = ["tests._servers"]

UNREACHABLE = "Redis cannot be reached."
# How long a test watches that something does not happen, in seconds.
A_WHILE = 0.2


@pytest.fixture
def client(broker: Redis) -> Iterator[redis.Redis]:
    """The client of an application, to a Redis that is well."""
    with broker.client() as made:
        yield made


def refused(client: Any) -> str:
    """The sentence with which a check of this client fails; what the client says is the cause."""
    with pytest.raises(HealthCheckError, match=r"\.$") as caught:
        RedisCheck(client)()
    assert caught.value.__cause__ is not None
    return str(caught.value)


# -- well, dead, hung, back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 2}, {"protocol": 3}])
def test_an_answer_passes(broker: Redis, options: dict[str, Any]) -> None:
    """A Redis that answers passes, however the client talks to it."""
    with broker.client(**options) as client:
        assert RedisCheck(client)() == CheckResult()


def test_attributes() -> None:
    """Redis is shared by all replicas; the name can be chosen."""
    check = RedisCheck(redis.Redis())
    assert (check.name, check.scope) == ("redis", "shared")
    assert RedisCheck(redis.Redis(), name="cache").name == "cache"


def test_dead_and_back(broker: Redis, client: redis.Redis) -> None:
    """A Redis that is killed fails, and passes when it is back, with nothing done in between."""
    check = RedisCheck(client)
    assert check() == CheckResult()
    broker.stop()
    for _ in range(2):
        with pytest.raises(HealthCheckError, match=whole(UNREACHABLE)) as caught:
            check()
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert str(broker.port) in str(caught.value.__cause__)
    broker.start()
    assert check() == CheckResult()


def test_a_restart_raises_no_false_alarm(broker: Redis, client: redis.Redis) -> None:
    """After a restart the pool is full of dead connections, and each run passes all the same."""
    taken = [client.connection_pool.get_connection() for _ in range(3)]
    for connection in taken:
        client.connection_pool.release(connection)
    broker.stop()
    broker.start()
    check = RedisCheck(client)
    assert [check() for _ in range(4)] == [CheckResult()] * 4


def test_hung(broker: Redis, client: redis.Redis) -> None:
    """A Redis that hangs is waited for, and its late answer is an answer."""
    check = RedisCheck(client)
    check()
    done = threading.Event()
    returned: list[CheckResult] = []

    def run() -> None:
        returned.append(check())
        done.set()

    broker.hang()
    with running(run):
        assert not done.wait(A_WHILE)
        broker.resume()
        assert done.wait(BOUND)
    assert returned == [CheckResult()]


def test_hung_and_a_timeout(broker: Redis) -> None:
    """With a timeout of the client's, a Redis that hangs fails within it, and passes once it goes on."""
    with broker.client(socket_timeout=0.1) as client:
        check = RedisCheck(client)
        check()
        broker.hang()
        assert refused(client) == "Redis did not answer in time."
        broker.resume()
        broker.well()
        assert check() == CheckResult()


# -- what it says when it refuses -----------------------------------------------------------------------------------


@contextlib.contextmanager
def restarted(broker: Redis, *options: str) -> Iterator[None]:
    """Have the server started again with these options, and afterwards without them, and without its data."""
    broker.stop()
    broker.options = options
    try:
        broker.start()
        yield
    finally:
        broker.options = ()
        broker.stop()
        (broker.home / "dump.rdb").unlink(missing_ok=True)
        broker.start()


def test_loading(broker: Redis) -> None:
    """A Redis that is still loading is told apart from one that is down, and passes when it has loaded."""
    with broker.client() as client:
        client.mset({f"key-{number}": os.urandom(2000) for number in range(100)})  # what cannot be compressed
        client.save()
        # A tenth of a second for each key, and the server looks at its clients after each kilobyte.
        with restarted(broker, "--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"):
            assert refused(client) == "Redis is still loading its data."
        assert RedisCheck(client)() == CheckResult()


def test_unable_to_save(broker: Redis, client: redis.Redis) -> None:
    """A Redis that takes no writes because it could not save its data is told apart."""
    away = broker.home / "away"
    away.mkdir()
    with restarted(broker, "--dir", str(away), "--save", "3600 1"):
        away.rmdir()
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert refused(client) == "Redis takes no writes because it cannot save its data."
    assert RedisCheck(client)() == CheckResult()


def test_credentials(broker: Redis, client: redis.Redis) -> None:
    """Credentials that are missing or wrong, and a user who may not PING, are told apart from a Redis that is down."""
    refusal = "Redis does not accept the credentials of the client."
    client.config_set("requirepass", "secret")  # those who are connected remain so
    try:
        for options in ({}, {"password": "wrong"}):
            with broker.client(**options) as other:
                assert refused(other) == refusal
    finally:
        client.config_set("requirepass", "")
    client.acl_setuser("mute", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-ping"])
    with broker.client(username="mute", password="any") as other:
        assert refused(other) == "Redis does not allow the client to PING."
    client.acl_deluser("mute")


def test_lost_master(broker: Redis, client: redis.Redis) -> None:
    """A replica that has lost its master, and is told not to answer then, is told apart."""
    with restarted(broker, "--replica-serve-stale-data", "no", "--replicaof", "127.0.0.1 1"):
        assert refused(client) == "Redis is a replica that has lost its master."
    assert RedisCheck(client)() == CheckResult()


class Answering:
    """A client that answers a ping as it is told."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def ping(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class ClusterError(Exception):
    """An error that inherits from nothing of redis-py's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (redis.ReadOnlyError("READONLY at 10.0.0.1"), "Redis is read-only; the client talks to a replica."),
        (redis.ResponseError("ERR at 10.0.0.1"), "Redis answered with an error; the log says which."),
        (ClusterError("at 10.0.0.1"), "Redis answered with an error; the log says which."),
        (ConnectionResetError("by 10.0.0.1"), "Redis cannot be reached."),
    ],
)
def test_other_errors(error: Exception, sentence: str) -> None:
    """What the error says of hosts is not for the public, whatever the error is."""
    assert refused(Answering(error)) == sentence


def test_another_answer() -> None:
    """An answer that is no PONG fails."""
    with pytest.raises(HealthCheckError, match=whole("Redis answered PING with something else than PONG.")):
        RedisCheck(Answering(False))()


# -- the application's own pool -------------------------------------------------------------------------------------


def test_no_connection_of_its_own(broker: Redis, client: redis.Redis) -> None:
    """Fifty runs in threads of their own leave the server with the same one connection."""
    check = RedisCheck(client)
    check()
    before = broker.clients()
    for _ in range(50):
        with running(check):
            pass
    assert len(before) == 1
    assert broker.clients() == before


def test_an_exhausted_pool(broker: Redis) -> None:
    """A pool without a free connection is what the check says, and no way round it."""
    with broker.client(max_connections=1) as client:
        taken = client.connection_pool.get_connection()
        assert refused(client) == (
            "All connections of the pool are in use; look for ones that are not given back, or raise 'max_connections'."
        )
        assert len(broker.clients()) == 1
        client.connection_pool.release(taken)
        assert RedisCheck(client)() == CheckResult()


def test_during_a_transaction_of_the_application(client: redis.Redis) -> None:
    """A check that runs while the application watches keys and queues commands is no part of that."""
    with client.pipeline() as pipeline:
        pipeline.watch("held")  # type: ignore[no-untyped-call]  # it has no types
        pipeline.multi()
        pipeline.set("held", 1)
        assert RedisCheck(client)() == CheckResult()
        assert pipeline.execute() == [True]


def test_a_function_that_gives_the_client(client: redis.Redis) -> None:
    """A function is asked for the client at each run, in the application context."""
    from flask import current_app

    lifecycle = Lifecycle(app := make_app())
    app.extensions["redis"] = client
    lifecycle.add_check(RedisCheck(lambda: current_app.extensions["redis"]))
    assert app.test_client().get("/readyz").status_code == 200


# -- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "'client' must be a Redis client or a function that gives one, not 'int'."),
        ("redis://", "'client' must be a Redis client or a function that gives one, not 'str'."),
        (redis.Redis, "'client' is the class 'Redis'; give the client that the application uses."),
        (Path, "'client' is the class 'Path'; give the client that the application uses."),
        (
            redis.asyncio.Redis(),
            "'client' is an asynchronous one, which a check cannot await; give it a synchronous client.",
        ),
    ],
)
def test_bad_clients(given: Any, message: str) -> None:
    """What cannot be asked is refused: at once, or when a function gives it."""
    with pytest.raises(TypeError, match=whole(message)):
        RedisCheck(given)
    with pytest.raises(TypeError, match=whole(message)):
        RedisCheck(lambda: given)()


def test_nobody_answers_at_once(broker: Redis) -> None:
    """A client that repeats commands is waited for until it gives up."""
    with broker.client(retry=Retry(NoBackoff(), 3)) as client:
        broker.stop()
        assert refused(client) == UNREACHABLE
