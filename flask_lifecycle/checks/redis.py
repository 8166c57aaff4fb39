"""A check that Redis answers, through the application's own client and pool.

No library is imported here: errors are recognised by their class names, which valkey-py shares with redis-py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._check import CheckResult, HealthCheckError

# By the name of the error's class, or of the nearest base class.
SENTENCES = {
    "BusyLoadingError": "Redis is still loading its data.",
    "ReadOnlyError": "Redis is read-only; the client talks to a replica.",
    "MasterDownError": "Redis is a replica that has lost its master.",
    "AuthenticationError": "Redis does not accept the credentials of the client.",
    "NoPermissionError": "Redis does not allow the client to PING.",
    "MaxConnectionsError": "All connections of the pool are in use;"
    " look for ones that are not returned, or raise 'max_connections'.",
    "TimeoutError": "Redis did not answer in time.",
    "ConnectionError": "Redis cannot be reached.",
}
OTHERWISE = "Redis answered with an error; the log has it."


class RedisCheck:
    """Redis answers PING on the application's own client. So does a replica, although it takes no writes.

    The client decides how long it takes to report a server that is down or hangs: redis-py from version 6 on retries a
    command for about four seconds by default, and the check is reported as hanging before that. For a quicker result
    give the client a ``socket_timeout`` below the timeout of the check, and a ``Retry`` that ends in time.

    :param client: a synchronous client of redis-py or a compatible library, or a function that returns one, called
        for each run in the application context. Use the client of the application; it is not closed.
    """

    scope = "shared"

    def __init__(self, client: Any, *, name: str = "redis") -> None:
        self.name = name
        self._client: Callable[[], Any]
        if callable(client) and not isinstance(client, type) and not hasattr(client, "ping"):
            self._client = client
        else:
            _validate(client)
            self._client = lambda: client

    def __call__(self) -> CheckResult:
        client = self._client()
        _validate(client)
        try:
            answered = client.ping()
        except Exception as error:  # redis-py's errors have no common base class: those of a cluster are separate
            raise HealthCheckError(_sentence(error)) from error
        if not answered:
            raise HealthCheckError("Redis answered PING with something else than PONG.")
        return CheckResult()


def _validate(client: Any) -> None:
    if isinstance(client, type):
        raise TypeError(f"'client' is the class {client.__name__!r}; give the client that the application uses.")
    if not callable(getattr(client, "ping", None)):
        raise TypeError(
            f"'client' must be a Redis client or a function that returns one, not {type(client).__name__!r}."
        )
    if any(".asyncio" in cls.__module__ for cls in type(client).__mro__):
        raise TypeError("'client' is asynchronous, and a check cannot await it; give it a synchronous client.")


def _sentence(error: Exception) -> str:
    if str(error).startswith("MISCONF"):  # a plain ResponseError; Redis then refuses PING as well
        return "Redis takes no writes because it cannot save its data."
    names = [cls.__name__ for cls in type(error).__mro__]
    return next((SENTENCES[name] for name in names if name in SENTENCES), OTHERWISE)
