"""A check of how long a certificate is valid.

The standard library decodes a certificate only after it has verified it, which fails for an expired one, and packages
that decode any certificate are large. Here only two times at a fixed place of its DER bytes are needed (RFC 5280,
section 4.1)::

    Certificate ::= SEQUENCE { tbsCertificate, ... }
    TBSCertificate ::= SEQUENCE { [0] version (may be missing), serialNumber, signature, issuer, validity, ... }
    Validity ::= SEQUENCE { notBefore, notAfter }
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from . import _validation
from ._check import CheckResult, HealthCheckError
from .network import FOR_THE_RESOLVER, LIMIT, LONGEST, MOST_READ, connect, reasons

if TYPE_CHECKING:
    import os

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END ")
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


class CertificateCheck:
    """Checks how long a certificate is valid: the one that a host sends, or those in a PEM file.

    It only reads the dates and verifies neither the issuer nor the host, so it also reports an expired or self-signed
    certificate (:class:`HTTPCheck` verifies). Of a host it reads the host's own certificate, not those of the
    authorities in between; of a file it reads all, and the first to expire counts. It cannot read a host that starts
    TLS only after some conversation (STARTTLS), or that rejects clients without a certificate.

    :param host: a name, which is also sent in the handshake (SNI), or an address.
    :param path: a PEM file, instead of the host; other content of the file is skipped.
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
        _validation.positive("limit", limit, "a number of seconds", LONGEST)
        self.name = name
        self.timeout = limit + FOR_THE_RESOLVER
        if path is not None:
            self.scope = "local"
        self._host = None if host is None else _validation.host_name("host", host)
        self._port = _validation.port_number(port)
        self._path = "" if path is None else _validation.file_path(path)
        self._warn, self._fail = _validation.thresholds("days", warn_days, fail_days, "a number of days", falling=True)
        self._limit = limit

    def __call__(self) -> CheckResult:
        certificates = self._in_file() if self._host is None else self._of_host(self._host)
        try:
            begins, ends = zip(*map(_validity, certificates), strict=True)
        except ValueError as error:
            raise HealthCheckError("The certificate cannot be read.") from error
        return self._result(max(begins), min(ends))

    def _result(self, begins: datetime, ends: datetime) -> CheckResult:
        now = datetime.now(timezone.utc)
        days = (ends - now).total_seconds() / 86400
        status = _validation.status_of(days, self._warn, self._fail, falling=True)
        output = "" if status == "pass" else f"The certificate expires in {days:.1f} days; renew it."
        if days <= 0:
            status, output = "fail", f"The certificate expired {-days:.1f} days ago; renew it."
        elif begins > now:
            status, output = "fail", "The certificate is not valid yet."
        observed = {"days": round(days, 1), "expires": ends.isoformat()}
        return CheckResult(status, output, observed, round(days, 1), "days")

    def _of_host(self, host: str) -> list[bytes]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nothing is sent over this connection, so trust any host
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with reasons(self._limit), connect(host, self._port, self._limit) as connection:
            return [connection.secure(context, host)]

    def _in_file(self) -> list[bytes]:
        try:
            blocks = _PEM.findall(_validation.read_beginning(self._path, MOST_READ))  # skips keys and other content
            certificates = [base64.b64decode(block) for block in blocks]
        except (OSError, ValueError) as error:
            raise HealthCheckError("The certificate file cannot be read.") from error
        if not certificates:
            raise HealthCheckError("The file contains no certificate.")
        return certificates


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """When the validity of a certificate begins and ends; :exc:`ValueError` if it is none."""
    try:
        _tag, certificate = next(_elements(der))
        _tag, to_be_signed = next(_elements(certificate))
        fields = [content for tag, content in _elements(to_be_signed) if tag != _VERSION]
        begins, ends = (_time(tag, content.decode("ascii")) for tag, content in _elements(fields[3]))
    except (IndexError, StopIteration, ValueError) as error:
        raise ValueError("not a certificate") from error
    return begins, ends


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The elements of a DER sequence, as tag and content."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:  # then it is the number of bytes of the length itself
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise ValueError("cut short")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text  # two digits of the year, RFC 5280, section 4.1.2.5.1
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    if not re.fullmatch(r"[0-9]{14}Z", text):
        raise ValueError("not a time of a certificate")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)
