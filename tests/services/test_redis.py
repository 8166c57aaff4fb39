"""The check of Redis, against a real one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from flask_lifecycle import CheckResult, HealthCheckError, Lifecycle
from flask_lifecycle.checks import RedisCheck
from tests._fakes import fails, in_thread, make_app, until

from ._servers import Redis


@pytest.fixture
def client(broker: Redis) -> Iterator[redis.Redis]:
    """The client of an application."""
    with broker.client() as made:
        yield made


class Answering:
    """A client that answers a ping with this."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def ping(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def refused(client: Any) -> str:
    """The sentence with which a check of this client fails; what the client says is the cause."""
    with pytest.raises(HealthCheckError, match=r"\.$") as caught:
        RedisCheck(client)()
    assert caught.value.__cause__ is not None
    return str(caught.value)


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 2}, {"protocol": 3}])
def test_an_answer_passes(broker: Redis, options: dict[str, Any]) -> None:
    """A Redis that answers passes, however the client talks to it."""
    with broker.client(**options) as client:
        check = RedisCheck(client, name="cache")
        assert (check(), check.name, check.scope) == (CheckResult(), "cache", "shared")


def test_dead_and_back(broker: Redis, client: redis.Redis) -> None:
    """A Redis that is killed fails, and passes when it is back."""
    check = RedisCheck(client)
    assert check() == CheckResult()
    broker.stop()
    for _ in range(2):
        error = fails(check, "Redis cannot be reached.")
    assert isinstance(error.__cause__, redis.ConnectionError)
    assert str(broker.port) in str(error.__cause__)
    broker.start()
    assert check() == CheckResult()


def test_a_restart_raises_no_false_alarm(broker: Redis, client: redis.Redis) -> None:
    """After a restart the pool is full of dead connections, and each run passes."""
    taken = [client.connection_pool.get_connection() for _ in range(3)]
    for connection in taken:
        client.connection_pool.release(connection)
    broker.stop()
    broker.start()
    check = RedisCheck(client)
    assert [check() for _ in range(4)] == [CheckResult()] * 4


def test_hung(broker: Redis) -> None:
    """With a timeout of its client the check of a Redis that hangs fails within that, and passes when it goes on."""
    with broker.client(socket_timeout=0.1) as hasty:
        assert RedisCheck(hasty)() == CheckResult()
        broker.hang()
        assert refused(hasty) == "Redis did not answer in time."
        broker.resume()
        broker.well()
        assert RedisCheck(hasty)() == CheckResult()


@contextlib.contextmanager
def restarted(broker: Redis, *options: str) -> Iterator[None]:
    """Restart the server with these options, and afterwards without them and its data."""
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
    """A Redis that is still loading has its own sentence, and passes when it has loaded."""
    with broker.client() as client:
        client.mset({f"key-{number}": os.urandom(2000) for number in range(100)})  # what cannot be compressed
        client.save()
        # A tenth of a second for each key, and the server looks at its clients after each kilobyte.
        with restarted(broker, "--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"):
            assert refused(client) == "Redis is still loading its data."
        assert RedisCheck(client)() == CheckResult()


def test_unable_to_save(broker: Redis, client: redis.Redis) -> None:
    """A Redis that takes no writes because it could not save its data has its own sentence."""
    away = broker.home / "away"
    away.mkdir()
    with restarted(broker, "--dir", str(away), "--save", "3600 1"):
        away.rmdir()
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert refused(client) == "Redis takes no writes because it cannot save its data."
    assert RedisCheck(client)() == CheckResult()


def test_credentials(broker: Redis, client: redis.Redis) -> None:
    """Missing or wrong credentials, and a user who may not PING, have their own sentences."""
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
    """A replica that has lost its master, and is configured not to answer then, has its own sentence."""
    with restarted(broker, "--replica-serve-stale-data", "no", "--replicaof", "127.0.0.1 1"):
        assert refused(client) == "Redis is a replica that has lost its master."
    assert RedisCheck(client)() == CheckResult()


class ClusterError(Exception):
    """An error that inherits from nothing of redis-py's."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (redis.ReadOnlyError("READONLY at 10.0.0.1"), "Redis is read-only; the client talks to a replica."),
        (redis.ResponseError("ERR at 10.0.0.1"), "Redis answered with an error; the log has it."),
        (ClusterError("at 10.0.0.1"), "Redis answered with an error; the log has it."),
        (ConnectionResetError("by 10.0.0.1"), "Redis cannot be reached."),
    ],
)
def test_other_errors(error: Exception, sentence: str) -> None:
    """The text of an error may name hosts and is not public; an answer that is not PONG fails."""
    assert refused(Answering(error)) == sentence
    fails(RedisCheck(Answering(False)), "Redis answered PING with something else than PONG.")


def test_no_connection_of_its_own(broker: Redis, client: redis.Redis) -> None:
    """Fifty runs in their own threads leave the server with the same one connection."""
    check = RedisCheck(client)
    check()
    before = broker.clients()
    for _ in range(50):
        in_thread(check)
    assert len(before) == 1
    assert broker.clients() == before


def test_an_exhausted_pool(broker: Redis) -> None:
    """A pool without a free connection fails with that reason, and the check does not bypass it."""
    with broker.client(max_connections=1) as client:
        taken = client.connection_pool.get_connection()
        assert refused(client) == (
            "All connections of the pool are in use; look for ones that are not returned, or raise 'max_connections'."
        )
        assert len(broker.clients()) == 1
        client.connection_pool.release(taken)
        assert RedisCheck(client)() == CheckResult()


def test_a_function_that_gives_the_client(client: redis.Redis) -> None:
    """A function is called for the client at each run, in the application context."""
    from flask import current_app

    lifecycle = Lifecycle(app := make_app())
    app.extensions["redis"] = client
    lifecycle.add_check(RedisCheck(lambda: current_app.extensions["redis"]))
    assert app.test_client().get("/readyz").status_code == 200
