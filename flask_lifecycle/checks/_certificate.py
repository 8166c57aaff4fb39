"""The validity of a certificate, read from its DER bytes.

The standard library decodes a certificate only after it has verified it, which fails for an expired one, and packages
that decode any certificate are large. Here only two times at a fixed place are needed (RFC 5280, section 4.1)::

    Certificate ::= SEQUENCE { tbsCertificate, ... }
    TBSCertificate ::= SEQUENCE { [0] version (may be missing), serialNumber, signature, issuer, validity, ... }
    Validity ::= SEQUENCE { notBefore, notAfter }

Nothing is verified.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import datetime, timezone

_PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([^-]*)-----END ")
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18


def read_pem(data: bytes) -> list[bytes]:
    """Each certificate of a PEM file as DER; keys and other content are skipped."""
    return [base64.b64decode(block) for block in _PEM.findall(data)]


def validity(der: bytes) -> tuple[datetime, datetime]:
    """When the validity of a certificate begins and ends.

    :raises ValueError: it is not a certificate.
    """
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
