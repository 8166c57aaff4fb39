"""Clients that ask all the time and check every answer.

A request is *lost* if its client did not get the whole right answer: status 200, and to the last byte the body that
belongs to its number. A client does what HTTP clients do and no more. It opens a new connection after an answer that
said close, and where a kept one has ended before it sends anything. It sends a GET once more, on a new connection, if a
*kept* one ended before any byte of an answer had come (RFC 9110, section 9.2.2); that is counted as *again*. A POST is
never sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

from .app import CHUNKS
from .client import Connection, LostError, SilentError

_BODIES = 32
_LONGEST_BODY = 65536

Route = Callable[[], tuple[str, int]]


class Ask(NamedTuple):
    """One request, and the body of its right answer."""

    kind: str
    parts: tuple[bytes, ...]
    right: bytes


class Sample(NamedTuple):
    """One answered request; seconds of ``time.monotonic``."""

    begun: float
    took: float


class Mix:
    """Requests of all kinds, in an order that a seed decides."""

    KINDS = ("fast", "work", "digest", "halves", "stream")
    WEIGHTS = (60, 10, 15, 5, 10)

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = 0
        bodies = [self._random.randbytes(self._random.randint(1, _LONGEST_BODY)) for _ in range(_BODIES)]
        self._bodies = [(body, hashlib.sha256(body).hexdigest().encode()) for body in bodies]

    def next(self) -> Ask:
        self._number += 1
        (kind,) = self._random.choices(self.KINDS, self.WEIGHTS)
        if kind in ("digest", "halves"):
            return self._post(kind, *self._random.choice(self._bodies))
        head = f"GET /{kind}/{self._number} HTTP/1.1\r\nHost: fleet\r\n\r\n".encode()
        if kind == "stream":
            return Ask(kind, (head,), b"".join(b"chunk %d of %d\n" % (n, self._number) for n in range(CHUNKS)))
        return Ask(kind, (head,), f"{kind} {self._number}\n".encode())

    def _post(self, kind: str, body: bytes, digest: bytes) -> Ask:
        head = f"POST /digest/{self._number} HTTP/1.1\r\nHost: fleet\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        half = len(body) // 2
        parts = (head + body[:half], body[half:]) if kind == "halves" else (head + body,)
        return Ask(kind, parts, b"%s %d\n" % (digest, self._number))


class Load:
    """Clients that ask for a mix of work at one place, at a rate that they keep to if the fleet can.

    :param route: where the next connection of a client goes.
    :param kept: clients that keep their connections.
    :param new: clients that open one for each request.
    :param rate: requests a second, of all clients.
    """

    def __init__(self, routes: list[Route], *, kept: int, new: int, rate: float, seed: int) -> None:
        self.sent = 0
        self.again = 0
        self.lost: list[str] = []
        self.samples: list[Sample] = []
        self._routes = routes
        self._counts = (kept, new)
        self._pace = (kept + new) / rate
        self._seed = seed
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        kept, new = self._counts
        for number in range(kept + new):
            route = self._routes[number % len(self._routes)]
            client = self._client(self._seed + number, route, keep=number < kept)
            self._tasks.append(asyncio.create_task(client))

    async def end(self) -> None:
        """Let every client get its last answer."""
        self._over = True
        await asyncio.gather(*self._tasks)

    async def reach(self, count: int) -> None:
        """Wait until so many requests have been sent, or a client has failed in a way that is no loss."""
        while self.sent < count:
            for task in self._tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.05)

    async def _client(self, seed: int, route: Route, keep: bool) -> None:
        now = asyncio.get_running_loop().time
        mix, pace = Mix(seed), random.Random(seed)
        due = now() + self._pace * pace.random()
        connection: Connection | None = None
        while not self._over:
            await asyncio.sleep(due - now())
            due = max(due, now() - 1.0) + self._pace * (0.5 + pace.random())
            connection = await self._one(mix.next(), connection, route)
            if connection is not None and not keep:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    async def _one(self, ask: Ask, connection: Connection | None, route: Route) -> Connection | None:
        """Ask once; return the connection if it can be used again."""
        if connection is not None and connection.over:
            connection.close()
            connection = None
        now = asyncio.get_running_loop().time
        begun = now()
        self.sent += 1
        where = "new" if connection is None else "kept"
        try:
            if connection is not None:
                try:
                    await self._check(connection, ask)
                except SilentError:
                    connection.close()
                    if ask.parts[0].startswith(b"POST"):
                        raise
                    self.again += 1
                    connection = None
            if connection is None:
                where = "new"
                connection = await Connection.open(route())
                await self._check(connection, ask)
        except (LostError, OSError) as error:
            self.lost.append(f"{begun:.3f} {ask.kind} on a {where} connection, {now() - begun:.3f} s: {error!r}")
            if connection is not None:
                connection.close()
            return None
        self.samples.append(Sample(begun, now() - begun))
        return connection

    @staticmethod
    async def _check(connection: Connection, ask: Ask) -> None:
        status, body = await connection.exchange(*ask.parts)
        if (status, body) != (200, ask.right):
            raise LostError(f"answer {status} {body[:100]!r}")
