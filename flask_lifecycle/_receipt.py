"""The report of a shutdown as a file: for whoever comes when the process has gone.

A regular file is replaced in one step, so that nobody reads half of it. What Kubernetes mounts is written in place,
shortened to what it shows; so is anything else that is no regular file, without waiting for a reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from typing import Any

from ._config import TERMINATION_LOG
from ._report import ShutdownReport
from ._state import logger

# So much of the message Kubernetes keeps.
TERMINATION_LIMIT = 4096
# Nobody's receipt is larger; what is there instead is not read into memory.
_LARGEST = 1 << 20
# The lists that can be long, by what is least missed, and what is left out of their entries before entries are.
_LISTS = ("hooks", "work", "abandoned")
_DETAILS = ("stack", "thread", "what", "remote")


def write(path: str, report: ShutdownReport) -> None:
    """Write a receipt; a failure is logged, and that is all that comes of it."""
    document = report.as_dict()
    try:
        if path == TERMINATION_LOG:
            with contextlib.suppress(FileNotFoundError, PermissionError):  # the default, not anybody's wish
                _write_in_place(path, shortened(document, TERMINATION_LIMIT))
            return
        path = path.replace("{pid}", str(os.getpid()))
        whole = json.dumps(document).encode() + b"\n"
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            _write_in_place(path, whole)
        else:
            _replace(path, whole)
    except OSError as error:
        logger.warning(
            "the report could not be written to '%s': %s", path, error.strerror, extra={"lifecycle_path": path}
        )


def _write_in_place(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while data:  # a pipe takes a part, and is full at last
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def _replace(path: str, data: bytes) -> None:
    beside = f"{path}.{os.getpid()}.tmp"
    with contextlib.suppress(FileNotFoundError):  # of a process of the same number that did not come to its end
        os.unlink(beside)
    # Ours and new: what somebody else has put there may be a pipe, which blocks, or stay in his hands.
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def shortened(document: dict[str, Any], limit: int) -> bytes:
    """A receipt of at most so many bytes: first without details, then with fewer entries, whose number it tells."""
    document = dict(document)
    encoded = json.dumps(document).encode()
    for detail in _DETAILS:
        if len(encoded) > limit:
            for name in _LISTS:
                document[name] = [{k: v for k, v in entry.items() if k != detail} for entry in document[name]]
            encoded = json.dumps(document).encode()
    for name in _LISTS:
        while len(encoded) > limit and document[name]:
            keep = len(document[name]) // 2
            document[f"more_{name}"] = document.get(f"more_{name}", 0) + len(document[name]) - keep
            document[name] = document[name][:keep]
            encoded = json.dumps(document).encode()
    if len(encoded) > limit:  # a reason without end
        document["reason"] = document["reason"][:100]
        encoded = json.dumps(document).encode()
    return encoded


def read(path: str | None) -> dict[str, Any] | None:
    """The receipt that an earlier process has left, ``None`` if there is none that can be read."""
    if path is None or path == TERMINATION_LOG:
        return None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # brackets without end
        handle = os.open(path.replace("{pid}", str(os.getpid())), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                document = json.loads(file.read(_LARGEST))
                return document if isinstance(document, dict) else None
    return None
