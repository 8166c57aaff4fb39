"""Fixtures of the tests that need a part which pip does not install."""

from __future__ import annotations

from tests.live.conftest import live, lossless_server, server, stack

from ._servers import broker, postgres, postgres_server, redis_server, worker

__all__ = [
    "broker",
    "live",
    "lossless_server",
    "postgres",
    "postgres_server",
    "redis_server",
    "server",
    "stack",
    "worker",
]
