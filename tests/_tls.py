"""Certificates for tests, made by the openssl command: of any validity, by an authority or by themselves."""

from __future__ import annotations

import os
import ssl
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

_CONFIG = """
[ca]
default_ca = authority
[authority]
dir = {home}
database = {home}/index.txt
new_certs_dir = {home}
rand_serial = yes
default_md = sha256
policy = anything
unique_subject = no
copy_extensions = copy
email_in_dn = no
[anything]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[req]
distinguished_name = subject
prompt = no
[subject]
commonName = test
"""


def from_now(**delta: float) -> datetime:
    """A time before or after this one."""
    return datetime.now(timezone.utc) + timedelta(**delta)


class Authority:
    """A certificate authority, and the certificates that it has issued; all files are below ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "index.txt").touch()
        (home / "config").write_text(_CONFIG.format(home=home))
        self.path = self.issue("authority", "DNS:authority", signed_by="itself", ca=True)

    def issue(
        self,
        name: str,
        host: str = "IP:127.0.0.1,DNS:localhost",
        *,
        begins: datetime | None = None,
        ends: datetime | None = None,
        signed_by: str = "authority",
        ca: bool = False,
    ) -> Path:
        """Make a certificate and its key, in one PEM file."""
        key, request, certificate = (str(self.home / f"{name}.{kind}") for kind in ("key", "csr", "crt"))
        extension = f"subjectAltName={host}"  # beside those that Python 3.13 asks for, see the sections above
        self._openssl(
            ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key],
            ["-out", request, "-subj", f"/CN={name}", "-addext", extension],
        )
        signer = ["-selfsign", "-keyfile", key]
        section = "root" if ca else "leaf"
        if signed_by != "itself":
            signer = ["-cert", str(self.home / f"{signed_by}.crt"), "-keyfile", str(self.home / f"{signed_by}.key")]
        self._openssl(
            ["ca", "-batch", "-notext", *signer, "-extensions", section, "-in", request, "-out", certificate],
            ["-startdate", _asn1(begins or from_now(days=-1)), "-enddate", _asn1(ends or from_now(days=60))],
        )
        path = self.home / f"{name}.pem"
        path.write_bytes(Path(key).read_bytes() + Path(certificate).read_bytes())
        return path

    def _openssl(self, *arguments: list[str]) -> None:
        command = [*arguments[0], "-config", str(self.home / "config"), *(a for more in arguments[1:] for a in more)]
        environ = {**os.environ, "OPENSSL_CONF": str(self.home / "config")}
        done = subprocess.run(["openssl", *command], env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this authority and no other."""
        return ssl.create_default_context(cafile=str(self.home / "authority.crt"))


def serving(certificate: Path) -> ssl.SSLContext:
    """A server's context with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def _asn1(when: datetime) -> str:
    return when.strftime("%Y%m%d%H%M%SZ")
