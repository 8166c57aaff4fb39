"""The report of a shutdown as a file, which outlives the process.

A regular file is replaced in one step, so that no reader sees half of it. A link to a regular file is replaced too, and
its target does not change. The file that Kubernetes mounts is written in place and shortened to the size that it shows.
A pipe or a device is written in place, without waiting for a reader.

Links are not followed. Another process may put a link or another file at the path after we have checked it. If we
opened that with truncation, it would be empty before we could check the descriptor. So we open a file without
truncation, check its descriptor, and only then truncate it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from typing import Any

from .._config import TERMINATION_LOG
from .feature import Feature
from .log import logger
from .report import ShutdownReport

# The number of bytes that Kubernetes keeps of a termination message.
TERMINATION_LIMIT = 4096
# A larger file is not a report, and is not read into memory.
_LARGEST = 1 << 20
# Do not follow a link, wait for a reader or writer, or take a controlling terminal.
_CAREFULLY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# The long lists, least important first, and the details that are left out before whole entries are.
_LISTS = ("hooks", "work", "abandoned")
_DETAILS = ("stack", "thread", "what", "remote")


def write(path: str, report: ShutdownReport) -> None:
    """Write a report; a failure is only logged."""
    document = report.as_dict()
    try:
        if path == TERMINATION_LOG:
            with contextlib.suppress(FileNotFoundError, PermissionError):  # the default
                _write_in_place(path, shortened(document, TERMINATION_LIMIT), regular=True)
            return
        path = path.replace("{pid}", str(os.getpid()))
        whole = json.dumps(document).encode() + b"\n"
        if os.path.exists(path) and not os.path.isfile(path):
            _write_in_place(path, whole, regular=False)
        else:
            _replace(path, whole)
    except OSError as error:
        why = "it is a link, which is not followed" if error.errno == errno.ELOOP else error.strerror
        logger.warning("the report could not be written to '%s': %s", path, why, extra={"lifecycle_path": path})


def _write_in_place(path: str, data: bytes, *, regular: bool) -> None:
    handle = os.open(path, os.O_WRONLY | _CAREFULLY)
    try:
        if stat.S_ISREG(os.fstat(handle).st_mode) is not regular:
            raise OSError(errno.ESTALE, "it is another kind of file than expected")
        if regular:
            os.ftruncate(handle, 0)
        while data:  # a pipe takes a part, and is full at last
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def _replace(path: str, data: bytes) -> None:
    beside = f"{path}.{os.getpid()}.tmp"
    with contextlib.suppress(FileNotFoundError):  # of a process of the same number that did not come to its end
        os.unlink(beside)
    # Ours and new: a file that another user has put there may be a pipe, which blocks, or stay open to that user.
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
    """A report of at most this many bytes: first without details, then with fewer entries, but with their number."""
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
    """The report that an earlier process has left, ``None`` if there is none that can be read."""
    if path is None or path == TERMINATION_LOG:
        return None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # brackets without end
        handle = os.open(path.replace("{pid}", str(os.getpid())), os.O_RDONLY | _CAREFULLY)
        with open(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                document = json.loads(file.read(_LARGEST))
                return document if isinstance(document, dict) else None
    return None


class ReportFile(Feature):
    """``LIFECYCLE_REPORT_FILE``: keeps the report that the process before this one has written there."""

    last: dict[str, Any] | None = None

    def begin(self) -> None:
        self.last = read(self._application.settings.report_file)
