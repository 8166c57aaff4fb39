"""A client of ``clients.py``: POSTs by a library, on kept connections, without a pause, until they are refused.

The arguments are the library and the URL. Each connection prints ``ready`` after some responses. At the end a line of
JSON says how many requests were answered, and how each of the others was lost. A refused connection is no loss, because
no request was sent on it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module  # no library is a dependency, and some have no types

CONNECTIONS = 4
BODY = b"x" * 1000
PATIENCE = 30.0  # seconds for a response
READY = 20  # responses

answered = 0
lost: list[str] = []
lock = threading.Lock()  # guards both


class RefusedError(Exception):
    """No connection was made."""


class Client:
    """The requests of one connection."""

    def __init__(self) -> None:
        self._answered = 0

    def response(self, status: int, text: str) -> None:
        global answered
        if (status, text) != (200, str(len(BODY))):
            self.failure(f"status {status}, {text[:80]!r}")
            return
        with lock:
            answered += 1
        self._answered += 1
        if self._answered == READY:
            sys.stdout.write("ready\n")
            sys.stdout.flush()

    def failure(self, how: object) -> None:
        with lock:
            lost.append(f"{type(how).__name__}: {how}" if isinstance(how, Exception) else str(how))


Post = Callable[[], tuple[int, str]]


def requests_post(url: str) -> Post:
    requests, exceptions = import_module("requests"), import_module("urllib3.exceptions")
    session = requests.Session()  # its adapters retry nothing by default
    session.trust_env = False

    def post() -> tuple[int, str]:
        try:
            response = session.post(url, data=BODY, timeout=PATIENCE)
        except requests.ConnectionError as error:
            reason = getattr(error.args[0], "reason", None)
            if isinstance(reason, exceptions.NewConnectionError | exceptions.ConnectTimeoutError):
                raise RefusedError from None
            raise
        return response.status_code, response.text

    return post


def httpx_post(url: str) -> Post:
    httpx = import_module("httpx")
    client = httpx.Client(transport=httpx.HTTPTransport(retries=0), timeout=PATIENCE, trust_env=False)

    def post() -> tuple[int, str]:
        try:
            response = client.post(url, content=BODY)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise RefusedError from None
        return response.status_code, response.text

    return post


def in_threads(post_of: Callable[[str], Post], url: str) -> None:
    def run() -> None:
        client, post = Client(), post_of(url)
        while True:
            try:
                client.response(*post())
            except RefusedError:
                return
            except Exception as error:
                client.failure(error)

    threads = [threading.Thread(target=run) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def with_aiohttp(url: str) -> None:
    aiohttp = import_module("aiohttp")

    async def run() -> None:
        client = Client()
        while True:
            try:
                async with session.post(url, data=BODY) as response:  # it repeats idempotent requests only
                    client.response(response.status, await response.text())
            except aiohttp.ClientConnectorError:
                return
            except Exception as error:
                client.failure(error)

    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(run() for _ in range(CONNECTIONS)))


def main(library: str, url: str) -> None:
    signal.alarm(120)  # it does not outlive a server that hangs
    if library == "aiohttp":
        asyncio.run(with_aiohttp(url))
    else:
        in_threads({"requests": requests_post, "httpx": httpx_post}[library], url)
    print(json.dumps({"answered": answered, "lost": lost}))


if __name__ == "__main__":
    main(*sys.argv[1:])
