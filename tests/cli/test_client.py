"""Talking to another process: one request, sent to nobody else, and errors that are one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flask_lifecycle._cli import client
from tests._fakes import BOUND, running, whole
from tests._raw_server import RawServer, Script, answer, repeating, resetting, saying, silent

HEALTHY = json.dumps({"status": "pass", "state": "READY"}).encode()


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers that follow a script; they are closed when the test is over."""
    servers: list[RawServer] = []

    def start(script: Script, *, reads: bool = True) -> tuple[RawServer, client.Url]:
        servers.append(RawServer(script, reads=reads))
        return servers[-1], client.Url.parse(servers[-1].url).at("/healthcheck")

    yield start
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:9000", client.Url("http", "127.0.0.1", 9000, "")),
        ("127.0.0.1:9000", client.Url("http", "127.0.0.1", 9000, "")),
        ("localhost", client.Url("http", "localhost", 80, "")),
        ("https://shop.example/ops/", client.Url("https", "shop.example", 443, "/ops")),
        ("http://[::1]:9000/healthcheck?x=1", client.Url("http", "::1", 9000, "/healthcheck")),
    ],
)
def test_urls(text: str, url: client.Url) -> None:
    """A URL needs no scheme, and what is behind its path does not matter."""
    assert client.Url.parse(text) == url
    assert str(client.Url.parse(str(url))) == str(url)


@pytest.mark.parametrize(
    "text",
    ["", "http://", "ftp://a", "http://a:b", "http://a:99999", "http://[::1", "http://me:secret@a", "a\nb", "\x1b[2J"],
)
def test_what_is_no_url(text: str) -> None:
    """Everything else is refused in a sentence that holds nothing of it but what can be seen."""
    message = f"'{ascii(text)[1:-1]}' is not a URL of a process; give one such as 'http://127.0.0.1:9000'."
    with pytest.raises(ValueError, match=whole(message)):
        client.Url.parse(text)


def test_a_health_document(serve: Any) -> None:
    """The request asks for details, with the token if there is one; what counts is the document, not the status."""
    server, url = serve(answer(HEALTHY, "503 Service Unavailable"))
    assert client.fetch_health(url, None, BOUND) == json.loads(HEALTHY)
    client.fetch_health(url, "hüsh", BOUND)
    first, second = (request.decode("latin-1") for request in server.requests)
    assert first.startswith("GET /healthcheck?verbose HTTP/1.1\r\n")
    assert "Accept: application/health+json" in first
    assert "User-Agent: flask-lifecycle\r\n" in first
    assert "Authorization" not in first
    assert "Authorization: Bearer hüsh\r\n".encode().decode("latin-1") in second


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"[]",
        b'{"status": "up"}',
        b'{"status": ["pass"]}',
        b"\xff",
        '{"status": "pass"}'.encode("utf-16"),
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_health_document(serve: Any, body: bytes) -> None:
    """Anything else that is answered is none."""
    _server, url = serve(answer(body))
    with pytest.raises(
        client.UnreachableError,
        match=whole(f"{url} answered 200, which is no health document; give the URL of a health check."),
    ):
        client.fetch_health(url, None, BOUND)


def test_the_token_is_for_nobody_else(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is told and not followed, and no proxy of the environment is used."""
    other, elsewhere = serve(answer(HEALTHY))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, str(elsewhere.at("")))
    _server, url = serve(answer(b"", "302 Found", Location=f"{elsewhere}\x1b"))
    message = rf"redirects to {re.escape(str(elsewhere))}\\x1b, which is not followed"
    with pytest.raises(client.UnreachableError, match=message):
        client.fetch_health(url, "hush", BOUND)
    assert other.connections == 0


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (silent, "no answer within 0.2 s"),
        (repeating(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"), "the answer is not HTTP"),
        (saying(b""), "the connection was closed without an answer"),
        (saying(b"SSH-2.0-OpenSSH\r\n\r\n"), "the answer is not HTTP"),
        (resetting, "Connection reset by peer"),
    ],
)  # fmt: skip
def test_no_answer(serve: Any, script: Script, cause: str) -> None:
    """Whatever does not answer in time and in HTTP is one sentence."""
    _server, url = serve(script)
    timeout = 0.2 if "within" in cause else BOUND
    with pytest.raises(client.UnreachableError, match=whole(f"{url} does not answer: {cause}.")):
        client.ask("GET", url, "verbose", {}, timeout)


def test_nobody_listens() -> None:
    """A port that nobody listens at is told as such."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(
        client.UnreachableError, match=whole(f"http://127.0.0.1:{port}/ does not answer: the connection is refused.")
    ):
        client.fetch_health(client.Url("http", "127.0.0.1", port, "/"), None, BOUND)


def test_what_cannot_be_written() -> None:
    """A token or a host that cannot be sent is one sentence, too, and does not show the token."""
    url = client.Url("http", "127.0.0.1", 9, "/")
    sentence = "The token begins or ends with a blank, or contains a line break; remove it."
    for token in ("secret\n", " secret", "sec\rret"):
        with pytest.raises(client.UnreachableError, match=whole(sentence)):
            client.fetch_health(url, token, BOUND)
    with pytest.raises(client.UnreachableError, match="does not answer: "):
        client.ask("GET", dataclasses.replace(url, host="x" * 64 + ".example"), "", {}, BOUND)


def test_an_endless_answer_is_cut(serve: Any) -> None:
    """No more is read than any document is long."""
    _server, url = serve(repeating(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536))
    assert len(client.ask("GET", url, "", {}, BOUND).body) == 8 << 20


def test_tls_needs_a_server_that_has_it(serve: Any) -> None:
    """A URL with https is asked by TLS, and by nothing else."""
    _server, url = serve(answer(HEALTHY), reads=False)
    with pytest.raises(
        client.UnreachableError, match=r"^https://127\.0\.0\.1:\d+/healthcheck does not answer: .*(?i:ssl|version)"
    ):
        client.fetch_health(dataclasses.replace(url, scheme="https"), None, BOUND)


def test_an_action(serve: Any) -> None:
    """An action is a POST with the token, and is sent again as it was."""
    server, url = serve(answer(b"cordoned\x1b by\nme\n"))
    for _ in range(2):
        found = client.send_action(url, {"for": "10m", "by": "a&b"}, "hush", BOUND)
    assert (found.status, found.sentence) == (200, r"cordoned\x1b by me")
    heads = [request.decode() for request in server.requests]
    assert all(head.startswith("POST /healthcheck?for=10m&by=a%26b HTTP/1.1\r\n") for head in heads)
    assert all("Authorization: Bearer hush\r\n" in head and "Content-Length: 0\r\n" in head for head in heads)
    assert heads[0] == heads[1]


def test_the_end_is_waited_for() -> None:
    """Who has gone is known by nobody listening there any more."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = client.Url("http", "127.0.0.1", listener.getsockname()[1], "")
    assert not client.wait_gone(url, 0.1)
    gone: list[bool] = []
    with running(lambda: gone.append(client.wait_gone(url, BOUND))), listener.accept()[0]:
        listener.close()
    assert gone == [True]


def test_no_word_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is down says nothing about the process."""
    asked = threading.Event()

    def fail(*arguments: Any) -> Any:
        asked.set()
        raise OSError(113, "No route to host")

    monkeypatch.setattr(socket, "create_connection", fail)
    assert not client.wait_gone(client.Url("http", "127.0.0.1", 9, ""), 0.1)
    assert asked.is_set()
