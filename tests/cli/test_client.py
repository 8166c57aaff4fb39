"""How ``status`` and ``drain`` talk to another process: one request, sent to nobody else, errors of a sentence."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests._raw_server import RawServer, Script, answer, repeating, resetting, saying, silent
from tests.cli.test_operators import invoke, no_environment, refused

__all__ = ["no_environment"]

HEALTHY = json.dumps({"status": "pass", "state": "READY"}).encode()
NO_DOCUMENT = "which is no health document; give the URL of a health check."


def test_a_health_document(serve: Callable[..., RawServer]) -> None:
    """The request asks for details, with the token if there is one; the document counts, and not the status."""
    server = serve(answer(HEALTHY, "503 Service Unavailable"))
    for arguments in ([], ["--token", "hüsh"]):
        result = invoke(None, "status", server.url, "--json", *arguments)
        assert (result.exit_code, json.loads(result.stdout)) == (0, json.loads(HEALTHY))
    first, second = (request.decode("latin-1") for request in server.requests)
    assert first.startswith("GET /healthcheck?verbose HTTP/1.1\r\n")
    assert "Accept: application/health+json" in first
    assert "User-Agent: flask-lifecycle\r\n" in first
    assert "Authorization" not in first
    assert "Authorization: Bearer hüsh\r\n".encode().decode("latin-1") in second


ANSWERS: list[tuple[Script, str]] = [
    *(
        (answer(body), f"answered 200, {NO_DOCUMENT}")
        for body in (
            b"", b"ok", b"[]", b'{"status": "up"}', b'{"status": ["pass"]}', b"\xff",
            '{"status": "pass"}'.encode("utf-16"), b"[" * 100_000,
        )
    ),
    # No more is read than any document is long, so an endless answer is cut.
    (repeating(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536), f"answered 200, {NO_DOCUMENT}"),
    (silent, "does not answer: no answer within 0.2 s."),
    (repeating(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"), "does not answer: the answer is not HTTP."),
    (saying(b""), "does not answer: the connection was closed without an answer."),
    (saying(b"SSH-2.0-OpenSSH\r\n\r\n"), "does not answer: the answer is not HTTP."),
    (resetting, "does not answer: Connection reset by peer."),
]  # fmt: skip


@pytest.mark.parametrize(("script", "sentence"), ANSWERS, ids=range(len(ANSWERS)))
def test_no_health_document(serve: Callable[..., RawServer], script: Script, sentence: str) -> None:
    """Anything else that is answered, or nothing in time, is one sentence."""
    server = serve(script)
    timeout = "0.2" if "within" in sentence else "10"
    result = invoke(None, "status", server.url, "--timeout", timeout)
    refused(result, f"{server.url}healthcheck {sentence}")


def test_the_token_is_for_nobody_else(serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect is reported and not followed, and no proxy of the environment is used."""
    other = serve(answer(HEALTHY))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, other.url)
    server = serve(answer(b"", "302 Found", Location=f"{other.url}\x1b"))
    result = invoke(None, "status", server.url, "--token", "hush")
    what = rf"redirects to {other.url}\x1b, which is not followed, {NO_DOCUMENT}"
    refused(result, f"{server.url}healthcheck {what}")
    assert other.connections == 0


def test_what_cannot_be_sent(serve: Callable[..., RawServer]) -> None:
    """A token or a host that cannot be sent, and TLS where there is none, are one sentence, without the token."""
    server = serve(answer(HEALTHY), reads=False)
    for token in ("secret\n", " secret", "sec\rret"):
        result = invoke(None, "status", server.url, "--token", token)
        refused(result, "The token begins or ends with a blank, or contains a line break; remove it.")
    assert server.connections == 0
    for url in (f"http://{'x' * 64}.example", server.url.replace("http:", "https:")):
        result = invoke(None, "status", url)
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
        assert "/healthcheck does not answer: " in result.stderr


def test_an_action(serve: Callable[..., RawServer]) -> None:
    """An action is a POST with the token; its answer is printed on one line, without escapes."""
    server = serve(answer(b"cordoned\x1b by\nme\n"))
    result = invoke(None, "cordon", server.url, "--for", "10m", "--by", "a&b", "--token", "hush")
    assert (result.exit_code, result.stdout) == (0, "cordoned\\x1b by me\n")
    [head] = [request.decode() for request in server.requests]
    assert head.startswith("POST /lifecycle/cordon?for=10m&by=a%26b HTTP/1.1\r\n")
    assert "Authorization: Bearer hush\r\n" in head
    assert "Content-Length: 0\r\n" in head


@pytest.mark.parametrize(
    ("status", "body", "code", "shown"),
    [
        ("409 Conflict", "not now", 1, "not now"),
        ("400 Bad Request", "no", 1, "no"),
        ("500 Oops", "oh\x1b[2J\nno", 2, "oh\\x1b[2J no"),
    ],
)
def test_an_action_that_is_refused(
    serve: Callable[..., RawServer], status: str, body: str, code: int, shown: str
) -> None:
    """What the process refuses is reported in its words with exit code 1, and any other answer with 2."""
    server = serve(answer(body.encode(), status))
    result = invoke(None, "drain", server.url, "--token", "hush")
    refused(result, f"{server.url}lifecycle/drain answered {status[:3]}: {shown}", code)


@pytest.mark.parametrize("error", [None, OSError(113, "No route to host")])
def test_an_end_that_does_not_come(
    serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    """A process that still listens, or of which the network says nothing, has not gone when the time is over."""
    server = serve(answer(b"draining\n", "202 Accepted"))
    connect: Any = socket.create_connection

    def connect_once(*arguments: Any, **options: Any) -> Any:
        if error is not None and server.connections:
            raise error
        return connect(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", connect_once)
        result = invoke(None, "drain", server.url, "--token", "hush", "--wait", "--timeout", "1")
    assert (result.exit_code, result.stdout) == (1, "draining\n")
    assert result.stderr == f"{server.url.rstrip('/')} is still there after 1 s.\n"
