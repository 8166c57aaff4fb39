"""Checks of the machine: disk, paths, a maintenance file, memory.

They are ``scope = "local"``, because another replica may have what this one lacks. Their reports contain no paths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import _validation
from ._check import CheckResult, HealthCheckError

# The default of Spring Boot.
FAIL_FREE = 10 << 20
# The default of django-health-check, for disk and for memory.
WARN_SHARE = 0.9

_SHARE = "a share of the whole"


class DiskCheck:
    """Checks how full the file system of a path is.

    It counts the space for unprivileged processes, as ``df`` does. It also fails if the file system has space but no
    free inodes.

    :param path: any path on that file system.
    :param warn_free: warn when fewer bytes are free.
    :param fail_free: fail when fewer bytes are free; by default 10 MiB, as in Spring Boot.
    :param warn_share: warn when this share is used; by default 0.9, as in django-health-check.
    :param fail_share: fail when this share is used.
    """

    scope = "local"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        warn_free: float | None = None,
        fail_free: float | None = FAIL_FREE,
        warn_share: float | None = WARN_SHARE,
        fail_share: float | None = None,
        name: str = "disk",
    ) -> None:
        self.name = name
        self._path = _validation.file_path(path)
        self._free = _validation.thresholds("free", warn_free, fail_free, "a number of bytes", falling=True)
        self._share = _validation.thresholds("share", warn_share, fail_share, _SHARE, 1)

    def __call__(self) -> CheckResult:
        try:
            disk = os.statvfs(self._path)
        except OSError as error:
            raise HealthCheckError("The disk cannot be read.") from error
        used, free = (disk.f_blocks - disk.f_bfree) * disk.f_frsize, disk.f_bavail * disk.f_frsize
        share = used / (used + free) if used + free else 1.0
        by_free = _validation.status_of(free, *self._free, falling=True)
        by_share = _validation.status_of(share, *self._share)
        status, output = "pass", ""
        if disk.f_files and not disk.f_favail:  # file systems without an inode table report zero of zero
            status, output = "fail", "The disk has no free inodes."
        elif {by_free, by_share} != {"pass"}:
            status = "fail" if "fail" in (by_free, by_share) else "warn"
            output = f"The disk is {_percent(share):g} % full, {_size(free)} are free."
        observed = {"used_percent": _percent(share), "free_bytes": free, "free_files": disk.f_favail}
        return CheckResult(status, output, observed, _percent(share), "%")


class PathCheck:
    """Checks that a path exists and is of the right kind.

    :param path: links are followed.
    :param kind: ``"exists"``, ``"file"`` (a regular one), ``"directory"``, ``"mount"`` (a mount point; a bind mount
        within one file system is not detected) or ``"writable"``: a directory in which a file can be created, synced
        to the disk and removed. You can also check a mount by a marker file on the mounted file system:
        ``PathCheck("/data/.mounted", kind="file")``.
    """

    scope = "local"

    def __init__(self, path: str | os.PathLike[str], *, kind: str = "exists", name: str = "path") -> None:
        if kind not in _KINDS:
            raise ValueError(f"'kind' must be one of {', '.join(map(repr, _KINDS))}, not {kind!r}.")
        self.name = name
        self._path = _validation.file_path(path)
        self._kind = kind

    def __call__(self) -> None:
        try:
            mode = os.stat(self._path).st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise HealthCheckError("The path does not exist.") from error
        except OSError as error:
            raise HealthCheckError("The path cannot be read.") from error
        is_kind, sentence = _KINDS[self._kind]
        if not is_kind(mode, self._path):
            raise HealthCheckError(sentence)
        if self._kind == "writable":
            self._write()

    def _write(self) -> None:
        # Where the file system allows it, the file never has a name: a killed process leaves nothing behind, and no
        # link can take its place. Elsewhere it is created exclusively and unlinked at once.
        try:
            with tempfile.TemporaryFile(dir=self._path, prefix=".lifecycle-") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())  # only this reports a quota, or a full disk of a network file system
        except OSError as error:
            raise HealthCheckError("The directory cannot be written to.") from error


_KINDS: dict[str, tuple[Callable[[int, str], bool], str]] = {
    "exists": (lambda mode, path: True, ""),
    "file": (lambda mode, path: stat.S_ISREG(mode), "The path is not a file."),
    "directory": (lambda mode, path: stat.S_ISDIR(mode), "The path is not a directory."),
    "mount": (lambda mode, path: os.path.ismount(path), "Nothing is mounted at the path."),
    "writable": (lambda mode, path: stat.S_ISDIR(mode), "The path is not a directory."),
}


class MaintenanceFileCheck:
    """Keeps the instance out of rotation while a file exists, by ``touch`` and ``rm``, without HTTP.

    The first line of the file is the public reason: at most 200 characters, without unprintable ones. An empty file, a
    directory or an unreadable file works too, without a reason. If the process may not look for the file (it cannot
    enter a directory above it), the check fails as well, so the mistake shows at the first start.
    """

    scope = "local"
    critical = True
    groups = ("ready",)

    def __init__(self, path: str | os.PathLike[str], *, name: str = "maintenance") -> None:
        self.name = name
        self._path = _validation.file_path(path)

    def __call__(self) -> CheckResult:
        try:
            os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return CheckResult()
        except OSError as error:
            raise HealthCheckError("The maintenance file cannot be read.") from error
        return CheckResult("fail", self._reason() or "Out of rotation for maintenance.")

    def _reason(self) -> str:
        try:
            text = _validation.read_beginning(self._path, 1024).decode("utf-8", "replace")
        except OSError:
            return ""
        first, *_others = text.splitlines() or [""]
        return " ".join("".join(c if c.isprintable() else " " for c in first).split())[:200]


class MemoryCheck:
    """Checks how much of the memory available to this process is used.

    In a control group with a limit (a container) that is the limit of the group and what the whole group uses. Of
    nested groups the one nearest to its limit counts. Inactive file cache does not count as used, as in Kubernetes,
    because the kernel can reclaim it at once. Without a limit it is the memory of the machine. Control groups of
    version 1 are not read.

    It only warns, unless ``fail_share`` is given: taking an instance out of rotation for its memory moves its requests
    to other instances, which have no more. It also warns if the memory cannot be read.

    :param warn_share: warn when this share is used; by default 0.9, as in django-health-check.
    :param fail_share: fail when this share is used.
    """

    scope = "local"
    _root = "/"

    def __init__(
        self, *, warn_share: float | None = WARN_SHARE, fail_share: float | None = None, name: str = "memory"
    ) -> None:
        self.name = name
        self._share = _validation.thresholds("share", warn_share, fail_share, _SHARE, 1)

    def __call__(self) -> CheckResult:
        memory = _memory(Path(self._root))
        if memory is None:
            return CheckResult("warn", "The memory in use cannot be read.")
        status = _validation.status_of(memory.share, *self._share)
        percent = _percent(memory.share)
        output = "" if status == "pass" else f"{percent:g} % of {_size(memory.limit)} of memory are used."
        observed = {"used_percent": percent, "used_bytes": memory.used, "limit_bytes": memory.limit, "of": memory.whose}
        return CheckResult(status, output, observed, percent, "%")


@dataclasses.dataclass(frozen=True, slots=True)
class _Memory:
    """Used and available bytes, and whose they are: ``"cgroup"`` or ``"host"``."""

    used: int
    limit: int
    whose: str

    @property
    def share(self) -> float:
        return self.used / self.limit


def _memory(root: Path) -> _Memory | None:
    """The memory that limits this process; ``None`` if it cannot be read. ``root`` is where /proc and /sys are."""
    host = _host(root)
    groups = [
        memory
        for directory in _group_directories(root)
        if (memory := _group(directory)) and (host is None or memory.limit < host.limit)
    ]
    return max(groups, key=lambda memory: memory.share, default=host)


def _host(root: Path) -> _Memory | None:
    fields = _fields(root / "proc/meminfo")
    total, available = fields.get("MemTotal:", 0), fields.get("MemAvailable:", 0)
    return _Memory((total - available) * 1024, total * 1024, "host") if total else None


def _group(directory: Path) -> _Memory | None:
    """The limit and use of a control group; ``None`` without a limit ("max")."""
    limit, usage = _number(directory / "memory.max"), _number(directory / "memory.current")
    if not limit or usage is None:
        return None
    cache = _fields(directory / "memory.stat").get("inactive_file", 0)
    return _Memory(max(0, usage - cache), limit, "cgroup")


def _group_directories(root: Path) -> list[Path]:
    """The directory of our control group and of each group around it.

    In a container the path of the group may start outside of what is mounted. Then only the top directory exists, which
    is the container's own group.
    """
    top = root / "sys/fs/cgroup"
    group = next((line[3:] for line in _lines(root / "proc/self/cgroup") if line.startswith("0::")), "")
    directory = top / group.lstrip("/")
    return [each for each in (directory, *directory.parents) if each.is_relative_to(top)]


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number, with or without a unit."""
    words = (line.split() for line in _lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _percent(share: float) -> float:
    return round(share * 100, 1)


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
