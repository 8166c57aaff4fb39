"""A dead man's switch for background jobs: what does not beat any more is reported.

A job that hangs raises nothing and logs nothing; that something did *not* happen can only be seen by somebody else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .._record import NamedTuple
from .._state import logger
from . import _arguments
from ._check import CheckResult, HealthCheckError


class Heartbeat:
    """The beat of a job, and the check that it has not stopped.

    ::

        beat = Heartbeat("importer", max_age=60)
        lifecycle.add_check(beat)

        def importer():
            while not lifecycle.draining.wait(10):
                import_some()
                beat.beat()

    Fails when the last beat is older than ``max_age``. Until there has been one, the age is counted from the creation
    of this object, so that a job has the same time for its first round as for every other.

    With a ``path`` the beat is the time of a file, so another process can beat: by ``beat()`` of a ``Heartbeat`` with
    the same path, or by ``touch``. The age is then measured by this process's own clock from when it first saw the
    beat; the clock of the machine, which can be set, counts only for what a beat's age was at that moment.

    :param name: of the check.
    :param max_age: seconds; twice or three times the interval in which the job means to beat.
    :param path: a file on a file system that both processes see; it is made by the first beat.
    :param clock: seconds that never go back.
    """

    scope = "local"

    def __init__(
        self,
        name: str,
        *,
        max_age: float,
        path: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _arguments.positive("max_age", max_age, "a number of seconds")
        self.name = name
        self._max_age = max_age
        self._path = None if path is None else _arguments.file_path(path)
        self._clock = clock
        self._created = clock()
        self._last: float | None = None
        self._seen: _Seen | None = None
        self._complained = False

    def beat(self) -> None:
        """Say that the job is alive. Any thread may; it does not block and raises nothing.

        A file that cannot be written is logged once: it is not the job that should fail for it, and the check will.
        """
        if self._path is None:
            self._last = self._clock()  # one attribute, which needs no lock
            return
        try:
            _touch(self._path)
        except OSError as error:
            if not self._complained:
                extra = {"lifecycle_check": self.name}
                logger.warning("the beat of '%s' cannot be written", self.name, exc_info=error, extra=extra)
            self._complained = True
        else:
            self._complained = False

    def __call__(self) -> CheckResult:
        last = self._last if self._path is None else self._last_of_file(self._path)
        beaten = last is not None and last >= self._created  # else it is a beat of the time before us
        age = max(0.0, self._clock() - (last if last is not None and beaten else self._created))
        observed = {"age": round(age, 3), "max_age": self._max_age, "beaten": beaten}
        status, output = "pass", ""
        if age > self._max_age:
            said = f"The last beat was {age:.1f} s ago" if beaten else f"There has been no beat for {age:.1f} s"
            status, output = "fail", f"{said}; at most {self._max_age:g} s are allowed."
        return CheckResult(status, output, observed, round(age, 3), "s")

    def _last_of_file(self, path: str) -> float | None:
        """When the last beat was, by our clock. The engine never runs a check twice at a time, so ``_seen`` is safe."""
        try:
            modified = os.stat(path).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise HealthCheckError("The beat cannot be read.") from error
        if self._seen is None or self._seen.modified != modified:
            # A beat in the future (the clock was set back since) is one of now.
            self._seen = _Seen(modified, self._clock() - max(0.0, time.time() - modified / 1e9))
        return self._seen.when


class _Seen(NamedTuple):
    """A time of the file, and when that was by our clock."""

    modified: int
    when: float


def _touch(path: str) -> None:
    try:
        os.utime(path)
    except FileNotFoundError:
        # Neither through a link nor, blocking, into a pipe that somebody puts there meanwhile.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644))
