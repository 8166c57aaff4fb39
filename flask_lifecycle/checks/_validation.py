"""Validation of the arguments of the ready-made checks, at construction: at the first probe it would be an outage.

Comparisons are written so that NaN fails them. NaN is neither above nor below anything, so ``if value <= 0: raise``
would accept it, and no value would ever reach that threshold.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from .._config import shown

# No name or address contains these. A value with one was meant to be a URL, and may contain a password.
_NO_HOST = re.compile(r"[\x00-\x20\x7f/@?#\[\]\\]")


@contextlib.contextmanager
def needs(package: str, extra: str) -> Iterator[None]:
    """Let the error of a missing package name the extra to install."""
    try:
        yield
    except ImportError:
        raise RuntimeError(
            f"{package} is not installed; install it with: pip install 'flask-lifecycle[{extra}]'"
        ) from None


def positive(name: str, value: Any, what: str, most: float = math.inf) -> None:
    """Reject what is not a finite number greater than zero; ``what`` describes it."""
    kind = TypeError if isinstance(value, bool) or not isinstance(value, (int, float)) else ValueError
    if kind is TypeError or not 0 < value < math.inf or value > most:
        bounds = "greater than zero" if most == math.inf else f"greater than zero, at most {most:.10g}"
        raise kind(f"'{name}' must be {what} {bounds}, not {shown(value)}.")


def thresholds(
    quantity: str, warn: Any, fail: Any, what: str, most: float = math.inf, *, falling: bool = False
) -> tuple[float | None, float | None]:
    """Both thresholds of a quantity, each of which may be ``None``.

    :param quantity: the arguments are named ``warn_`` and ``fail_`` plus this.
    :param falling: whether less is worse, so that the warning must come at more than the failure.
    """
    for name, value in (("warn", warn), ("fail", fail)):
        if value is not None:
            positive(f"{name}_{quantity}", value, what, most)
    if warn is not None and fail is not None and (warn < fail if falling else warn > fail):
        side = "less" if falling else "more"
        raise ValueError(
            f"'warn_{quantity}' must not be {side} than 'fail_{quantity}', or it never warns: {warn!r} and {fail!r}."
        )
    return warn, fail


def status_of(value: float, warn: float | None, fail: float | None, *, falling: bool = False) -> str:
    """The status of a value: a rising one changes when it reaches a threshold, a falling one below it."""
    for status, threshold in (("fail", fail), ("warn", warn)):
        if threshold is not None and (value < threshold if falling else value >= threshold):
            return status
    return "pass"


def host_name(name: str, value: Any) -> str:
    """A host by its bare name or address. The error does not repeat it: it may be a URL with a password."""
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must be a string, the name or address of a host, not {type(value).__name__}.")
    try:
        encoded = value.encode("idna")  # as getaddrinfo will
    except UnicodeError:
        encoded = b""
    if not encoded or _NO_HOST.search(value):
        raise ValueError(f"'{name}' must be the bare name or address of a host, without scheme, user, port or path.")
    return str(value)


def port_number(port: Any) -> int:
    kind = TypeError if isinstance(port, bool) or not isinstance(port, int) else ValueError
    if kind is TypeError or not 1 <= port <= 65535:
        raise kind(f"'port' must be a whole number from 1 to 65535, not {shown(port)}.")
    return int(port)


def file_path(path: Any) -> str:
    """A path, made absolute: the working directory may change between two probes."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"'path' must be a string or a path, not {type(path).__name__}.") from None
    try:
        valid = bool(os.fsencode(text)) and "\0" not in text
    except UnicodeEncodeError:  # a lone surrogate
        valid = False
    if not valid:
        raise ValueError("'path' must name a file or directory; it is empty or contains a null character.")
    return os.path.abspath(text)


def read_beginning(path: str, size: int) -> bytes:
    """The first bytes of a regular file, and nothing of anything else: reading a pipe would block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return os.read(descriptor, size) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)
