"""Checks of the machine: disk, paths, a maintenance file, memory.

They are ``scope = "local"``, because another replica may well have what this one lacks. No path is ever a part of what
they report.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from .._record import NamedTuple
from . import _arguments
from ._check import CheckResult, HealthCheckError

# As Spring Boot has it: below that a log file or a temporary file may be the last.
FAIL_FREE = 10 << 20
# As django-health-check has it, for disk and for memory.
WARN_SHARE = 0.9

_SHARE = "a share of the whole"


class DiskCheck:
    """See how full the file system of a path is.

    What counts is the space for processes without privileges, as in ``df``. A file system with space that has no room
    for another file (inodes) fails as well.

    :param path: anything on that file system.
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
        self._path = _arguments.file_path(path)
        self._free = _arguments.thresholds("free", warn_free, fail_free, "a number of bytes", falling=True)
        self._share = _arguments.thresholds("share", warn_share, fail_share, _SHARE, 1)

    def __call__(self) -> CheckResult:
        try:
            disk = os.statvfs(self._path)
        except OSError as error:
            raise HealthCheckError("The disk cannot be looked at.") from error
        used, free = (disk.f_blocks - disk.f_bfree) * disk.f_frsize, disk.f_bavail * disk.f_frsize
        share = used / (used + free) if used + free else 1.0
        by_free = _arguments.judge(free, *self._free, falling=True)
        by_share = _arguments.judge(share, *self._share)
        status, output = "pass", ""
        if disk.f_files and not disk.f_favail:  # some file systems have no table of files to fill, and say zero of zero
            status, output = "fail", "The disk has no room for another file."
        elif {by_free, by_share} != {"pass"}:
            status = "fail" if "fail" in (by_free, by_share) else "warn"
            output = f"The disk is {_percent(share):g} % full, {_size(free)} are free."
        observed = {"used_percent": _percent(share), "free_bytes": free, "free_files": disk.f_favail}
        return CheckResult(status, output, observed, _percent(share), "%")


class PathCheck:
    """See that a path is there, and is what it should be.

    :param path: links are followed.
    :param kind: ``"exists"``, ``"file"`` (a regular one), ``"directory"``, ``"mount"`` (something is mounted there; not
        seen is a directory bound to another of the same file system) or ``"writable"``: a directory in which a file
        can be made, written to the disk, and removed again. A mount is also shown by a marker, a file that is only on
        what is mounted: ``PathCheck("/data/.mounted", kind="file")``.
    """

    scope = "local"

    def __init__(self, path: str | os.PathLike[str], *, kind: str = "exists", name: str = "path") -> None:
        if kind not in _KINDS:
            raise ValueError(f"'kind' must be one of {', '.join(map(repr, _KINDS))}, not {kind!r}.")
        self.name = name
        self._path = _arguments.file_path(path)
        self._kind = kind

    def __call__(self) -> None:
        try:
            mode = os.stat(self._path).st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            raise HealthCheckError("The path does not exist.") from error
        except OSError as error:
            raise HealthCheckError("The path cannot be looked at.") from error
        is_kind, sentence = _KINDS[self._kind]
        if not is_kind(mode, self._path):
            raise HealthCheckError(sentence)
        if self._kind == "writable":
            self._write()

    def _write(self) -> None:
        # Where the file system can, the file never has a name: so nothing is left behind by a process that is killed,
        # and nobody can put a link in its place. Elsewhere it is made exclusively, and unlinked at once.
        try:
            with tempfile.TemporaryFile(dir=self._path, prefix=".lifecycle-") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())  # a quota, or a full disk behind a network, is found out only here
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
    """Keep the instance out of rotation while a file exists, by ``touch`` and ``rm``, without HTTP.

    Its first line is the reason, and public: of at most 200 characters, unprintable ones left out. An empty file, a
    directory or one that this process may not read does as well, without a reason. If it cannot be told whether the
    file exists (a directory above it is closed to this process) the check fails too: rather out of rotation at the
    first start than in rotation when somebody relies on the file.
    """

    scope = "local"
    critical = True
    groups = ("ready",)

    def __init__(self, path: str | os.PathLike[str], *, name: str = "maintenance") -> None:
        self.name = name
        self._path = _arguments.file_path(path)

    def __call__(self) -> CheckResult:
        try:
            os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return CheckResult()
        except OSError as error:
            raise HealthCheckError("The maintenance file cannot be looked for.") from error
        return CheckResult("fail", self._reason() or "Out of rotation for maintenance.")

    def _reason(self) -> str:
        try:
            text = _arguments.read_beginning(self._path, 1024).decode("utf-8", "replace")
        except OSError:
            return ""
        first, *_others = text.splitlines() or [""]
        return " ".join("".join(c if c.isprintable() else " " for c in first).split())[:200]


class MemoryCheck:
    """See how much of the memory that this process may have is used.

    In a control group with a limit (a container) it is that limit, and what the whole group uses of it. Groups are
    nested; the one counts that is nearest to its limit. What the kernel can take back at once (inactive file cache) is
    not counted as used, as in Kubernetes. Without any limit it is the memory of the machine.

    Warns only, unless ``fail_share`` is given: an instance that is taken out of rotation for its memory leaves its
    requests to the others, which have no more. Where nothing can be read it warns.

    :param warn_share: warn when this share is used; by default 0.9, as in django-health-check.
    :param fail_share: fail when this share is used.
    """

    scope = "local"
    _root = "/"

    def __init__(
        self, *, warn_share: float | None = WARN_SHARE, fail_share: float | None = None, name: str = "memory"
    ) -> None:
        self.name = name
        self._share = _arguments.thresholds("share", warn_share, fail_share, _SHARE, 1)

    def __call__(self) -> CheckResult:
        memory = _memory(Path(self._root))
        if memory is None:
            return CheckResult("warn", "The memory in use cannot be read here.")
        status = _arguments.judge(memory.share, *self._share)
        percent = _percent(memory.share)
        output = "" if status == "pass" else f"{percent:g} % of {_size(memory.limit)} of memory are used."
        observed = {"used_percent": percent, "used_bytes": memory.used, "limit_bytes": memory.limit, "of": memory.whose}
        return CheckResult(status, output, observed, percent, "%")


class _Memory(NamedTuple):
    """How much is used of how much, in bytes, and whose it is: ``"cgroup"`` or ``"host"``."""

    used: int
    limit: int
    whose: str

    @property
    def share(self) -> float:
        return self.used / self.limit


class _Version(NamedTuple):
    """What the two versions of control groups call things."""

    file_system: str
    limit: str
    usage: str
    cache: str


_V1 = _Version("cgroup", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("cgroup2", "memory.max", "memory.current", "inactive_file")


def _memory(root: Path) -> _Memory | None:
    """The memory that binds this process; ``None`` where it cannot be told. ``root`` is where /proc and /sys are."""
    host = _host(root)
    groups = [
        memory
        for version, directory in _group_directories(root)
        if (memory := _group(version, directory)) and (host is None or memory.limit < host.limit)
    ]
    return max(groups, key=lambda memory: memory.share, default=host)


def _host(root: Path) -> _Memory | None:
    fields = _fields(root / "proc/meminfo")
    total, available = fields.get("MemTotal:", 0), fields.get("MemAvailable:", 0)
    return _Memory((total - available) * 1024, total * 1024, "host") if total else None


def _group(version: _Version, directory: Path) -> _Memory | None:
    """A group's own limit and use; ``None`` without a limit ("max", and a number above all memory in version 1)."""
    limit, usage = _number(directory / version.limit), _number(directory / version.usage)
    if not limit or usage is None:
        return None
    cache = _fields(directory / "memory.stat").get(version.cache, 0)
    return _Memory(max(0, usage - cache), limit, "cgroup")


def _group_directories(root: Path) -> Iterator[tuple[_Version, Path]]:
    """The directory of our group and of each group around it, as far as they can be seen from here.

    Both versions may be mounted, one of them without the memory controller; what has no files of it is passed over.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _id, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = _V1 if "memory" in controllers.split(",") else None if controllers else _V2
        mount = version and _mount(root, version)
        if version is None or mount is None:
            continue
        mounted, top = mount
        inside = os.path.relpath(group or "/", mounted)
        if inside.startswith("..") or group.startswith("/.."):
            inside = "."  # outside of what is mounted: in a container that is its own group, and all that can be seen
        directory = top / inside
        while directory != top:
            yield version, directory
            directory = directory.parent
        yield version, top


def _mount(root: Path, version: _Version) -> tuple[str, Path] | None:
    """Which group is mounted where. A line is: id parent device group where options... - type source options."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 5 or len(right) < 3 or right[0] != version.file_system:
            continue
        if version is _V2 or "memory" in right[2].split(","):
            return left[3], root / left[4].lstrip("/")
    return None


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _number(path: Path) -> int | None:
    text = "".join(_lines(path))
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """Lines of a name and a number, with or without a unit behind it."""
    words = (line.split() for line in _lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _percent(share: float) -> float:
    return round(share * 100, 1)


def _size(count: float) -> str:
    """A number of bytes, for people."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
