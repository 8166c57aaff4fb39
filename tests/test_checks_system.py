"""Checks of the machine: on a small file system of their own, real control groups, and trees made up for the others."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import Check, Lifecycle
from flask_lifecycle.checks import system
from flask_lifecycle.checks._check import HealthCheckError
from flask_lifecycle.checks.system import DiskCheck, MaintenanceFileCheck, MemoryCheck, PathCheck
from tests._fakes import whole

MIB = 1 << 20
SHARE = "a share of the whole greater than zero, at most 1"


def fails(check: Callable[[], Any], output: str) -> HealthCheckError:
    """Run a check that fails by raising, and compare the public sentence whole."""
    with pytest.raises(HealthCheckError, match=whole(output)) as caught:
        check()
    return caught.value


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte and 32 files; mounting it needs the right to."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=32", "tmpfs", str(path))
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if tried.returncode != 0:
        pytest.skip(f"the kernel refuses mount: {tried.stderr.strip()}")
    yield path
    run("umount", str(path))


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """The rights of nobody, while a test is on: what root may do is not refused to it."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(0)


# -- disk -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills(disk: Path) -> None:
    """The check passes, warns at nine tenths, fails when it is full, and passes again when there is room."""
    check = DiskCheck(disk, fail_free=100 * 1024)
    assert check().observed["used_percent"] < 5
    assert (check().status, check().unit) == ("pass", "%")
    (disk / "file").write_bytes(b"x" * (MIB - 100 * 1024))
    assert check()[:2] == ("warn", "The disk is 90.2 % full, 100 KiB are free.")
    assert check().value == 90.2
    assert check().observed == {"used_percent": 90.2, "free_bytes": 102400, "free_files": 30}
    with contextlib.suppress(OSError), (disk / "rest").open("wb") as file:
        file.write(b"x" * MIB)
    assert check()[:2] == ("fail", "The disk is 100 % full, 0 bytes are free.")
    (disk / "file").unlink()
    assert check().status == "pass"


def test_a_disk_without_room_for_a_file(disk: Path) -> None:
    """A file system may have space and still take no file."""
    with contextlib.suppress(OSError):
        for number in range(100):
            (disk / str(number)).touch()
    assert DiskCheck(disk, fail_free=None)()[:2] == ("fail", "The disk has no room for another file.")


def test_the_thresholds_of_a_disk(disk: Path) -> None:
    """Each of the four decides by itself, at its value; the worse of two counts."""
    (disk / "file").write_bytes(b"x" * (MIB // 2))
    off: dict[str, Any] = {"fail_free": None, "warn_share": None}
    half = MIB // 2
    assert DiskCheck(disk, **off)().status == "pass"
    assert DiskCheck(disk, **{**off, "warn_free": half})().status == "pass"
    assert DiskCheck(disk, **{**off, "warn_free": half + 1})().status == "warn"
    assert DiskCheck(disk, **{**off, "fail_free": half + 1})().status == "fail"
    assert DiskCheck(disk, **{**off, "warn_share": 0.5})().status == "warn"
    assert DiskCheck(disk, **{**off, "fail_share": 0.5})().status == "fail"
    assert DiskCheck(disk, **{**off, "fail_share": 0.51})().status == "pass"
    assert DiskCheck(disk, **{**off, "warn_share": 0.5, "fail_free": half + 1})().status == "fail"


@pytest.mark.parametrize(
    ("blocks", "free", "available", "files", "free_files", "status", "output"),
    [
        (1000, 500, 500, 9, 1, "pass", ""),
        (1000, 110, 90, 9, 1, "warn", "The disk is 90.8 % full, 360 MiB are free."),  # twenty are for root alone
        (10**9, 10, 10, 9, 1, "warn", "The disk is 100 % full, 40 MiB are free."),
        (10**9, 2, 2, 9, 1, "fail", "The disk is 100 % full, 8 MiB are free."),
        (1000, 500, 500, 9, 0, "fail", "The disk has no room for another file."),
        (1000, 500, 500, 0, 0, "pass", ""),
        (0, 0, 0, 0, 0, "fail", "The disk is 100 % full, 0 bytes are free."),
    ],
)
def test_disks_of_other_sizes(
    monkeypatch: pytest.MonkeyPatch,
    blocks: int,
    free: int,
    available: int,
    files: int,
    free_files: int,
    status: str,
    output: str,
) -> None:
    """What the system tells is reckoned as ``df`` does; blocks are of four mebibytes here."""
    told = os.statvfs_result((4096, 4 * MIB, blocks, free, available, files, free_files, free_files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: told)
    assert DiskCheck("/")()[:2] == (status, output)


def test_the_default_thresholds_of_a_disk(disk: Path) -> None:
    """Ten mebibytes must be free, which a disk of one never has; and a machine that runs tests has more."""
    assert DiskCheck(disk)().status == "fail"
    assert DiskCheck("/proc")().status == "fail"  # no size at all
    assert DiskCheck("/dev/shm", warn_share=None)().status == "pass"


def test_a_disk_that_is_not_there(tmp_path: Path) -> None:
    """The path is in the chained error, and not in the sentence."""
    error = fails(DiskCheck(tmp_path / "none"), "The disk cannot be looked at.")
    assert isinstance(error.__cause__, FileNotFoundError)


def test_a_path_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means what it meant when the check was made."""
    (tmp_path / "marker").touch()
    monkeypatch.chdir(tmp_path)
    check = PathCheck("marker")
    monkeypatch.chdir("/")
    check()


# -- paths ----------------------------------------------------------------------------------------------------------


def make_file(path: Path) -> None:
    path.write_text("x")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_link(path: Path) -> None:
    path.symlink_to("/")


def make_broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def make_nothing(path: Path) -> None: ...


NOT_THERE, NOT_FILE, NOT_DIRECTORY, NOT_MOUNTED = (
    "The path does not exist.",
    "The path is not a file.",
    "The path is not a directory.",
    "Nothing is mounted at the path.",
)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_nothing, dict.fromkeys(system._KINDS, NOT_THERE)),
        (make_broken_link, dict.fromkeys(system._KINDS, NOT_THERE)),
        (make_file, {"directory": NOT_DIRECTORY, "mount": NOT_MOUNTED, "writable": NOT_DIRECTORY}),
        (Path.mkdir, {"file": NOT_FILE, "mount": NOT_MOUNTED}),
        (os.mkfifo, {"file": NOT_FILE, "directory": NOT_DIRECTORY, "mount": NOT_MOUNTED, "writable": NOT_DIRECTORY}),
        (make_socket, {"file": NOT_FILE, "directory": NOT_DIRECTORY, "mount": NOT_MOUNTED, "writable": NOT_DIRECTORY}),
    ],
)
def test_the_kinds_of_paths(tmp_path: Path, make: Callable[[Path], None], expected: dict[str, str]) -> None:
    """Each kind passes for what it means and fails for all else, without a path in its sentence."""
    path = tmp_path / "path"
    make(path)
    for kind in system._KINDS:
        if kind in expected:
            fails(PathCheck(path, kind=kind), expected[kind])
        else:
            PathCheck(path, kind=kind)()
    assert [each.name for each in path.iterdir() if path.is_dir() and each.name] == [] if path.is_dir() else True


def test_links_are_followed(tmp_path: Path) -> None:
    """A link is what it leads to."""
    make_link(tmp_path / "link")
    PathCheck(tmp_path / "link", kind="directory")()


def test_a_mount_and_its_marker(disk: Path) -> None:
    """A mount is seen, and so is its marker once it is there; what is below a file does not exist."""
    PathCheck(disk, kind="mount")()
    marker = PathCheck(disk / ".mounted", kind="file")
    fails(marker, "The path does not exist.")
    (disk / ".mounted").touch()
    marker()
    fails(PathCheck(disk / ".mounted" / "below"), "The path does not exist.")


def test_a_directory_that_cannot_be_written(disk: Path) -> None:
    """Full, and mounted for reading only: the file is really written; well again, and nothing is left behind."""
    check = PathCheck(disk, kind="writable")
    check()
    with contextlib.suppress(OSError), (disk / "all").open("wb") as file:
        file.write(b"x" * 2 * MIB)
    error = fails(check, "The directory cannot be written to.")
    assert isinstance(error.__cause__, OSError)
    (disk / "all").unlink()
    check()
    run("mount", "-o", "remount,ro", str(disk))
    fails(check, "The directory cannot be written to.")
    run("mount", "-o", "remount,rw", str(disk))
    check()
    assert list(disk.iterdir()) == []


def test_a_quota_that_shows_only_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file system behind a network refuses late is found out: the bytes are on their way to the disk by then."""

    def refuse(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == 4096
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    fails(PathCheck(tmp_path, kind="writable"), "The directory cannot be written to.")
    assert list(tmp_path.iterdir()) == []


def test_writing_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no nameless files one is made exclusively, beside what is there, and removed."""
    monkeypatch.setattr("tempfile._O_TMPFILE_WORKS", False)
    (tmp_path / "mine").write_text("untouched")
    PathCheck(tmp_path, kind="writable")()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_directory_without_permission(tmp_path: Path, unprivileged: None) -> None:
    """What this process may not write to, or not even look into, fails."""
    fails(PathCheck("/", kind="writable"), "The directory cannot be written to.")
    fails(PathCheck("/root/any"), "The path cannot be looked at.")


def test_bad_kinds_of_paths() -> None:
    """An unknown kind is refused with those that there are."""
    message = "'kind' must be one of 'exists', 'file', 'directory', 'mount', 'writable', not 'dir'."
    with pytest.raises(ValueError, match=whole(message)):
        PathCheck("/", kind="dir")


# -- maintenance ----------------------------------------------------------------------------------------------------


def test_maintenance_begins_and_ends_with_the_file(tmp_path: Path) -> None:
    """While the file exists the check fails, with its first line for a reason."""
    path = tmp_path / "maintenance"
    check = MaintenanceFileCheck(path)
    assert check() == ("pass", "", {}, None, "")
    path.write_text("The database moves until 9 o'clock.\nNot for the public.\n")
    assert check()[:2] == ("fail", "The database moves until 9 o'clock.")
    path.unlink()
    assert check().status == "pass"
    assert (check.critical, check.scope, check.groups) == (True, "local", ("ready",))


@pytest.mark.parametrize(
    ("content", "output"),
    [
        (b"", "Out of rotation for maintenance."),
        (b"\n", "Out of rotation for maintenance."),
        (b" \t \r\nsecond", "Out of rotation for maintenance."),
        (b"a\tb\x00c\x1b[31md\x7fe", "a b c [31md e"),
        ("caf\u00e9 \u202e gpj\u2028next".encode(), "caf\u00e9 gpj"),
        (b"bad \xff utf-8", "bad \ufffd utf-8"),
        (b"x" * 5000, "x" * 200),
        ("\u20ac".encode() * 500, "\u20ac" * 200),
    ],
)
def test_the_reason_is_one_printable_line(tmp_path: Path, content: bytes, output: str) -> None:
    """Whatever the file holds, what is shown is short and printable."""
    (tmp_path / "maintenance").write_bytes(content)
    assert MaintenanceFileCheck(tmp_path / "maintenance")()[:2] == ("fail", output)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_socket, make_link])
def test_maintenance_by_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A directory, a pipe or a socket keeps the instance out as well; none of them is waited for, or kept open."""
    path = tmp_path / "maintenance"
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    assert MaintenanceFileCheck(path)()[:2] == ("fail", "Out of rotation for maintenance.")
    assert len(os.listdir("/proc/self/fd")) == before


def test_maintenance_that_may_not_be_read(unprivileged: None) -> None:
    """A file without permission keeps the instance out, and so does one that cannot be looked for."""
    assert MaintenanceFileCheck("/etc/shadow")()[:2] == ("fail", "Out of rotation for maintenance.")
    error = fails(MaintenanceFileCheck("/root/any"), "The maintenance file cannot be looked for.")
    assert isinstance(error.__cause__, PermissionError)


def test_maintenance_below_what_is_missing(tmp_path: Path) -> None:
    """A link to nothing, and a path below a file, do not exist."""
    make_broken_link(tmp_path / "link")
    make_file(tmp_path / "file")
    assert MaintenanceFileCheck(tmp_path / "link")().status == "pass"
    assert MaintenanceFileCheck(tmp_path / "file" / "below")().status == "pass"


# -- memory ---------------------------------------------------------------------------------------------------------

HOST = {"proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\nHugePages_Total: 0\n"}
V2_MOUNT = "31 23 0:28 {top} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
V1_MOUNT = (
    "32 31 0:29 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu\n"
    "33 31 0:30 {top} /sys/fs/cgroup/memory rw shared:2 - cgroup cgroup rw,memory\n"
)
NO_LIMIT_V1 = "9223372036854771712\n"


def v2(limit: Any, usage: int, cache: int = 0, below: str = "") -> dict[str, str]:
    """The files of a group of version 2."""
    top = f"sys/fs/cgroup{below}/"
    return {
        top + "memory.max": f"{limit}\n",
        top + "memory.current": f"{usage}\n",
        top + "memory.stat": f"anon 5\ninactive_file {cache}\nactive_file 7\n",
    }


def v1(limit: Any, usage: int, cache: int = 0, below: str = "") -> dict[str, str]:
    """The files of a group of version 1."""
    top = f"sys/fs/cgroup/memory{below}/"
    return {
        top + "memory.limit_in_bytes": f"{limit}\n",
        top + "memory.usage_in_bytes": f"{usage}\n",
        top + "memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {cache}\n",
    }


def of(group: str, mounts: str, top: str = "/") -> dict[str, str]:
    """What a process knows of its groups and mounts."""
    return {"proc/self/cgroup": group, "proc/self/mountinfo": mounts.format(top=top)}


CONTAINER = of("0::/\n", V2_MOUNT)
NESTED = of("0::/pod/app\n", V2_MOUNT)
OLD = of("9:name=systemd:/x\n4:cpu,memory:/pod/app\n0::/\n", V1_MOUNT)
TREES: dict[str, tuple[list[dict[str, str]], tuple[int, int, str]]] = {
    "no limit": ([HOST], (2048, 8192, "host")),
    "v2 max": ([HOST, CONTAINER, v2("max", 7000 * MIB)], (2048, 8192, "host")),
    "v2": ([HOST, CONTAINER, v2(512 * MIB, 500 * MIB)], (500, 512, "cgroup")),
    "v2 without cache": ([HOST, CONTAINER, v2(512 * MIB, 500 * MIB, 300 * MIB)], (200, 512, "cgroup")),
    "v2 more cache than use": ([HOST, CONTAINER, v2(512 * MIB, 1, 300 * MIB)], (0, 512, "cgroup")),
    "v2 above the machine": ([HOST, CONTAINER, v2(9000 * MIB, 8900 * MIB)], (2048, 8192, "host")),
    "v2 own": ([HOST, NESTED, v2("max", 1, 0, "/pod"), v2(MIB * 64, MIB * 32, 0, "/pod/app")], (32, 64, "cgroup")),
    "v2 parent": (
        [HOST, NESTED, v2(MIB * 100, MIB * 80, 0, "/pod"), v2("max", MIB * 32, 0, "/pod/app")],
        (80, 100, "cgroup"),
    ),
    "v2 parent is nearer to its limit": (
        [HOST, NESTED, v2(MIB * 100, MIB * 90, 0, "/pod"), v2(MIB * 64, MIB * 32, 0, "/pod/app")],
        (90, 100, "cgroup"),
    ),
    "v2 own is nearer to its limit": (
        [HOST, NESTED, v2(MIB * 100, MIB * 60, 0, "/pod"), v2(MIB * 64, MIB * 60, 0, "/pod/app")],
        (60, 64, "cgroup"),
    ),
    "v2 seen from inside": (
        [HOST, of("0::/kubepods/pod1/c1\n", V2_MOUNT, "/kubepods/pod1/c1"), v2(MIB * 64, MIB * 32)],
        (32, 64, "cgroup"),
    ),
    "v2 outside of the name space": (
        [HOST, of("0::/../../other\n", V2_MOUNT), v2(MIB * 64, MIB * 32), v2(MIB, MIB, 0, "/other")],
        (32, 64, "cgroup"),
    ),
    "v1": ([HOST, OLD, v1(64 * MIB, 60 * MIB, 28 * MIB, "/pod/app")], (32, 64, "cgroup")),
    "v1 no limit": ([HOST, OLD, v1(NO_LIMIT_V1, 60 * MIB, 0, "/pod/app")], (2048, 8192, "host")),
    "v1 parent": (
        [HOST, OLD, v1(NO_LIMIT_V1, 9 * MIB, 0, "/pod/app"), v1(100 * MIB, 70 * MIB, 0, "/pod")],
        (70, 100, "cgroup"),
    ),
    "v1 seen from inside": (
        [HOST, of("4:memory:/docker/abc\n", V1_MOUNT, "/docker/abc"), v1(MIB * 64, MIB * 32)],
        (32, 64, "cgroup"),
    ),
    "v1 with a colon in its name": (
        [HOST, of("4:memory:/a:b\n", V1_MOUNT), v1(MIB * 64, MIB * 32, 0, "/a:b")],
        (32, 64, "cgroup"),
    ),
    "no memory of the machine": ([CONTAINER, v2(512 * MIB, 128 * MIB)], (128, 512, "cgroup")),
    "nonsense": (
        [HOST, of("nonsense\n0\n::\n5:memory\n", "nonsense\na b c - cgroup2\n - \n"), v2("x", 1)],
        (2048, 8192, "host"),
    ),
    "no use": ([HOST, CONTAINER, {"sys/fs/cgroup/memory.max": "1000\n"}], (2048, 8192, "host")),
}


def planted(root: Path, *trees: dict[str, str]) -> MemoryCheck:
    """A check that sees these files as the machine's."""
    for path, text in (item for tree in trees for item in tree.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    check = MemoryCheck()
    check._root = str(root)
    return check


@pytest.mark.parametrize("name", TREES)
def test_the_memory_that_binds(tmp_path: Path, name: str) -> None:
    """The group nearest to its limit counts, ours or one around it; the machine's memory where none has a limit."""
    trees, (used, limit, whose) = TREES[name]
    observed = planted(tmp_path, *trees)().observed
    assert (observed["used_bytes"] // MIB, observed["limit_bytes"] // MIB, observed["of"]) == (used, limit, whose)


def test_memory_that_cannot_be_read(tmp_path: Path) -> None:
    """Without any of these files the check warns, and takes nobody out of rotation."""
    assert planted(tmp_path)()[:2] == ("warn", "The memory in use cannot be read here.")


def test_the_thresholds_of_memory(tmp_path: Path) -> None:
    """By default it warns at nine tenths and never fails."""
    check = planted(tmp_path, HOST, CONTAINER, v2(1000, 899))
    assert check().status == "pass"
    planted(tmp_path, v2(1000, 900))
    assert check()[:2] == ("warn", "90 % of 1000 bytes of memory are used.")
    assert (check().value, check().unit) == (90.0, "%")
    planted(tmp_path, v2(1000, 1000))
    assert check().status == "warn"
    check._share = MemoryCheck(fail_share=1)._share
    assert check().status == "fail"
    check = planted(tmp_path / "host", HOST)
    check._share = (0.25, None)
    assert check()[:2] == ("warn", "25 % of 8.0 GiB of memory are used.")


def test_the_memory_of_this_machine() -> None:
    """The real files of this process are read, and give something that can be."""
    observed = MemoryCheck(warn_share=None)().observed
    assert (
        0 < observed["used_bytes"] < observed["limit_bytes"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    assert observed["of"] in ("cgroup", "host")


# -- together -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "arguments", "kind", "message"),
    [
        (DiskCheck, {"path": "/", "warn_share": float("nan")}, ValueError, f"'warn_share' must be {SHARE}, not nan."),
        (DiskCheck, {"path": "/", "warn_share": 90}, ValueError, f"'warn_share' must be {SHARE}, not 90."),
        (DiskCheck, {"path": "/", "fail_share": 0}, ValueError, f"'fail_share' must be {SHARE}, not 0."),
        (DiskCheck, {"path": "/", "fail_share": True}, TypeError, f"'fail_share' must be {SHARE}, not True."),
        (
            DiskCheck,
            {"path": "/", "warn_share": 0.9, "fail_share": 0.8},
            ValueError,
            "'warn_share' must not be more than 'fail_share', or it never warns: 0.9 and 0.8.",
        ),
        (
            DiskCheck,
            {"path": "/", "warn_free": 5},
            ValueError,
            "'warn_free' must not be less than 'fail_free', or it never warns: 5 and 10485760.",
        ),
        (
            DiskCheck,
            {"path": "/", "fail_free": -1},
            ValueError,
            "'fail_free' must be a number of bytes greater than zero, not -1.",
        ),
        (
            DiskCheck,
            {"path": "/", "fail_free": "10MB"},
            TypeError,
            "'fail_free' must be a number of bytes greater than zero, not '10MB'.",
        ),
        (MemoryCheck, {"warn_share": float("inf")}, ValueError, f"'warn_share' must be {SHARE}, not inf."),
        (DiskCheck, {"path": None}, TypeError, "'path' must be a string or a path, not NoneType."),
        (
            PathCheck,
            {"path": "a\0b"},
            ValueError,
            "'path' must name a file or directory; it is empty or holds a null character.",
        ),
        (
            MaintenanceFileCheck,
            {"path": ""},
            ValueError,
            "'path' must name a file or directory; it is empty or holds a null character.",
        ),
    ],
)
def test_bad_arguments(check: Any, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Each is one sentence, at construction."""
    with pytest.raises(kind, match=whole(message)):
        check(**arguments)


def test_what_they_see_is_local_and_without_paths(disk: Path) -> None:
    """They can be registered, are a matter of this instance, and show no path."""
    lifecycle = Lifecycle()
    checks: list[Any] = [DiskCheck(disk), PathCheck(disk, kind="mount"), MaintenanceFileCheck(disk), MemoryCheck()]
    for check in checks:
        lifecycle.add_check(check)
        assert check.scope == "local"
        assert "disk/" not in f"{check!r} {check()} {Check.of(check)}"
        assert not re.search(r"/\w", str(check()))
    assert [check.name for check in checks] == ["disk", "path", "maintenance", "memory"]
