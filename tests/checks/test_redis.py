"""The check of Redis, against a real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from flask_lifecycle.checks import RedisCheck
from tests._fakes import whole

# -- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "'client' must be a Redis client or a function that returns one, not 'int'."),
        ("redis://", "'client' must be a Redis client or a function that returns one, not 'str'."),
        (redis.Redis, "'client' is the class 'Redis'; give the client that the application uses."),
        (Path, "'client' is the class 'Path'; give the client that the application uses."),
        (redis.asyncio.Redis(), "'client' is asynchronous, and a check cannot await it; give it a synchronous client."),
    ],
)
def test_bad_clients(given: Any, message: str) -> None:
    """A client that cannot be asked is rejected: at once, or when a function returns it."""
    with pytest.raises(TypeError, match=whole(message)):
        RedisCheck(given)
    with pytest.raises(TypeError, match=whole(message)):
        RedisCheck(lambda: given)()
