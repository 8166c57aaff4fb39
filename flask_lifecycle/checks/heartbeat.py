"""A heartbeat for background jobs: a job that stops beating fails a check.

A job that hangs raises nothing and logs nothing, so something outside of it has to notice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .._config import LONGEST
from .._core.log import logger
from . import _validation
from ._check import CheckResult, HealthCheckError


class Heartbeat:
    """The heartbeat of a job, and the check that it has not stopped.

    ::

        beat = Heartbeat("importer", max_age=60)
        lifecycle.add_check(beat)

        def importer():
            while not lifecycle.draining.wait(10):
                import_some()
                beat.beat()

    Fails when the last beat is older than ``max_age``. Before the first beat the age counts from the creation of this
    object, so the first round of a job has as much time as every other.

    With a ``path`` the time of a file is the beat, so another process can beat: by ``beat()`` of a ``Heartbeat`` with
    the same path, or by ``touch``. The age is measured with this process's own clock from when it first saw the beat;
    the system time, which can be changed, only decides how old the beat was at that moment.

    :param name: of the check.
    :param max_age: seconds; two or three times the interval in which the job beats.
    :param path: a file on a file system that both processes see; the first beat creates it.
    :param clock: a monotonic clock.
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
        _validation.positive("max_age", max_age, "a number of seconds", LONGEST)
        self.name = name
        self._max_age = max_age
        self._path = None if path is None else _validation.file_path(path)
        self._clock = clock
        self._created = clock()
        self._last: float | None = None  # by our clock
        self._modified: int | None = None  # the time of the file that _last was computed from
        self._complained = False

    def beat(self) -> None:
        """Report that the job is alive. Any thread may call it; it does not block and raises nothing.

        If the file cannot be written this is logged once: the job should not fail for it, and the check will.
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
        if self._path is not None:
            self._read_file(self._path)
        last = self._last
        beaten = last is not None and last >= self._created  # an older beat is from before this process
        age = max(0.0, self._clock() - (last if last is not None and beaten else self._created))
        observed = {"age": round(age, 3), "max_age": self._max_age, "beaten": beaten}
        status, output = "pass", ""
        if age > self._max_age:
            what = f"The last beat was {age:.1f} s ago" if beaten else f"There has been no beat for {age:.1f} s"
            status, output = "fail", f"{what}; at most {self._max_age:g} s are allowed."
        return CheckResult(status, output, observed, round(age, 3), "s")

    def _read_file(self, path: str) -> None:
        """Update the last beat. The engine never runs a check twice at a time, so this needs no lock."""
        try:
            modified = os.stat(path).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            self._last = self._modified = None
            return
        except OSError as error:
            raise HealthCheckError("The beat cannot be read.") from error
        if modified != self._modified:
            # A beat in the future (the system time was set back since) counts as one of now.
            self._modified, self._last = modified, self._clock() - max(0.0, time.time() - modified / 1e9)


def _touch(path: str) -> None:
    try:
        os.utime(path)
    except FileNotFoundError:
        # It may follow no link and not block on a pipe, if one takes the file's place meanwhile.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644))
