"""The token in a request: as a bearer token from programs, as a password from browsers.

``request.authorization`` of Werkzeug is not used: it reads a bearer token with ``=`` in it as a list of parameters, and
takes milliseconds for a long one.
"""

from __future__ import annotations

import binascii
import hmac

CHALLENGE = 'Basic realm="flask_lifecycle", charset="UTF-8"'

_LONGEST = 8192  # characters that are parsed; gunicorn accepts no longer header


def has_bearer_token(header: str, token: str) -> bool:
    """Whether an ``Authorization`` header has this token. The comparison takes the same time for any other token."""
    scheme, given = _parse(header)
    return hmac.compare_digest(given.encode("latin-1", "replace"), token.encode()) and scheme == "bearer"


def has_password(header: str, token: str) -> bool:
    """Whether an ``Authorization`` header has this token as the password of any user.

    This allows reading only: a browser also sends the password with requests that other sites make.
    """
    scheme, given = _parse(header)
    try:
        _user, _, password = binascii.a2b_base64(given.encode("ascii")).partition(b":")
    except ValueError:  # neither ASCII nor base64
        password = b""
    return hmac.compare_digest(password, token.encode()) and scheme == "basic"


def _parse(header: str) -> tuple[str, str]:
    scheme, _, given = (header if len(header) <= _LONGEST else "").partition(" ")
    return scheme.lower(), given.strip(" \t")
