"""Talks to the probes of another process, for the command line: one request, one bounded wait, no surprises.

No proxy of the environment is used and no redirect is followed, because the token must go to nobody but whom it is
meant for. The wait for an answer is bounded as a whole and not by the byte, as a socket's own timeout is: the request
has a thread of its own, which is left behind when its time is over.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from ._record import NamedTuple

# Of a document with fifty requests, fifty tokens and a thousand checks a tenth is taken.
_LARGEST = 8 << 20
_POLL = 0.05
# By which a process that is asked knows who it is, and takes us for no prober that a stop has to wait for.
_AGENT = "flask-lifecycle"


class UnreachableError(Exception):
    """There is no answer, or none that could be understood; the text is one sentence."""


class Url(NamedTuple):
    """Where to ask."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """``http://host:port/path``, or the same without its scheme.

        :raises ValueError: it is something else.
        """
        with contextlib.suppress(ValueError):  # a port that is none, a bracket too few
            parts = urlsplit(text if "://" in text else f"http://{text}")
            if parts.scheme in ("http", "https") and parts.hostname and not parts.username and visible(text) == text:
                port = parts.port or (443 if parts.scheme == "https" else 80)
                return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))
        raise ValueError(f"'{visible(text)}' is no URL to ask at; give one such as 'http://127.0.0.1:9000'.")

    def at(self, path: str) -> Url:
        """The same place with another path."""
        return self._replace(path=path)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


class Answer(NamedTuple):
    """What has come back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def sentence(self) -> str:
        """The body as one line that may be printed."""
        return visible(" ".join(self.body[:1000].decode("utf-8", "backslashreplace").split()))


def visible(text: str) -> str:
    """A text with everything escaped that a terminal might take for a command, or could not show."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def fetch_health(url: Url, token: str | None, timeout: float) -> tuple[dict[str, Any], bytes]:
    """The health document at a URL, and as it came.

    :raises UnreachableError: there is none.
    """
    headers = {"Accept": "application/health+json, application/json;q=0.9"}
    answer = ask("GET", url, "verbose", headers | _authorization(token), timeout)
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(answer.body.decode())
        if isinstance(document, dict) and document.get("status") in ("pass", "warn", "fail"):
            return document, answer.body
    what = f"answered {answer.status}"
    if 300 <= answer.status < 400:
        what = f"redirects to {visible(answer.headers.get('location', 'nowhere'))}, which is not followed"
    raise UnreachableError(f"{url} {what}, which is no health document; give the URL of a health check.")


def send_action(url: Url, parameters: Mapping[str, str], token: str, timeout: float) -> Answer:
    """Ask for what operators may ask for.

    :raises UnreachableError: there is no answer.
    """
    headers = {"Idempotency-Key": f"{int(time.time())}-{secrets.token_hex(8)}", "Content-Length": "0"}
    return ask("POST", url, urlencode(parameters), headers | _authorization(token), timeout)


def ask(method: str, url: Url, query: str, headers: Mapping[str, str], timeout: float) -> Answer:
    """Send one request and wait for the whole answer, so many seconds in all.

    :raises UnreachableError: there is none.
    """
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    outcome: list[Answer | Exception] = []

    def exchange() -> None:
        connection = kind(url.host, url.port, timeout=timeout)
        with contextlib.closing(connection):
            try:
                connection.request(method, f"{url.path or '/'}?{query}", headers={"User-Agent": _AGENT, **headers})
                response = connection.getresponse()
                names = {name.lower(): value for name, value in response.getheaders()}
                body = response.read(_LARGEST)
                if response.length and len(body) < _LARGEST:  # a read that is given a size does not tell
                    raise http.client.IncompleteRead(body)
                outcome.append(Answer(response.status, names, body))
            # A host or a header that cannot be written is a ValueError, also where it is no UnicodeError.
            except (OSError, http.client.HTTPException, ValueError) as error:
                outcome.append(error)

    thread = threading.Thread(target=exchange, name="lifecycle-ask", daemon=True)
    thread.start()
    thread.join(timeout)
    result = outcome[0] if outcome else TimeoutError()
    if isinstance(result, Answer):
        return result
    raise UnreachableError(f"{url} cannot be asked: {_cause(result, timeout)}.")


def wait_gone(url: Url, timeout: float) -> bool:
    """Wait until nobody listens there any more; ``False`` if somebody still does after so many seconds."""
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
    if not token.isprintable() or token != token.strip():  # http.client would say so, and show the token
        raise UnreachableError(
            "The token has a line break or a blank around it, which no header can hold; leave it out."
        )
    # As WSGI has it on the other side: bytes, each as one character.
    return {"Authorization": f"Bearer {token}".encode().decode("latin-1")}


def _cause(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole answer came within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it hung up without an answer"
    if isinstance(error, http.client.HTTPException):
        return "what came back is no HTTP"
    return visible(getattr(error, "strerror", None) or str(error) or type(error).__name__)
