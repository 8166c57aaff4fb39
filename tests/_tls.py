"""Certificates for tests, of any validity, by an authority of their own or by one that nothing trusts."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import trustme


def from_now(**delta: float) -> datetime:
    """A time before or after this one."""
    return datetime.now(timezone.utc) + timedelta(**delta)


class Authority:
    """A certificate authority, and the certificates that it has issued; all files are below ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path, self.key = home / "authority.crt", home / "authority.key"
        self._own = trustme.CA()
        self._own.cert_pem.write_to_path(self.path)
        self._own.private_key_pem.write_to_path(self.key)

    def issue(
        self,
        name: str,
        *,
        hosts: Sequence[str] = ("127.0.0.1", "localhost"),
        begins: datetime | None = None,
        ends: datetime | None = None,
        trusted: bool = True,
    ) -> Path:
        """Make a certificate and its key, in one PEM file."""
        issuer = self._own if trusted else trustme.CA()
        certificate = issuer.issue_cert(
            *hosts, not_before=begins or from_now(days=-1), not_after=ends or from_now(days=60)
        )
        path = self.home / f"{name}.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.path))


def serving(certificate: Path) -> ssl.SSLContext:
    """A server's context with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
