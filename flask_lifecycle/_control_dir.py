"""What operators ask of an application by file, where there is no HTTP: ``LIFECYCLE_CONTROL_DIR``.

``drain`` stops the process when it is touched, and ``cordon``, which holds a line such as ``10m by alice``, takes it
out of rotation for so long, or until it is removed. A thread looks once a second; the standard library has nothing that
wakes it, and a poll works on every file system, also where another host writes. It does nothing but ``stat`` while
nothing changes, and whatever hangs in it (a network file system) hangs there alone: nobody waits for this thread.

Whose word counts
-----------------

The directory and each file in it must be ours or root's, and the directory must not be writable for anybody else; it
is looked at anew each time, by a descriptor, so that one that was put into its place is refused. A file is opened
without following links and without waiting (a FIFO would wait for a writer), and looked at once it is open.

What is new
-----------

Files stay where they are: several processes may share the directory, and each must see them. So a process has to know
which of them it has seen, and it tells them by what they are (device, inode, time of the last change, size), never by
its own clock, which need not be that of the file system.

A ``drain`` that was there when the process began was meant for another one; heeding it would stop each process that is
started from now on. One that was absent at the look before, or another, is meant for us. The look that
all others are compared with is made in ``init_app``, or at the beginning in a process that was forked since. A file
system whose times are coarse may hide a second touch within the same second as the first, at that moment alone.

A ``cordon`` that was there survives restarts: what is left of its lease, from its last change on by the clock, is kept.
One that comes while we look is counted from then on, whatever the clocks say.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from ._control import LONGEST_CORDON, Control, Lease, check_name
from ._duration import parse_duration, shown
from ._scheduler import Scheduler
from ._state import ENDING, State, logger

DRAIN, CORDON = "drain", "cordon"
_TICK = 1.0
# How long the start of the application waits for the first look.
_FIRST_LOOK = 0.5
_LARGEST = 4096

# Which file this is, and which version of it; ``None`` for none.
Identity: TypeAlias = "tuple[int, ...] | None"

# By ASCII blanks alone, so that no other can hide in a name.
_LINE = re.compile(r"(?:for[ \t]+)?([^ \t]+)[ \t]+by[ \t]+([^ \t]+)")


class ControlDirectory:
    """Looks into the directory for one application, from the beginning to the shutdown.

    :param clock: seconds since the epoch, for a cordon that was there before.
    :raises ValueError: the directory is not there, or not ours alone.
    """

    def __init__(self, path: str, control: Control, clock: Callable[[], float] = time.time) -> None:
        self._path = os.path.abspath(path)  # the process may change its directory
        self._control = control
        self._clock = clock
        self._first = True
        self._drain: Identity = None
        self._cordon: Identity = None  # the last that was heeded
        self._lease: Lease | None = None
        self._warned: dict[str, str] = {}  # what was said last of what
        try:
            with _Directory(self._path) as directory, contextlib.suppress(UnfitError):
                self._drain = directory.find(DRAIN)
        except UnfitError as error:
            raise ValueError(
                f"'LIFECYCLE_CONTROL_DIR' is {self._path!a}, which {error}; name a directory of the user that this"
                " process runs as, or of root, which nobody else may write to."
            ) from None
        self._known_in = os.getpid()
        self._looked = threading.Event()
        self._scheduler = Scheduler(self.look, "lifecycle-control", "control directory")

    # -- as a companion of the application --------------------------------------------------------------------------

    def begin(self) -> None:
        """Look from now on."""
        self._scheduler.wake()
        # What is touched once the process says that it serves must not be taken for what was there before.
        self._looked.wait(_FIRST_LOOK)

    def state_changed(self, new: State, reason: str) -> None:
        """A shutdown needs no further word."""
        if new in ENDING:
            self._scheduler.stop(wait=False)

    def end(self) -> None:
        """Look no more."""
        self._scheduler.stop(wait=False)

    # -- the look ---------------------------------------------------------------------------------------------------

    def look(self) -> float | None:
        """See what has changed, and do it; return when to look again."""
        try:
            with _Directory(self._path) as directory:
                drain = self._look_for_drain(directory)
                self._look_for_cordon(directory)
                self._first = False
        except UnfitError as error:
            self._warn(f"the control directory {self._path!a}", error)
            return _TICK
        finally:
            self._looked.set()
        if drain:
            self._control.drain(f"the file {self._file(DRAIN)}", "file")
            return None  # nothing leads back
        return _TICK

    def _look_for_drain(self, directory: _Directory) -> bool:
        """Whether a drain is asked for."""
        found: Identity = None
        try:
            found = directory.find(DRAIN)
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

    def _look_for_cordon(self, directory: _Directory) -> None:
        try:
            found = directory.find(CORDON)
            if found is None:
                self._cordon, lease, self._lease = None, self._lease, None
                if lease is not None:
                    self._try(lambda: self._control.uncordon("the removal of its file", "file", lease))
            elif found != self._cordon:
                self._read_cordon(directory)
        except UnfitError as error:
            # Not remembered, because it may be half written: it is read again at the next look.
            self._warn(f"the file {self._file(CORDON)}", error)

    def _read_cordon(self, directory: _Directory) -> None:
        found, changed, text = directory.read(CORDON)
        seconds, by = parse_cordon(text)
        left = seconds
        if self._first:
            left = min(seconds, changed + seconds - self._clock())  # the file system's clock may be ahead
        self._cordon = found
        if left > 0:
            self._try(lambda: setattr(self, "_lease", self._control.cordon(seconds, by, "file", left)))

    def _try(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # a shutdown has begun
            action()

    def _file(self, name: str) -> str:
        return ascii(os.path.join(self._path, name))

    def _warn(self, what: str, error: UnfitError) -> None:
        """Say what is wrong; once, until it is something else."""
        if self._warned.get(what) != str(error):
            self._warned[what] = str(error)
            logger.warning("%s %s; it changes nothing", what, error, extra={"lifecycle_action": "none"})


def parse_cordon(text: str) -> tuple[float, str]:
    """How long, and who: ``10m by alice`` or ``for 10m by alice``.

    :raises UnfitError: it says something else.
    """
    match = _LINE.fullmatch(text.strip(" \t\r\n"))
    if match is None:
        raise UnfitError(f"must hold one line such as '10m by alice', not {shown(text)}")
    try:
        return parse_duration("for", match[1], LONGEST_CORDON), check_name(match[2])
    except ValueError as error:
        raise UnfitError(f"cannot be heeded: {str(error).rstrip('.')}") from None


class UnfitError(Exception):
    """A directory or a file that is not heeded; the text goes on a sentence about it."""


class _Directory:
    """The directory as it is at one look.

    :raises UnfitError: it cannot be opened, or somebody else may write to it.
    """

    def __init__(self, path: str) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        except OSError as error:
            raise UnfitError(_why(error)) from None
        try:
            self._check()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _check(self) -> None:
        try:
            found = os.fstat(self._descriptor)
        except OSError as error:  # a network file system has forgotten it meanwhile
            raise UnfitError(_why(error)) from None
        _check_owner(found)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UnfitError("may be written to by its group or by others")

    def __enter__(self) -> _Directory:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._descriptor)

    def find(self, name: str) -> Identity:
        """Which file has this name.

        :raises UnfitError: it is not to be heeded.
        """
        try:
            return _identity(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnfitError(_why(error)) from None

    def read(self, name: str) -> tuple[Identity, float, str]:
        """Which file this is, when it was changed, and what is in it.

        :raises UnfitError: it is not to be heeded.
        """
        try:
            # What it was found to be is not what it need be now.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except OSError as error:
            raise UnfitError(_why(error)) from None
        try:
            found = os.fstat(descriptor)
            return _identity(found), found.st_mtime, os.read(descriptor, _LARGEST).decode("utf-8", "backslashreplace")
        except OSError as error:
            raise UnfitError(_why(error)) from None
        finally:
            os.close(descriptor)


def _identity(found: os.stat_result) -> Identity:
    if not stat.S_ISREG(found.st_mode):
        raise UnfitError("is no regular file")
    _check_owner(found)
    if found.st_size > _LARGEST:
        raise UnfitError(f"is larger than {_LARGEST} bytes")
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _check_owner(found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise UnfitError("belongs to another user than this process and root")


def _why(error: OSError) -> str:
    """What stands in the way of a file, in words."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, NotADirectoryError):
        return "is no directory"
    return f"cannot be opened ({os.strerror(error.errno or 0)})"
