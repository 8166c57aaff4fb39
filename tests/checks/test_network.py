"""Checks over the network: HTTP, TCP, DNS and certificates, against real servers on the loopback."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import Check, CheckResult, HealthCheckError, Lifecycle
from flask_lifecycle.checks import CertificateCheck, DNSCheck, HTTPCheck, TCPCheck
from tests._fakes import BOUND, fails
from tests._raw_server import RawServer, answer, repeating, resetting, saying, silent
from tests._tls import Authority, from_now, serving
from tests.live._client import free_port

# A check that should come to an end by its limit gets this one, every other more than it can need.
SHORT = 0.3


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that no machine trusts."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def refusing() -> int:
    """A port without a listener."""
    return free_port()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that answers no handshake: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("127.0.0.1", port))
        yield port
        for sock in waiting:
            sock.close()


def test_an_upstream_that_answers_is_well(serve: Callable[..., RawServer]) -> None:
    """The check passes, with the status and the milliseconds, after one request that closes its connection."""
    server = serve(answer())
    result = HTTPCheck(f"{server.url}health?full=1#top", limit=BOUND)()
    assert (result.status, result.output, result.observed, result.unit) == ("pass", "", {"status": 200}, "ms")
    assert isinstance(result.value, float)
    assert 0 < result.value < BOUND * 1000
    assert server.requests == [
        b"GET /health?full=1 HTTP/1.1\r\n"
        b"Host: 127.0.0.1:%d\r\nUser-Agent: flask_lifecycle\r\nAccept: */*\r\n"
        b"Accept-Encoding: identity\r\nConnection: close\r\n\r\n" % server.port
    ]


def test_an_upstream_that_is_hung_or_dead(serve: Callable[..., RawServer], refusing: int) -> None:
    """A server that says nothing fails over HTTP, and passes over TCP, which only connects; one that has gone fails."""
    hung = serve(silent)
    error = fails(HTTPCheck(hung.url, limit=SHORT), "There was no answer within 0.3 s.")
    assert isinstance(error.__cause__, TimeoutError)
    port = TCPCheck("127.0.0.1", hung.port, limit=BOUND)()
    assert (port.status, port.observed, port.unit) == ("pass", {}, "ms")
    for check in (HTTPCheck(f"http://127.0.0.1:{refusing}/"), TCPCheck("127.0.0.1", refusing)):
        error = fails(check, "The connection was refused.")
        assert isinstance(error.__cause__, ConnectionRefusedError)


def test_a_handshake_without_an_answer(black_hole: int) -> None:
    """A connection that is never accepted ends at the limit."""
    for check in (
        HTTPCheck(f"http://127.0.0.1:{black_hole}/", limit=SHORT),
        TCPCheck("127.0.0.1", black_hole, limit=SHORT),
    ):
        fails(check, "There was no answer within 0.3 s.")


def test_several_addresses(serve: Callable[..., RawServer], black_hole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that hangs and one that refuses leave time for the next; after one that works no other is tried."""
    ports = [black_hole, 1, serve(answer()).port, 1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    assert HTTPCheck("http://several.test/", limit=3)().status == "pass"


def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no socket can be created the check fails with a sentence."""

    def refuse(*_args: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    fails(TCPCheck("127.0.0.1", 1), "The connection could not be made.")


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSED = "The connection was closed before there was an answer."
NOT_FOUND = "The answer does not contain the expected text."
NOT_HTTP = "The answer is not valid HTTP."
FAILURES = {
    "reset": (resetting, CLOSED),
    "closed without a byte": (saying(b""), CLOSED),
    # An endless answer is read to a mebibyte, wherever it has no end.
    "endless body": (repeating(HEAD + b"\r\n", b"x" * 65536), NOT_FOUND),
    "long body": (repeating(HEAD + b"Content-Length: 999999999999\r\n\r\n", b"x" * 65536), NOT_FOUND),
    "endless header": (repeating(HEAD + b"X: ", b"x" * 65536), NOT_HTTP),
    "endless headers": (repeating(HEAD, b"X: x\r\n" * 1000), NOT_HTTP),
    "endless continue": (repeating(b"", CONTINUE * 1000), NOT_HTTP),
    # Another protocol, or a broken server.
    "SSH": (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), NOT_HTTP),
    "TLS": (saying(b"\x15\x03\x01\x00\x02\x02\x0a"), NOT_HTTP),
    "empty lines": (saying(b"\r\n\r\n"), NOT_HTTP),
    "no number": (saying(b"HTTP/1.1 abc OK\r\n\r\n"), NOT_HTTP),
    "negative status": (saying(b"HTTP/1.1 -1 OK\r\n\r\n"), NOT_HTTP),
    "low status": (saying(b"HTTP/1.1 99 low\r\n\r\n"), NOT_HTTP),
    "high status": (saying(b"HTTP/1.1 1000 high\r\n\r\n"), NOT_HTTP),
    "version": (saying(b"HTTP/9.9 200 OK\r\n\r\n"), NOT_HTTP),
    "long status line": (saying(b"HTTP/1.1 200 " + b"x" * 70000 + b"\r\n\r\n"), NOT_HTTP),
    "broken chunk": (saying(CHUNKED + b"zz\r\nok"), NOT_HTTP),
}


@pytest.mark.parametrize(("script", "output"), FAILURES.values(), ids=FAILURES.keys())
def test_broken_answers(serve: Callable[..., RawServer], script: Any, output: str) -> None:
    """An answer that is cut off, endless or not HTTP has its own sentence."""
    fails(HTTPCheck(serve(script).url, limit=BOUND, contains="ok"), output)


def test_a_name_that_cannot_be_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver error has its own sentence, and its text is only logged."""

    def refuse(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for check in (
        HTTPCheck("http://no.test/"),
        TCPCheck("no.test", 1),
        DNSCheck("no.test"),
        CertificateCheck("no.test"),
    ):
        error = fails(check, "The name cannot be resolved.")
        assert isinstance(error.__cause__, socket.gaierror)


@pytest.mark.parametrize(
    ("begin", "again"),
    [(b"", b"H"), (HEAD + b"X: ", b"x"), (HEAD + b"\r\n", b"x"), (CHUNKED, b"1\r\nx\r\n"), (b"", CONTINUE)],
    ids=["status-line", "header", "body", "chunks", "continue"],
)
def test_one_limit_holds_for_all_reads(serve: Callable[..., RawServer], begin: bytes, again: bytes) -> None:
    """A server that sends a little again and again is cut off at the limit; a tiny one does not become none."""
    server = serve(repeating(begin, again, pause=0.02))
    fails(HTTPCheck(server.url, limit=SHORT, contains="never"), "There was no answer within 0.3 s.")
    fails(HTTPCheck(server.url, limit=1e-9), "There was no answer within 1e-09 s.")


def test_a_body_is_not_read_unless_it_is_looked_at(serve: Callable[..., RawServer]) -> None:
    """Without a text to find the head is enough: an endless body does not block the check."""
    server = serve(repeating(b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause=0.02))
    assert HTTPCheck(server.url, limit=BOUND)().status == "pass"


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n5\r\n well\r\n"


@pytest.mark.parametrize(
    ("script", "text", "found"),
    [
        # A stream is not read to its end once the text has come, also in two pieces or chunks.
        (repeating(b"HTTP/1.1 200 OK\r\n\r\n..all well", b"1\r\nx\r\n", pause=0.02), "all well", True),
        (repeating(CHUNKS, b"1\r\nx\r\n", pause=0.02), "all well", True),
        (answer('{"\u00e9tat": "bien"}'.encode()), '"\u00e9tat": "bien"', True),
        (answer('{"\u00e9tat": "bien"}'.encode()), b"\xc3\xa9tat", True),
        (answer(b"all"), "mal", False),
        (answer(b"all", Content_Length="8"), "all well", False),
    ],
)
def test_a_text_in_the_body(serve: Callable[..., RawServer], script: Any, text: str | bytes, found: bool) -> None:
    """A text means its UTF-8 bytes; a body without it fails, and so does one that is cut short."""
    check = HTTPCheck(serve(script).url, limit=BOUND, contains=text)
    if found:
        assert check().status == "pass"
    else:
        with pytest.raises(
            HealthCheckError, match=r"^The answer (does not contain the expected text|is not valid HTTP)"
        ):
            check()


@pytest.mark.parametrize(
    ("statuses", "well", "bad"),
    [(range(200, 300), (200, 204, 299), (300, 404, 503)), (401, (401,), (200,)), ({200, 404}, (200, 404), (204,))],
)
def test_the_status_decides(
    serve: Callable[..., RawServer], statuses: Any, well: tuple[int, ...], bad: tuple[int, ...]
) -> None:
    """A status among the expected ones passes, any other fails and is named."""
    for status in (*well, *bad):
        check = HTTPCheck(serve(answer(b"", f"{status} x")).url, limit=BOUND, statuses=statuses)
        if status in well:
            assert check().observed == {"status": status}
        else:
            fails(check, f"The answer has the status {status}, which is not expected.")


def test_neither_redirects_nor_proxies_are_followed(
    serve: Callable[..., RawServer], refusing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redirect is a status like any other, and proxies in the environment are ignored."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{refusing}")
    other = serve(answer())
    server = serve(answer(b"", "302 Found", Location=other.url))
    fails(HTTPCheck(server.url, limit=BOUND), "The answer has the status 302, which is not expected.")
    assert HTTPCheck(server.url, limit=BOUND, statuses=302)().status == "pass"
    assert other.connections == 0


def test_method_and_headers_are_sent(serve: Callable[..., RawServer]) -> None:
    """Given headers replace the own ones; POST sends a length of zero, and HEAD awaits no body."""
    server = serve(answer(b"", Content_Length="100"))
    headers = {"host": "inner.test", "Authorization": "Bearer abc", "user-agent": "probe"}
    assert HTTPCheck(server.url, method="POST", headers=headers, limit=BOUND)().status == "pass"
    assert HTTPCheck(server.url, method="HEAD", limit=BOUND)().status == "pass"
    assert server.requests[0] == (
        b"POST / HTTP/1.1\r\nAccept: */*\r\nAccept-Encoding: identity\r\nContent-Length: 0\r\nhost: inner.test\r\n"
        b"Authorization: Bearer abc\r\nuser-agent: probe\r\nConnection: close\r\n\r\n"
    )
    assert server.requests[1].startswith(b"HEAD / HTTP/1.1\r\n")


def test_a_password_is_sent_and_never_shown(
    serve: Callable[..., RawServer], refusing: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The user and password of the URL are sent as basic authentication, and are in no text, repr, log or cause."""
    server = serve(answer())
    url = server.url.replace("//", "//us%65r:s3cret%40%C3%A9@")
    assert HTTPCheck(url, limit=BOUND)().status == "pass"
    assert b"\r\nAuthorization: Basic dXNlcjpzM2NyZXRAw6k=\r\n" in server.requests[0]
    assert b"s3cret" not in server.requests[0]
    check = HTTPCheck(url.replace(str(server.port), str(refusing)), limit=BOUND)
    caplog.set_level(logging.DEBUG)
    error = fails(check, "The connection was refused.")
    logging.getLogger("test").warning("%r %s", check, Check.of(check), exc_info=error)
    assert "s3cret" not in caplog.text
    assert "127.0.0.1" not in str(error)
    assert "s3cret" not in repr(error.__cause__)


def test_https_with_a_certificate_of_ones_own_authority(serve: Callable[..., RawServer], authority: Authority) -> None:
    """The check passes when the certificate is valid for the host and signed by whom the context trusts."""
    server = serve(answer(b"all well"), serving(authority.issue("valid")))
    check = HTTPCheck(server.url, limit=BOUND, context=authority.trusting(), contains="well")
    assert check().status == "pass"
    by_name = server.url.replace("127.0.0.1", "localhost")
    assert HTTPCheck(by_name, limit=BOUND, context=authority.trusting())().status == "pass"


@pytest.mark.parametrize(
    ("name", "options", "trusted"),
    [
        ("expired", {"begins": from_now(days=-9), "ends": from_now(days=-1)}, True),
        ("early", {"begins": from_now(days=1)}, True),
        ("other", {"hosts": ["other.test"]}, True),
        ("stranger", {"trusted": False}, True),
        ("unknown", {}, False),
    ],
)
def test_https_verifies(
    serve: Callable[..., RawServer], authority: Authority, name: str, options: dict[str, Any], trusted: bool
) -> None:
    """Nothing is sent to a host whose certificate is expired, not valid yet, for another host, or not trusted."""
    server = serve(answer(), serving(authority.issue(name, **options)))
    context = authority.trusting() if trusted else None
    error = fails(HTTPCheck(server.url, limit=BOUND, context=context), "The certificate is not trusted.")
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert b"".join(server.requests) == b""


def test_a_server_without_tls(serve: Callable[..., RawServer]) -> None:
    """A server without TLS has its own sentence."""
    server = serve(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), reads=False)
    url = server.url.replace("http:", "https:")
    for check in (HTTPCheck(url, limit=BOUND), CertificateCheck("127.0.0.1", server.port, limit=BOUND)):
        fails(check, "The TLS connection failed.")


@pytest.mark.parametrize("script", [silent, repeating(b"\x16\x03\x03\x40\x00", b"\x02", pause=0.02)])
def test_the_limit_holds_for_the_tls_handshake(serve: Callable[..., RawServer], script: Any) -> None:
    """A handshake that is never answered, or a byte at a time, ends at the limit."""
    server = serve(script, reads=False)
    url = server.url.replace("http:", "https:")
    for check in (HTTPCheck(url, limit=SHORT), CertificateCheck("127.0.0.1", server.port, limit=SHORT)):
        fails(check, "There was no answer within 0.3 s.")


def test_no_descriptor_is_left_over(authority: Authority, refusing: int, black_hole: int) -> None:
    """The sockets of a check are closed when it returns, whether it passes or fails."""
    certificate = serving(authority.issue("leftover"))
    context = authority.trusting()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    plain = RawServer(repeating(b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause=0.02))
    tls = RawServer(answer(), certificate)
    gc.disable()  # closed, and not left to be found
    try:
        HTTPCheck(plain.url, limit=BOUND)()
        fails(HTTPCheck(plain.url, limit=SHORT, contains="never"), "There was no answer within 0.3 s.")
        fails(HTTPCheck(tls.url, limit=BOUND), "The certificate is not trusted.")
        HTTPCheck(tls.url, limit=BOUND, context=context)()
        fails(TCPCheck("127.0.0.1", refusing), "The connection was refused.")
        fails(TCPCheck("127.0.0.1", black_hole, limit=SHORT), "There was no answer within 0.3 s.")
        CertificateCheck("127.0.0.1", tls.port, limit=BOUND)()
    finally:
        plain.close()
        tls.close()
        after = len(os.listdir("/proc/self/fd"))
        gc.enable()
    assert after == before


def test_a_name_that_resolves_is_well() -> None:
    """The number of addresses is in the result, the addresses are not."""
    result = DNSCheck("localhost")()
    assert result == CheckResult("pass", "", {"addresses": result.value}, result.value, "addresses")
    assert DNSCheck("127.0.0.1", expected="127.0.0.1")().value == 1
    assert DNSCheck("::1", expected=["10.0.0.0/8", "::/64"])().value == 1
    assert DNSCheck("localhost", expected=["127.0.0.0/8", "::1"])().status == "pass"


def test_addresses_that_are_not_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address outside of the expected ones fails, whatever the others are."""
    addresses = [("10.0.0.1", 0), ("203.0.113.9", 0), ("fe80::1%1", 0, 0, 1)]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    assert DNSCheck("name.test")().value == 3
    fails(DNSCheck("name.test", expected="10.0.0.0/8"), "2 of 3 addresses of the name are not expected.")
    assert DNSCheck("name.test", expected=["10.0.0.0/8", "203.0.113.0/24", "fe80::/10"])().value == 3


EXPIRED = {"begins": from_now(days=-9), "ends": from_now(days=-5, hours=-1)}


@pytest.mark.parametrize(
    ("name", "options", "status", "output"),
    [
        ("c60", {"ends": from_now(days=60, hours=1)}, "pass", ""),
        ("c60self", {"ends": from_now(days=60, hours=1), "trusted": False}, "pass", ""),
        ("c60other", {"ends": from_now(days=60, hours=1), "hosts": ["other.test"]}, "pass", ""),
        ("c13", {"ends": from_now(days=13, hours=1)}, "warn", "The certificate expires in 13.0 days; renew it."),
        ("c2", {"ends": from_now(days=2, hours=1)}, "fail", "The certificate expires in 2.0 days; renew it."),
        ("c-5", EXPIRED, "fail", "The certificate expired 5.0 days ago; renew it."),
        ("c-5self", {**EXPIRED, "trusted": False}, "fail", "The certificate expired 5.0 days ago; renew it."),
        ("early60", {"begins": from_now(days=2)}, "fail", "The certificate is not valid yet."),
    ],
)
def test_the_days_of_a_hosts_certificate(
    serve: Callable[..., RawServer], authority: Authority, name: str, options: dict[str, Any], status: str, output: str
) -> None:
    """The days are right for any certificate, trusted or not, for this host or not."""
    certificate = authority.issue(name, **options)
    server = serve(answer(), serving(certificate))
    result = CertificateCheck("127.0.0.1", server.port, limit=BOUND)()
    assert (result.status, result.output, result.unit) == (status, output, "days")
    ends = options.get("ends")
    if ends is not None:
        assert result.observed["expires"] == ends.replace(microsecond=0).isoformat()
        assert result.value == pytest.approx((ends - datetime.now(timezone.utc)).total_seconds() / 86400, abs=0.11)
    in_file = CertificateCheck(path=certificate)()
    assert (in_file.status, in_file.output) == (status, output)


def test_certificates_in_files(authority: Authority, tmp_path: Path) -> None:
    """Thresholds can be changed or switched off, and the first of several to expire counts."""
    certificate = authority.issue("thresholds", ends=from_now(days=10))
    expired = authority.issue("thresholds-expired", begins=from_now(days=-9), ends=from_now(seconds=-60))
    assert CertificateCheck(path=certificate, warn_days=9)().status == "pass"
    assert CertificateCheck(path=certificate, fail_days=11)().status == "fail"
    assert CertificateCheck(path=certificate, warn_days=None, fail_days=None)().status == "pass"
    assert CertificateCheck(path=expired, warn_days=None, fail_days=None)().status == "fail"
    ends = datetime(2061, 2, 3, 4, 5, 6, tzinfo=timezone.utc)  # dates from 2050 on have another format
    long, short = authority.issue("long", ends=ends), authority.issue("short", ends=from_now(days=5, hours=1))
    result = CertificateCheck(path=long)()
    assert (result.status, result.observed["expires"]) == ("pass", "2061-02-03T04:05:06+00:00")
    for order in ((long, short), (short, long)):
        (tmp_path / "chain.pem").write_bytes(b"some text\n".join(path.read_bytes() for path in order))
        assert CertificateCheck(path=tmp_path / "chain.pem")().value == 5.0


def test_the_bytes_of_a_certificate(authority: Authority, tmp_path: Path) -> None:
    """The date is that which the standard library reads; broken bytes fail in one sentence and raise nothing else."""
    path = tmp_path / "certificate.pem"
    der = ssl.PEM_cert_to_DER_cert((authority.home / "authority.crt").read_text())
    [read] = [each for each in authority.trusting().get_ca_certs() if isinstance(each, dict)]
    expires = datetime.fromisoformat(CertificateCheck(path=authority.home / "authority.crt")().observed["expires"])
    assert expires.timestamp() == ssl.cert_time_to_seconds(str(read["notAfter"]))
    chance = random.Random(7)

    def written(data: bytes) -> CertificateCheck:
        path.write_text(ssl.DER_cert_to_PEM_cert(data))
        return CertificateCheck(path=path)

    for length in range(1, len(der)):
        fails(written(der[:length]), "The certificate cannot be read.")
    for _ in range(2000):
        spoilt = bytearray(der)
        for _ in range(chance.randint(1, 4)):
            spoilt[chance.randrange(len(der))] = chance.randrange(256)
        with contextlib.suppress(HealthCheckError):
            written(bytes(spoilt))()


def test_a_file_without_a_certificate(authority: Authority, tmp_path: Path) -> None:
    """A missing file, a directory, a pipe, a key, and a broken certificate: each fails in a sentence."""
    path = tmp_path / "certificate.pem"
    check = CertificateCheck(path=path)
    fails(check, "The certificate file cannot be read.")
    path.mkdir()
    fails(check, "The file contains no certificate.")
    path.rmdir()
    os.mkfifo(path)
    fails(check, "The file contains no certificate.")
    path.unlink()
    path.write_bytes(authority.key.read_bytes())
    fails(check, "The file contains no certificate.")
    path.write_text("-----BEGIN CERTIFICATE-----\nMA\n-----END CERTIFICATE-----\n")
    fails(check, "The certificate file cannot be read.")
    path.write_text("-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n")
    fails(check, "The certificate cannot be read.")


def test_scopes_and_timeouts() -> None:
    """They are shared, but for a file, and their timeout has half a second more for the resolver; all can be added."""
    lifecycle = Lifecycle()
    checks: list[Any] = [HTTPCheck("https://h/", limit=3), TCPCheck("h", 1, limit=3), CertificateCheck("h", limit=3)]
    for check in (*checks, DNSCheck("h"), CertificateCheck(path="p", name="file")):
        lifecycle.add_check(check)
    assert [(check.timeout, check.scope) for check in checks] == [(3.5, "shared")] * 3
    assert [Check.of(each).name for each in (*checks, DNSCheck("h"))] == ["upstream", "tcp", "certificate", "dns"]
    assert Check.of(HTTPCheck("http://h/")).timeout == 2.0
    assert (DNSCheck("h").scope, CertificateCheck(path="p").scope) == ("shared", "local")
