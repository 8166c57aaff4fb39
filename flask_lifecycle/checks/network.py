"""Network checks, by the standard library alone.

One limit holds for the whole check: connecting (to each address of the name), the TLS handshake, sending and reading
share ``limit`` seconds. The timeout of a socket limits only one wait, and a server that sends a byte a second would
never reach it. Only the resolver cannot be limited here. The check's own timeout limits it, and is therefore half a
second more than ``limit``.

The checks are ``scope = "shared"``: every replica asks the same service, and taking all replicas out of rotation turns
a partial outage into a full one.

Reports contain no host, port, path or user; the library's errors are chained for the log.
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
from typing import Any
from urllib.parse import unquote, urlsplit

from . import _validation
from ._check import CheckResult, HealthCheckError

# With the half second for the resolver this is the engine's default of two seconds.
LIMIT = 1.5
FOR_THE_RESOLVER = 0.5
# The timeout of a socket has an upper bound, and no probe waits that long.
LONGEST = 3600.0
# Head and body together. A health page has a few kilobytes; a server must not be able to fill our memory.
MOST_READ = 1 << 20

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# They define where the request and the connection end, which the check decides.
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
    """Sends a request over HTTP or HTTPS and checks the status of the response.

    Each run uses a new connection (``Connection: close``). Redirects are not followed, so only the configuration
    decides which host is asked; a redirect is a status like any other. Proxies of the environment are not used.
    Certificates are verified.

    :param url: ``http://`` or ``https://``; a user and password in it are sent as basic authentication and never shown.
    :param method: ``HEAD`` saves the upstream the body.
    :param statuses: the status or statuses that pass.
    :param contains: a text (UTF-8) or bytes that the body must contain, within the first mebibyte of the response.
        Without it no body is read.
    :param headers: sent with the request, for example ``{"Authorization": "Bearer ..."}``; never shown.
    :param limit: seconds for everything but the resolver.
    :param context: for certificates of your own authority, or a client certificate.
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
        _validation.positive("limit", limit, "a number of seconds", LONGEST)
        self.name = name
        self.timeout = limit + FOR_THE_RESOLVER
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
        with reasons(self._limit), connect(self._host, self._port, self._limit) as connection:
            if self._context is not None:
                connection.secure(self._context, self._host)
            connection.send(self._request)
            response = http.client.HTTPResponse(connection, method=self._method)  # type: ignore[arg-type]
            with contextlib.closing(response):
                response.begin()
                if response.status not in self._statuses:
                    raise HealthCheckError(f"The answer has the status {response.status}, which is not expected.")
                if self._contains is not None and not _contains(response, self._contains):
                    raise HealthCheckError("The answer does not contain the expected text.")
        took = round((time.monotonic() - began) * 1000, 1)
        return CheckResult(observed={"status": response.status}, value=took, unit="ms")


class TCPCheck:
    """Connects to a port, and closes the connection without sending anything.

    This only shows that a process listens: the kernel completes the handshake even if that process hangs.

    :param host: a name or an address; of several addresses one must answer.
    :param limit: seconds for everything but the resolver.
    """

    scope = "shared"

    def __init__(self, host: str, port: int, *, limit: float = LIMIT, name: str = "tcp") -> None:
        _validation.positive("limit", limit, "a number of seconds", LONGEST)
        self.name = name
        self.timeout = limit + FOR_THE_RESOLVER
        self._host = _validation.host_name("host", host)
        self._port = _validation.port_number(port)
        self._limit = limit

    def __call__(self) -> CheckResult:
        began = time.monotonic()
        with reasons(self._limit), connect(self._host, self._port, self._limit):
            return CheckResult(value=round((time.monotonic() - began) * 1000, 1), unit="ms")


class DNSCheck:
    """Resolves a name as every other connection of this process does (``getaddrinfo``: hosts file, cache, DNS).

    The resolver has no timeout that a caller can set; give the check's own ``timeout`` to ``add_check``. A resolver
    that hangs is reported as hanging, and not asked again before it returns.

    :param hostname: the name.
    :param expected: addresses or networks ("10.0.0.0/8"). The check fails if the name has an address outside of them,
        for example if a public resolver answers for an internal name.
    """

    scope = "shared"

    def __init__(self, hostname: str, *, expected: str | Iterable[str] | None = None, name: str = "dns") -> None:
        self.name = name
        self._hostname = _validation.host_name("hostname", hostname)
        self._expected = None if expected is None else _check_networks(expected)

    def __call__(self) -> CheckResult:
        with reasons(0.0):
            found = socket.getaddrinfo(self._hostname, None, type=socket.SOCK_STREAM)
        addresses = {ipaddress.ip_address(address[0]) for *_rest, address in found}
        if self._expected is not None:
            outside = [each for each in addresses if not any(each in network for network in self._expected)]
            if outside:
                raise HealthCheckError(f"{len(outside)} of {len(addresses)} addresses of the name are not expected.")
        return CheckResult(observed={"addresses": len(addresses)}, value=len(addresses), unit="addresses")


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
    """The host, the port, whether to use TLS, and the request. No error repeats the URL: it may hold a password."""
    # urlsplit silently removes line ends, and a blank would end the target of the request.
    if not isinstance(url, str) or not re.fullmatch(r"[\x21-\x7e]+", url):
        raise ValueError("The URL must be a string of printable ASCII characters without blanks; quote all others.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text contains a part of the URL
        raise ValueError("The URL is not valid; quote '/', '@', '?' and '#' in a password.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("The URL must begin with 'http://' or 'https://' and name a host.")
    if not isinstance(method, str) or not re.fullmatch(r"[A-Z]+", method):
        raise ValueError(f"The method must be written in capital letters, as 'GET', not {method!r}.")
    secure = parts.scheme == "https"
    host = _validation.host_name("host", parts.hostname)
    port = _validation.port_number((443 if secure else 80) if port is None else port)
    fields = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "flask_lifecycle", "Accept": "*/*"}
    fields["Accept-Encoding"] = "identity"  # 'contains' cannot search a compressed body
    if parts.username or parts.password:
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        fields["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    if method in ("PATCH", "POST", "PUT"):
        fields["Content-Length"] = "0"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = [f"{method} {target} HTTP/1.1", *_fields(fields, headers), "Connection: close", "", ""]
    return host, port, secure, "\r\n".join(head).encode("latin-1")


def _fields(ours: dict[str, str], given: Mapping[str, str]) -> Iterator[str]:
    """The header lines; given headers replace ours. No error repeats a value, which may be a secret."""
    for name, value in given.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise ValueError("A name in 'headers' is not valid; use letters, digits and hyphens, and no value.")
        if not isinstance(value, str) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(f"The value of the header '{name}' must be one line of Latin-1 characters.")
        if name.lower() in _OUR_FIELDS:
            raise ValueError(f"The check sets the header '{name}' itself; leave it out.")
    replaced = {name.lower() for name in given}
    kept = {name: value for name, value in ours.items() if name.lower() not in replaced}
    return (f"{name}: {value}" for name, value in (kept | dict(given)).items())


# -- connections ------------------------------------------------------------------------------------------------------


# The machine's authorities. Loading them takes longer than most requests, so all checks share one context.
_trusting_context = functools.cache(ssl.create_default_context)


@contextlib.contextmanager
def reasons(limit: float) -> Iterator[None]:
    """Turn a network error into a public sentence, with the error as its cause."""
    try:
        yield
    except TimeoutError as error:
        raise HealthCheckError(f"There was no answer within {limit:g} s.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = next(sentence for kind, sentence in _REASONS if isinstance(error, kind))
        raise HealthCheckError(reason) from error


@contextlib.contextmanager
def connect(host: str, port: int, limit: float) -> Iterator[_Connection]:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with _Connection(limit) as connection:
        connection.open_first(addresses)
        yield connection


class _Connection(io.RawIOBase):
    """A socket with one deadline for all its operations, and a limit for what is read.

    ``http.client`` reads a response from it; at the limit the response ends.
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

        Each gets an equal share of the remaining time, so that one that never answers (an IPv6 address without a
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

    def secure(self, context: ssl.SSLContext, host: str) -> bytes:
        """Start TLS, and return the host's certificate as DER. The timeout holds for the whole handshake."""
        self._sock.settimeout(self._left())
        self._sock = context.wrap_socket(self._sock, server_hostname=host)
        return self._sock.getpeercert(binary_form=True) or b""

    def send(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        super().close()

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The method of a socket that ``http.client`` calls."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._left())
        count = self._sock.recv_into(buffer, min(len(buffer), self._room)) if self._room else 0
        self._room -= count
        return count


def _contains(response: http.client.HTTPResponse, wanted: bytes) -> bool:
    """Read until the text is found, or to the end, searching no part twice."""
    body = bytearray()
    while data := response.read1(65536):
        begin = max(0, len(body) - len(wanted) + 1)
        body += data
        if body.find(wanted, begin) >= 0:
            return True
    return False
