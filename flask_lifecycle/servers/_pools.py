"""What waitress' pools of workers have to do, whoever started them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .._inflight import Load


def pool_load(pools: Sequence[Any], oldest: float) -> Load:
    """The load of waitress' task dispatchers. A thread that is on its way to a queued task is busy already."""
    threads = wanted = 0
    for pool in pools:
        threads += len(pool.threads) - pool.stop_count
        wanted += pool.active_count + len(waiting(pool))
    return Load(max(0, wanted - threads), threads, min(threads, wanted), oldest)


def waiting(pool: Any) -> list[Any]:
    """The channels that wait for a worker."""
    return [task for task in pool.queue.copy() if not hasattr(task, "lifecycle_canary")]


def distinct(things: Iterable[Any]) -> list[Any]:
    """Each of these once, also if they cannot be hashed."""
    return list({id(thing): thing for thing in things}.values())
