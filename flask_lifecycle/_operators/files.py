"""Operators' requests by file, for processes without a probe listener: ``LIFECYCLE_CONTROL_DIR``.

A thread looks once a second: polling works on every file system, and one that hangs holds up this thread alone.
``docs/operators.md`` has the rules.

The directory and each file in it must belong to this user or to root, and no one else may be able to write to the
directory. This is checked at each look.

Files stay: several processes may share the directory, and each must see them. A process recognises the files that it
has seen by identity (device, inode, time of the last change, size), never by its own clock, which may differ from that
of the file system. So a ``drain`` counts that was absent at the last look, or has changed since; the first look is in
``init_app``, and again at the beginning in a process that was forked since. Only at the first look, the time of a
``cordon`` counts from the last change of the file: a cordon survives restarts.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

from .._config import shown
from .._core.feature import Feature
from .._core.log import logger
from .._core.scheduler import Scheduler
from .._core.state import ENDING, State
from .cordon import LONGEST_CORDON, Control, Lease, check_name, parse_duration

DRAIN, CORDON = "drain", "cordon"
_PERIOD = 1.0
_FIRST_LOOK = 0.5  # seconds that the start of the application waits for the first look
_LARGEST = 4096

Identity: TypeAlias = "tuple[int, ...] | None"  # the identity of a file; ``None`` for no file

# Separated by ASCII blanks only, so that no other blank can hide in a name.
_LINE = re.compile(r"(?:for[ \t]+)?([^ \t]+)[ \t]+by[ \t]+([^ \t]+)")


class ControlDirectory(Feature):
    """Watches the directory for one application, from its start to its shutdown.

    :raises ValueError: the directory does not exist, or others may write to it.
    """

    def __init__(self, application: Any) -> None:
        self._path = os.path.abspath(application.settings.control_dir)  # the process may change its directory
        self._control: Control = application.control
        self._drain: Identity = None
        self._cordon: Identity = None  # the last one that was read
        self._lease: Lease | None = None
        self._warned: dict[str, str] = {}  # the last warning about each file
        try:
            _check_directory(self._path)
            with contextlib.suppress(UnfitError):
                self._drain = self._find(DRAIN)
        except UnfitError as error:
            raise ValueError(
                f"'LIFECYCLE_CONTROL_DIR' is {self._path!a}, which {error}; name a directory of the user that this"
                " process runs as, or of root, which no other user may write to."
            ) from None
        self._known_in = os.getpid()
        self.after_fork()

    def after_fork(self) -> None:
        self._first = True
        self._looked = threading.Event()
        self._scheduler = Scheduler(self.look, "lifecycle-control", "control directory")

    def begin(self) -> None:
        self._scheduler.wake()
        # A file that is touched after the process has logged that it serves must not count as older than the process.
        self._looked.wait(_FIRST_LOOK)

    def state_changed(self, new: State, reason: str) -> None:
        if new in ENDING:
            self._scheduler.stop(wait=False)

    def stop(self) -> None:
        self._scheduler.stop(wait=False)

    def look(self) -> float | None:
        """Act on what has changed; return when to look again."""
        try:
            _check_directory(self._path)
            drain = self._look_for_drain()
            self._look_for_cordon()
            self._first = False
        except UnfitError as error:
            self._warn(f"the control directory {self._path!a}", error)
            drain = False
        finally:
            self._looked.set()
        if drain:
            self._control.drain(f"the file {self._file(DRAIN)}", "file")
            return None
        return _PERIOD

    def _look_for_drain(self) -> bool:
        """Whether a drain is requested."""
        found: Identity = None
        try:
            found = self._find(DRAIN)
        except UnfitError as error:
            self._warn(f"the file {self._file(DRAIN)}", error)
        if self._first and self._known_in != os.getpid():
            self._drain = found
        before, self._drain = self._drain, found
        if self._first and found is not None and found == before:
            logger.warning(
                "the file %s was there before this process began, and is ignored; remove it, or touch it to drain",
                self._file(DRAIN), extra={"lifecycle_action": "none"},
            )  # fmt: skip
        return found is not None and found != before

    def _look_for_cordon(self) -> None:
        try:
            found = self._find(CORDON)
            with contextlib.suppress(RuntimeError):  # a shutdown has begun
                if found is None:
                    self._cordon, lease, self._lease = None, self._lease, None
                    if lease is not None:
                        self._control.uncordon("the removal of its file", "file", lease)
                elif found != self._cordon:
                    self._read_cordon(found)
        except UnfitError as error:
            # It may be half written, so it is read again at the next look.
            self._warn(f"the file {self._file(CORDON)}", error)

    def _read_cordon(self, found: tuple[int, ...]) -> None:
        path = os.path.join(self._path, CORDON)
        with _errors_as_unfit(), open(path, encoding="utf-8", errors="backslashreplace", opener=_open) as file:
            seconds, by = parse_cordon(file.read(_LARGEST))
        left = seconds
        if self._first:
            changed = found[2] / 1e9
            left = min(seconds, changed + seconds - time.time())  # the file system's clock may be ahead
        self._cordon = found
        if left > 0:
            self._lease = self._control.cordon(seconds, by, "file", left)

    def _find(self, name: str) -> Identity:
        """The identity of the file of this name.

        :raises UnfitError: it does not count.
        """
        with _errors_as_unfit():
            try:
                found = os.lstat(os.path.join(self._path, name))
            except FileNotFoundError:
                return None
        if not stat.S_ISREG(found.st_mode):
            raise UnfitError("is not a regular file")
        _check_owner(found)
        if found.st_size > _LARGEST:
            raise UnfitError(f"is larger than {_LARGEST} bytes")
        return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)

    def _file(self, name: str) -> str:
        return ascii(os.path.join(self._path, name))

    def _warn(self, what: str, error: UnfitError) -> None:
        """Log what is wrong, once until it changes."""
        if self._warned.get(what) != str(error):
            self._warned[what] = str(error)
            logger.warning("%s %s; it changes nothing", what, error, extra={"lifecycle_action": "none"})


def parse_cordon(text: str) -> tuple[float, str]:
    """The duration and the name in ``10m by alice`` or ``for 10m by alice``.

    :raises UnfitError: the text is something else.
    """
    match = _LINE.fullmatch(text.strip(" \t\r\n"))
    if match is None:
        raise UnfitError(f"must hold one line such as '10m by alice', not {shown(text)}")
    try:
        return parse_duration("for", match[1], LONGEST_CORDON), check_name(match[2])
    except ValueError as error:
        raise UnfitError(f"is not valid: {str(error).rstrip('.')}") from None


class UnfitError(Exception):
    """A directory or a file that does not count; the text continues a sentence about it."""


@contextlib.contextmanager
def _errors_as_unfit() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UnfitError("does not exist") from None
    except NotADirectoryError:
        raise UnfitError("is not a directory") from None
    except OSError as error:
        raise UnfitError(f"cannot be opened ({os.strerror(error.errno or 0)})") from None


def _open(path: str, flags: int) -> int:
    """Open what may have taken the place of the regular file that was found: follow no link, wait for no writer."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _check_directory(path: str) -> None:
    """Reject a directory that does not count.

    :raises UnfitError: it does not exist, or others may write to it.
    """
    with _errors_as_unfit():
        found = os.stat(os.path.join(path, ""))
    _check_owner(found)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnfitError("may be written to by its group or by others")


def _check_owner(found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise UnfitError("belongs to another user than this process and root")
