"""A connection of an HTTP client, on raw streams: cheap, and honest about what has come."""

from __future__ import annotations

import asyncio
import contextlib

PATIENCE = 30.0  # seconds: no answer takes as long
PAUSE = 0.01  # seconds between the parts of a request
_LIMIT = 1 << 18


class LostError(Exception):
    """The whole right answer has not come."""


class SilentError(LostError):
    """Nothing of an answer has come."""


class Connection:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.ended = False

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Connection:
        return cls(*await asyncio.open_connection(*address, limit=_LIMIT))

    @property
    def over(self) -> bool:
        """Whether the other side has ended it while it was idle."""
        return self.ended or self._reader.at_eof() or self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()

    async def exchange(self, *parts: bytes) -> tuple[int, bytes]:
        """Send a request, with a pause between its parts, and read its answer: status and body.

        :raises LostError: if the whole of it does not come; ``SilentError`` if nothing does.
        """
        bound = asyncio.get_running_loop().call_later(PATIENCE, self._writer.transport.abort)
        try:
            await self._send(parts)
            head = await self._head()
            body = await self._body(head)
        except (OSError, EOFError, ValueError) as error:
            raise LostError(f"{type(error).__name__} in the answer: {error}") from error
        finally:
            bound.cancel()
        self.ended = self.ended or b"\r\nconnection: close\r\n" in head
        return int(head[9:12]), body

    async def _send(self, parts: tuple[bytes, ...]) -> None:
        with contextlib.suppress(OSError):  # an answer may have come; if not, reading it fails
            for n, part in enumerate(parts):
                if n:
                    await asyncio.sleep(PAUSE)
                self._writer.write(part)
                await self._writer.drain()

    async def _head(self) -> bytes:
        """The head in lower case."""
        try:
            return (await self._reader.readuntil(b"\r\n\r\n")).lower()
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            raise SilentError("end of file before the answer") from None
        except OSError as error:
            raise SilentError(f"{type(error).__name__} before the answer") from None

    async def _body(self, head: bytes) -> bytes:
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            return await self._chunks()
        _, found, rest = head.partition(b"\r\ncontent-length: ")
        if found:
            return await self._reader.readexactly(int(rest[: rest.index(b"\r")]))
        self.ended = True
        return await self._reader.read()

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return b"".join(parts)
