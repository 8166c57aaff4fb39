"""A check that Redis answers, through the application's own client and pool.

No library is imported here: the client brings it along, and its errors are told apart by the names of their classes,
which valkey-py shares with redis-py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._check import CheckResult, HealthCheckError

__all__ = ["RedisCheck"]

# By the name of the error's class, or of the nearest one that it inherits from.
SENTENCES = {
    "BusyLoadingError": "Redis is still loading its data.",
    "ReadOnlyError": "Redis is read-only; the client talks to a replica.",
    "MasterDownError": "Redis is a replica that has lost its master.",
    "AuthenticationError": "Redis does not accept the credentials of the client.",
    "NoPermissionError": "Redis does not allow the client to PING.",
    "MaxConnectionsError": "All connections of the pool are in use;"
    " look for ones that are not given back, or raise 'max_connections'.",
    "TimeoutError": "Redis did not answer in time.",
    "ConnectionError": "Redis cannot be reached.",
}
OTHERWISE = "Redis answered with an error; the log says which."


class RedisCheck:
    """Redis answers PING on a connection of the client's own pool, which gets it back.

    A replica answers PING as well, although it takes no writes. How long it takes to say that a server is down or
    hangs is the client's to decide: redis-py from 6 on repeats a command for about four seconds by default, and
    before that the check is reported as hanging. To be told sooner, give the client a ``socket_timeout`` below
    the timeout of the check and a ``Retry`` that ends in time.

    :param client: a synchronous client, made by redis-py or a library like it; or a function that gives one, called
        for each run, in the application context. It should be the client of the application, and is not closed.
    """

    scope = "shared"

    def __init__(self, client: Any, *, name: str = "redis") -> None:
        self.name = name
        self._give: Callable[[], Any]
        if callable(client) and not isinstance(client, type) and not hasattr(client, "ping"):
            self._give = client
        else:
            _accept(client)
            self._give = lambda: client

    def __call__(self) -> CheckResult:
        client = self._give()
        _accept(client)
        try:
            answered = client.ping()
        except Exception as error:  # redis-py's errors have no base in common: those of a cluster are apart
            raise HealthCheckError(_sentence(error)) from error
        if not answered:
            raise HealthCheckError("Redis answered PING with something else than PONG.")
        return CheckResult()


def _accept(client: Any) -> None:
    """Refuse what is no client that can be asked."""
    if isinstance(client, type):
        raise TypeError(f"'client' is the class {client.__name__!r}; give the client that the application uses.")
    if not callable(getattr(client, "ping", None)):
        raise TypeError(f"'client' must be a Redis client or a function that gives one, not {type(client).__name__!r}.")
    if any(".asyncio" in cls.__module__ for cls in type(client).__mro__):
        raise TypeError("'client' is an asynchronous one, which a check cannot await; give it a synchronous client.")


def _sentence(error: Exception) -> str:
    if str(error).startswith("MISCONF"):  # a plain ResponseError; Redis refuses PING as well then
        return "Redis takes no writes because it cannot save its data."
    names = [cls.__name__ for cls in type(error).__mro__]
    return next((SENTENCES[name] for name in names if name in SENTENCES), OTHERWISE)
