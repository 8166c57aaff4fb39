"""Checks of what is reached over the network, by the standard library alone.

What they have in common is one bound on the whole: connecting (to every address of the name), the TLS handshake,
sending and reading share ``limit`` seconds. A timeout of a socket is a bound on one wait, and a server that sends a
byte a second would never reach it. Only the resolver cannot be bounded from here; what bounds it is the check's own
timeout, which is therefore set to half a second more than ``limit``.

The checks are ``scope = "shared"``: what they ask is asked by every replica, and a service that takes all its replicas
out of rotation because a dependency is down has turned a part of an outage into the whole of it.

No host, port, path or user is ever a part of what they report; errors of the library are chained for the log.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from . import _arguments, _certificate
from ._check import CheckResult, HealthCheckError

if TYPE_CHECKING:
    import os

# With the half second for the resolver this is the engine's own default of two seconds.
LIMIT = 1.5
_FOR_THE_RESOLVER = 0.5
# What a socket takes for a timeout ends somewhere, and a probe has been given up long before.
LONGEST = 3600.0
# Of an answer, head and body together. A health page has a few kilobytes, and nobody may fill our memory.
MOST_READ = 1 << 20

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# They say where the request ends, or that the connection does, which is ours to say.
_OUR_FIELDS = ("connection", "content-length", "transfer-encoding")

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (socket.gaierror, "The name cannot be resolved."),
    (ssl.SSLCertVerificationError, "The certificate is not trusted."),
    (ssl.SSLError, "The TLS connection failed."),
    (ConnectionRefusedError, "The connection was refused."),
    (ConnectionError, "The connection was closed before there was an answer."),
    (http.client.HTTPException, "The answer is not valid HTTP."),
    (OSError, "The connection could not be made."),
)


class HTTPCheck:
    """Ask an upstream over HTTP or HTTPS, and look at the status of its answer.

    One request on a connection of its own (``Connection: close``). Redirects are not followed, so nobody else decides
    which host is asked; a redirect is a status like any other. Proxies of the environment are not used. The certificate
    of an upstream is verified.

    :param url: ``http://`` or ``https://``; a user and password in it are sent as basic authentication and never shown.
    :param method: ``HEAD`` spares the upstream the body.
    :param statuses: the status or statuses that are well.
    :param contains: a text (UTF-8) or bytes that the body must contain, within the first mebibyte of the answer.
        Without it no body is read.
    :param headers: sent with the request, for example ``{"Authorization": "Bearer ..."}``; never shown.
    :param limit: seconds for everything but the resolver.
    :param context: for certificates of an authority of your own, or a client certificate.
    :param name: of the check. It is shown, so it should not be the URL.
    """

    scope = "shared"

    def __init__(
        self,
        url: str,
        *,
        method: str = "GET",
        statuses: int | Iterable[int] = range(200, 300),
        contains: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float = LIMIT,
        context: ssl.SSLContext | None = None,
        name: str = "upstream",
    ) -> None:
        _arguments.positive("limit", limit, "a number of seconds", LONGEST)
        self.name = name
        self.timeout = limit + _FOR_THE_RESOLVER
        self._limit = limit
        self._method = method
        self._statuses = _check_statuses(statuses)
        self._contains = _check_text(contains, method)
        self._host, self._port, secure, self._request = _prepare(url, method, headers or {})
        if context is not None and not secure:
            raise ValueError("'context' is for https; the URL begins with 'http://', which has no certificate.")
        self._context = context or (_trusting_context() if secure else None)

    def __call__(self) -> CheckResult:
        began = time.monotonic()
        with _reasons(self._limit), _connect(self._host, self._port, self._limit) as connection:
            connection.secure(self._context, self._host)
            connection.send(self._request)
            response = http.client.HTTPResponse(connection, method=self._method)  # type: ignore[arg-type]
            with contextlib.closing(response):
                response.begin()
                self._look_at(response)
        took = round((time.monotonic() - began) * 1000, 1)
        return CheckResult(observed={"status": response.status}, value=took, unit="ms")

    def _look_at(self, response: http.client.HTTPResponse) -> None:
        if response.status not in self._statuses:
            raise HealthCheckError(f"The answer has the status {response.status}, which is not expected.")
        if self._contains is not None and not _contains(response, self._contains):
            raise HealthCheckError("The answer does not contain the expected text.")


class TCPCheck:
    """Connect to a port, and close the connection without having sent anything.

    This shows that something listens, no more: the kernel completes the handshake also for a process that hangs.

    :param host: a name or an address; of several addresses one must answer.
    :param limit: seconds for everything but the resolver.
    """

    scope = "shared"

    def __init__(self, host: str, port: int, *, limit: float = LIMIT, name: str = "tcp") -> None:
        _arguments.positive("limit", limit, "a number of seconds", LONGEST)
        self.name = name
        self.timeout = limit + _FOR_THE_RESOLVER
        self._host = _arguments.host_name("host", host)
        self._port = _arguments.port_number(port)
        self._limit = limit

    def __call__(self) -> CheckResult:
        began = time.monotonic()
        with _reasons(self._limit), _connect(self._host, self._port, self._limit):
            return CheckResult(value=round((time.monotonic() - began) * 1000, 1), unit="ms")


class DNSCheck:
    """Resolve a name as every other connection of this process does (``getaddrinfo``: hosts file, cache, DNS).

    The resolver has no timeout that a caller could set; give the check's own ``timeout`` to ``add_check``. A resolver
    that hangs is then reported as hanging, and not asked again before it has come back.

    :param hostname: the name.
    :param expected: addresses or networks ("10.0.0.0/8"). The check fails if the name has an address outside of them,
        as when a name of the inside is answered by a resolver of the outside.
    """

    scope = "shared"

    def __init__(self, hostname: str, *, expected: str | Iterable[str] | None = None, name: str = "dns") -> None:
        self.name = name
        self._hostname = _arguments.host_name("hostname", hostname)
        self._expected = None if expected is None else _check_networks(expected)

    def __call__(self) -> CheckResult:
        with _reasons(0.0):
            found = socket.getaddrinfo(self._hostname, None, type=socket.SOCK_STREAM)
        addresses = {ipaddress.ip_address(address[0]) for *_rest, address in found}
        if self._expected is not None:
            strange = [each for each in addresses if not any(each in network for network in self._expected)]
            if strange:
                raise HealthCheckError(f"{len(strange)} of {len(addresses)} addresses of the name are not expected.")
        return CheckResult(observed={"addresses": len(addresses)}, value=len(addresses), unit="addresses")


class CertificateCheck:
    """See how long a certificate is valid: the one that a host shows, or those in a PEM file.

    It is about the dates and nothing else. Neither who signed the certificate nor which host it is for is verified, so
    that of an expired or self-signed one the date can be told as well (:class:`HTTPCheck` verifies). Of a host it sees
    the certificate of the host itself, not those of the authorities between; of a file all, and the first to expire
    counts. A host that asks for TLS only after some conversation (STARTTLS), or that ends the handshake of a client
    without a certificate, cannot be looked at.

    :param host: a name, which is also asked for in the handshake (SNI), or an address.
    :param path: a PEM file, in place of the host; what else it holds is passed over.
    :param warn_days: warn when fewer days are left; 14 is Spring Boot's default.
    :param fail_days: fail when fewer days are left, or with ``None`` only when it has expired.
    :param limit: seconds for everything but the resolver.
    """

    scope = "shared"

    def __init__(
        self,
        host: str | None = None,
        port: int = 443,
        *,
        path: str | os.PathLike[str] | None = None,
        warn_days: float | None = 14,
        fail_days: float | None = 3,
        limit: float = LIMIT,
        name: str = "certificate",
    ) -> None:
        if (host is None) == (path is None):
            raise TypeError("A CertificateCheck takes a 'host' or the 'path' of a file; give one of them.")
        _arguments.positive("limit", limit, "a number of seconds", LONGEST)
        self.name = name
        self.timeout = limit + _FOR_THE_RESOLVER
        if path is not None:
            self.scope = "local"
        self._host = None if host is None else _arguments.host_name("host", host)
        self._port = _arguments.port_number(port)
        self._path = "" if path is None else _arguments.file_path(path)
        self._warn, self._fail = _arguments.thresholds("days", warn_days, fail_days, "a number of days", falling=True)
        self._limit = limit

    def __call__(self) -> CheckResult:
        certificates = self._in_file() if self._host is None else self._of_host(self._host)
        try:
            validities = [_certificate.validity(der) for der in certificates]
        except ValueError as error:
            raise HealthCheckError("The certificate cannot be read.") from error
        return self._judge(max(each.begins for each in validities), min(each.ends for each in validities))

    def _judge(self, begins: datetime, ends: datetime) -> CheckResult:
        now = datetime.now(timezone.utc)
        days = (ends - now).total_seconds() / 86400
        status = _arguments.judge(days, self._warn, self._fail, falling=True)
        output = "" if status == "pass" else f"The certificate expires in {days:.1f} days; renew it."
        if days <= 0:
            status, output = "fail", f"The certificate expired {-days:.1f} days ago; renew it."
        elif begins > now:
            status, output = "fail", "The certificate is not valid yet."
        observed = {"days": round(days, 1), "expires": ends.isoformat()}
        return CheckResult(status, output, observed, round(days, 1), "days")

    def _of_host(self, host: str) -> list[bytes]:
        with _reasons(self._limit), _connect(host, self._port, self._limit) as connection:
            connection.secure(_trusting_anybody(), host)
            return [connection.peer_certificate()]

    def _in_file(self) -> list[bytes]:
        try:
            certificates = _certificate.read_pem(_arguments.read_beginning(self._path, MOST_READ))
        except (OSError, ValueError) as error:
            raise HealthCheckError("The file of the certificate cannot be read.") from error
        if not certificates:
            raise HealthCheckError("The file holds no certificate.")
        return certificates


# -- arguments --------------------------------------------------------------------------------------------------------


def _check_statuses(statuses: Any) -> frozenset[int]:
    try:
        given = frozenset([statuses] if isinstance(statuses, int) else statuses)
    except TypeError:
        given = frozenset()
    if not given or not all(isinstance(status, int) and 100 <= status <= 599 for status in given):
        raise ValueError(f"'statuses' must be a status from 100 to 599, or several of them, not {statuses!r}.")
    return given


def _check_text(text: Any, method: str) -> bytes | None:
    if text is None:
        return None
    if not isinstance(text, (str, bytes)) or not text:
        raise ValueError(f"'contains' must be a text or bytes, at least one character, not {text!r}.")
    if method == "HEAD":
        raise ValueError("'contains' cannot be combined with the method 'HEAD', whose answer has no body.")
    return text.encode() if isinstance(text, str) else text


def _check_networks(expected: str | Iterable[str]) -> list[Any]:
    try:
        networks = [ipaddress.ip_network(each) for each in ([expected] if isinstance(expected, str) else expected)]
    except (TypeError, ValueError):
        networks = []
    if not networks:
        raise ValueError(f"'expected' must be an IP address or network, or several of them, not {expected!r}.")
    return networks


def _prepare(url: Any, method: Any, headers: Mapping[str, str]) -> tuple[str, int, bool, bytes]:
    """Where to connect, whether by TLS, and the whole request. No error repeats the URL: it may hold a password."""
    # urlsplit takes line ends out without a word, and a blank would end the target of the request.
    if not isinstance(url, str) or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValueError("The URL must be a string of printable ASCII characters without blanks; quote what is not.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text holds a part of the URL
        raise ValueError("The URL cannot be understood; '/', '@', '?' and '#' in a password must be quoted.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("The URL must begin with 'http://' or 'https://' and name a host.")
    if not isinstance(method, str) or not re.fullmatch(r"[A-Z]+", method):
        raise ValueError(f"The method must be written in capital letters, as 'GET', not {method!r}.")
    secure = parts.scheme == "https"
    host = _arguments.host_name("host", parts.hostname)
    port = _arguments.port_number((443 if secure else 80) if port is None else port)
    fields = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "flask_lifecycle", "Accept": "*/*"}
    fields["Accept-Encoding"] = "identity"  # a text is not found in what is compressed
    if parts.username or parts.password:
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        fields["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    if method in ("PATCH", "POST", "PUT"):
        fields["Content-Length"] = "0"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = [f"{method} {target} HTTP/1.1", *_fields(fields, headers), "Connection: close", "", ""]
    return host, port, secure, "\r\n".join(head).encode("latin-1")


def _fields(ours: dict[str, str], given: Mapping[str, str]) -> Iterator[str]:
    """The lines of the head; what is given takes the place of ours. No error repeats what may be a secret."""
    for name, value in given.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError("A name in 'headers' is none; it has letters, digits and hyphens only, and no value.")
        if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"The value of the header '{name}' must be one line of Latin-1 characters.")
        if name.lower() in _OUR_FIELDS:
            raise ValueError(f"The header '{name}' is set by the check itself; leave it out.")
    replaced = {name.lower() for name in given}
    kept = {name: value for name, value in ours.items() if name.lower() not in replaced}
    return (f"{name}: {value}" for name, value in (kept | dict(given)).items())


# -- connections ------------------------------------------------------------------------------------------------------


@functools.cache
def _trusting_context() -> ssl.SSLContext:
    """The authorities of the machine; loading them takes longer than most requests, so once for all checks."""
    return ssl.create_default_context()


def _trusting_anybody() -> ssl.SSLContext:
    """For a look at a certificate; nothing is ever sent over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.contextmanager
def _reasons(limit: float) -> Iterator[None]:
    """Turn what goes wrong on the network into a sentence for the public, and the error into its cause."""
    try:
        yield
    except TimeoutError as error:
        raise HealthCheckError(f"There was no answer within {limit:g} s.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = next(sentence for kind, sentence in _REASONS if isinstance(error, kind))
        raise HealthCheckError(reason) from error


@contextlib.contextmanager
def _connect(host: str, port: int, limit: float) -> Iterator[_Connection]:
    """A connection to a host, for a while."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with _Connection(limit) as connection:
        connection.open_first(addresses)
        yield connection


class _Connection(io.RawIOBase):
    """A socket with one deadline for all that is done with it, and a bound on what is read.

    It is what ``http.client`` reads an answer from; at the bound it is at its end.
    """

    def __init__(self, limit: float) -> None:
        self._deadline = time.monotonic() + limit
        self._room = MOST_READ
        self._sock: Any = None

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time is over")
        return left

    def open_first(self, addresses: list[tuple[Any, ...]]) -> None:
        """Connect to the first address that answers.

        Each gets an equal part of what is left, so that one from which nothing comes back (an IPv6 address without a
        route) does not use up the time of the others.
        """
        *others, last = addresses
        for number, address in enumerate(others):
            with contextlib.suppress(OSError):
                self._open(address, len(addresses) - number)
                return
        self._open(last, 1)

    def _open(self, address: tuple[Any, ...], share: int) -> None:
        family, kind, protocol, _name, where = address
        if self._sock is not None:
            self._sock.close()
        self._sock = socket.socket(family, kind, protocol)
        self._sock.settimeout(self._left() / share)
        self._sock.connect(where)

    def secure(self, context: ssl.SSLContext | None, host: str) -> None:
        """Make a TLS connection of it, unless the context is ``None``. The timeout holds for the whole handshake."""
        if context is not None:
            self._sock.settimeout(self._left())
            self._sock = context.wrap_socket(self._sock, server_hostname=host)

    def peer_certificate(self) -> bytes:
        """What the other side has shown, verified or not, as DER."""
        return self._sock.getpeercert(binary_form=True) or b""

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def close(self) -> None:
        """Let go of the socket; twice is harmless."""
        if self._sock is not None:
            self._sock.close()
        super().close()

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What ``http.client`` asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._left())
        count = self._sock.recv_into(buffer, min(len(buffer), self._room)) if self._room else 0
        self._room -= count
        return count


def _contains(response: http.client.HTTPResponse, wanted: bytes) -> bool:
    """Read until the text is there, or the end. What has been searched is not searched again."""
    body = bytearray()
    while data := response.read1(65536):
        begin = max(0, len(body) - len(wanted) + 1)
        body += data
        if body.find(wanted, begin) >= 0:
            return True
    return False
