"""The HTTP client of the commands. It uses no proxy and follows no redirect, so that the token goes nowhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import time
from collections.abc import Mapping
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

from .._core.text import visible

_LARGEST = 8 << 20  # ten times a document with fifty requests, fifty work items and a thousand checks
_POLL = 0.05
_AGENT = "flask-lifecycle"  # requests with this user agent do not count as a prober, so no stop waits for them


class UnreachableError(Exception):
    """There is no answer, or it is not understood; the text is one sentence."""


@dataclasses.dataclass(frozen=True, slots=True)
class Url:
    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """``http://host:port/path``, or the same without its scheme.

        :raises ValueError: it is not a URL.
        """
        with contextlib.suppress(ValueError):  # a port that is none, a bracket too few
            parts = urlsplit(text if "://" in text else f"http://{text}")
            if parts.scheme in ("http", "https") and parts.hostname and not parts.username and visible(text) == text:
                port = parts.port or (443 if parts.scheme == "https" else 80)
                return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
        raise ValueError(f"'{visible(text)}' is not a URL of a process; give one such as 'http://127.0.0.1:9000'.")

    def at(self, path: str) -> Url:
        return dataclasses.replace(self, path=path)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def sentence(self) -> str:
        """The body as one printable line."""
        return visible(" ".join(self.body[:1000].decode("utf-8", "backslashreplace").split()))


def fetch_health(url: Url, token: str | None, timeout: float) -> dict[str, Any]:
    """The health document at a URL.

    :raises UnreachableError: there is none.
    """
    answer = ask("GET", url, "verbose", {"Accept": "application/health+json, application/json;q=0.9"}, token, timeout)
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(answer.body.decode())
        if isinstance(document, dict) and document.get("status") in ("pass", "warn", "fail"):
            return document
    what = f"answered {answer.status}"
    if 300 <= answer.status < 400:
        what = f"redirects to {visible(answer.headers.get('Location', 'nowhere'))}, which is not followed"
    raise UnreachableError(f"{url} {what}, which is no health document; give the URL of a health check.")


def ask(method: str, url: Url, query: str, headers: Mapping[str, str], token: str | None, timeout: float) -> Answer:
    """Send one request and wait for the whole answer.

    :param timeout: seconds for each wait.
    :raises UnreachableError: there is no answer.
    """
    headers = {"User-Agent": _AGENT, **headers, **_authorization(token)}
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    try:
        with contextlib.closing(kind(url.host, url.port, timeout=timeout)) as connection:
            connection.request(method, f"{url.path or '/'}?{query}", headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read(_LARGEST))
    # A host or a header that cannot be sent raises a ValueError.
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnreachableError(f"{url} does not answer: {_cause(error, timeout)}.") from None


def wait_gone(url: Url, timeout: float) -> bool:
    """Wait until connections are refused there; ``False`` if they are still accepted after the timeout."""
    until = time.monotonic() + timeout
    while (left := until - time.monotonic()) > 0:
        try:
            socket.create_connection((url.host, url.port), min(left, 1.0)).close()
        except ConnectionError:
            return True
        except OSError:  # no answer either way
            pass
        time.sleep(_POLL)
    return False


def _authorization(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    if not token.isprintable() or token != token.strip():  # the error of http.client would show the token
        raise UnreachableError("The token begins or ends with a blank, or contains a line break; remove it.")
    # As WSGI has it on the other side: bytes, each as one character.
    return {"Authorization": f"Bearer {token}".encode().decode("latin-1")}


def _cause(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "the connection is refused"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(error, http.client.HTTPException):
        return "the answer is not HTTP"
    return visible(getattr(error, "strerror", None) or str(error) or type(error).__name__)
