"""Checks of the machine: on a small file system, with the real control groups, and with made-up trees."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import CheckResult
from flask_lifecycle.checks import DiskCheck, MaintenanceFileCheck, MemoryCheck, PathCheck
from tests._fakes import fails

MIB = 1 << 20


def said(result: CheckResult) -> tuple[str, str]:
    """The status and the text of a result."""
    return result.status, result.output


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """The rights of nobody during a test: root may do what the test expects to be refused."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    yield
    os.seteuid(0)
    os.setegid(0)


@pytest.mark.parametrize(
    ("blocks", "files", "status", "output"),
    [
        ((1000, 500, 500), (9, 1), "pass", ""),
        ((1000, 110, 90), (9, 1), "warn", "The disk is 90.8 % full, 360 MiB are free."),  # twenty are only for root
        ((10**9, 10, 10), (9, 1), "warn", "The disk is 100 % full, 40 MiB are free."),
        ((10**9, 2, 2), (9, 1), "fail", "The disk is 100 % full, 8 MiB are free."),
        ((1000, 500, 500), (9, 0), "fail", "The disk has no free inodes."),
        ((1000, 500, 500), (0, 0), "pass", ""),
        ((0, 0, 0), (0, 0), "fail", "The disk is 100 % full, 0 bytes are free."),
    ],
)
def test_disks_of_other_sizes(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, ...], files: tuple[int, ...], status: str, output: str
) -> None:
    """The share is computed as ``df`` does it, of all, free and available blocks of four mebibytes."""
    found = os.statvfs_result((4096, 4 * MIB, *blocks, *files, files[1], 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: found)
    assert said(DiskCheck("/")()) == (status, output)


def test_a_missing_disk(tmp_path: Path) -> None:
    """The path is in the chained error, and not in the sentence."""
    error = fails(DiskCheck(tmp_path / "none"), "The disk cannot be read.")
    assert isinstance(error.__cause__, FileNotFoundError)


def test_a_path_does_not_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means what it meant when the check was made."""
    (tmp_path / "marker").touch()
    monkeypatch.chdir(tmp_path)
    check = PathCheck("marker")
    monkeypatch.chdir("/")
    check()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_link(path: Path) -> None:
    target = path.parent / "directory"
    target.mkdir()
    path.symlink_to(target)


def make_broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


KINDS = ("exists", "file", "directory", "mount", "writable")
NOT_THERE, NOT_FILE, NOT_DIRECTORY, NOT_MOUNTED = (
    "The path does not exist.",
    "The path is not a file.",
    "The path is not a directory.",
    "Nothing is mounted at the path.",
)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _path: None, dict.fromkeys(KINDS, NOT_THERE)),
        (make_broken_link, dict.fromkeys(KINDS, NOT_THERE)),
        (Path.touch, {"directory": NOT_DIRECTORY, "mount": NOT_MOUNTED, "writable": NOT_DIRECTORY}),
        (Path.mkdir, {"file": NOT_FILE, "mount": NOT_MOUNTED}),
        (make_link, {"file": NOT_FILE, "mount": NOT_MOUNTED}),
        (os.mkfifo, {"file": NOT_FILE, "directory": NOT_DIRECTORY, "mount": NOT_MOUNTED, "writable": NOT_DIRECTORY}),
        (make_socket, {"file": NOT_FILE, "directory": NOT_DIRECTORY, "mount": NOT_MOUNTED, "writable": NOT_DIRECTORY}),
    ],
)
def test_the_kinds_of_paths(tmp_path: Path, make: Callable[[Path], None], expected: dict[str, str]) -> None:
    """Each kind passes for what it means and fails for all else, without a path in its sentence."""
    path = tmp_path / "path"
    make(path)
    for kind in KINDS:
        if kind in expected:
            fails(PathCheck(path, kind=kind), expected[kind])
        else:
            PathCheck(path, kind=kind)()
    assert not path.is_dir() or list(path.iterdir()) == []


def test_a_quota_that_shows_only_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check syncs the file, so it finds what a network file system refuses late."""

    def refuse(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == 4096
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    fails(PathCheck(tmp_path, kind="writable"), "The directory cannot be written to.")
    assert list(tmp_path.iterdir()) == []


def test_writing_without_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system without nameless files the check creates one exclusively and removes it."""
    real = os.open

    def refuse(path: str, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    (tmp_path / "mine").write_text("untouched")
    PathCheck(tmp_path, kind="writable")()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_directory_without_permission(tmp_path: Path, unprivileged: None) -> None:
    """A directory that this process may not write to or enter fails."""
    fails(PathCheck("/", kind="writable"), "The directory cannot be written to.")
    fails(PathCheck("/root/any"), "The path cannot be read.")


def test_maintenance_begins_and_ends_with_the_file(tmp_path: Path) -> None:
    """While the file exists the check fails; a link to nothing, and a path below a file, do not exist."""
    path = tmp_path / "maintenance"
    check = MaintenanceFileCheck(path)
    assert check() == CheckResult()
    path.write_text("The database moves until 9 o'clock.\nNot for the public.\n")
    assert said(check()) == ("fail", "The database moves until 9 o'clock.")
    assert MaintenanceFileCheck(path / "below")().status == "pass"
    path.unlink()
    assert check().status == "pass"
    make_broken_link(path)
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
    """The reason is short and printable, whatever the file contains."""
    (tmp_path / "maintenance").write_bytes(content)
    assert said(MaintenanceFileCheck(tmp_path / "maintenance")()) == ("fail", output)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_socket, make_link])
def test_maintenance_without_a_regular_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A directory, a pipe or a socket works as well; the check does not wait for it or keep it open."""
    path = tmp_path / "maintenance"
    make(path)
    before = len(os.listdir("/proc/self/fd"))
    assert said(MaintenanceFileCheck(path)()) == ("fail", "Out of rotation for maintenance.")
    assert len(os.listdir("/proc/self/fd")) == before


def test_maintenance_that_may_not_be_read(unprivileged: None) -> None:
    """A file without permission works as well, and so does one in a directory without permission."""
    assert said(MaintenanceFileCheck("/etc/shadow")()) == ("fail", "Out of rotation for maintenance.")
    error = fails(MaintenanceFileCheck("/root/any"), "The maintenance file cannot be read.")
    assert isinstance(error.__cause__, PermissionError)


HOST = {"proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\nHugePages_Total: 0\n"}


def group(limit: Any, usage: int, cache: int = 0, below: str = "") -> dict[str, str]:
    """The files of a control group."""
    top = f"sys/fs/cgroup{below}/"
    return {
        top + "memory.max": f"{limit}\n",
        top + "memory.current": f"{usage}\n",
        top + "memory.stat": f"anon 5\ninactive_file {cache}\nactive_file 7\n",
    }


def of(path: str) -> dict[str, str]:
    """The control group of the process."""
    return {"proc/self/cgroup": f"9:name=systemd:/x\n0::{path}\n"}


def pod(limit: Any, usage: int) -> dict[str, str]:
    return group(limit, usage, 0, "/pod")


def app(limit: Any, usage: int) -> dict[str, str]:
    return group(limit, usage, 0, "/pod/app")


TREES: dict[str, tuple[list[dict[str, str]], tuple[int, int, str]]] = {
    "no limit": ([HOST], (2048, 8192, "host")),
    "max": ([HOST, of("/"), group("max", 7000 * MIB)], (2048, 8192, "host")),
    "limit": ([HOST, of("/"), group(512 * MIB, 500 * MIB)], (500, 512, "cgroup")),
    "without cache": ([HOST, of("/"), group(512 * MIB, 500 * MIB, 300 * MIB)], (200, 512, "cgroup")),
    "more cache than use": ([HOST, of("/"), group(512 * MIB, 1, 300 * MIB)], (0, 512, "cgroup")),
    "above the machine": ([HOST, of("/"), group(9000 * MIB, 8900 * MIB)], (2048, 8192, "host")),
    "own": ([HOST, of("/pod/app"), pod("max", 1), app(MIB * 64, MIB * 32)], (32, 64, "cgroup")),
    "parent": ([HOST, of("/pod/app"), pod(MIB * 100, MIB * 80), app("max", MIB * 32)], (80, 100, "cgroup")),
    "parent nearer": ([HOST, of("/pod/app"), pod(MIB * 100, MIB * 90), app(MIB * 64, MIB * 32)], (90, 100, "cgroup")),
    "own nearer": ([HOST, of("/pod/app"), pod(MIB * 100, MIB * 60), app(MIB * 64, MIB * 60)], (60, 64, "cgroup")),
    "from inside": ([HOST, of("/kubepods/pod1/c1"), group(MIB * 64, MIB * 32)], (32, 64, "cgroup")),
    "outside of the name space": ([HOST, of("/../../other"), group(MIB * 64, MIB * 32)], (32, 64, "cgroup")),
    "no memory of the machine": ([of("/"), group(512 * MIB, 128 * MIB)], (128, 512, "cgroup")),
    "nonsense": ([HOST, {"proc/self/cgroup": "nonsense\n0\n::\n5:memory\n"}, group("x", 1)], (2048, 8192, "host")),
    "no use": ([HOST, of("/"), {"sys/fs/cgroup/memory.max": "1000\n"}], (2048, 8192, "host")),
}


def planted(root: Path, *trees: dict[str, str], **options: Any) -> MemoryCheck:
    """A check that reads these files as the machine's."""
    for path, text in (item for tree in trees for item in tree.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    check = MemoryCheck(**options)
    check._root = str(root)
    return check


@pytest.mark.parametrize("name", TREES)
def test_the_memory_that_binds(tmp_path: Path, name: str) -> None:
    """The group nearest to its limit counts, ours or one around it; without a limit the memory of the machine."""
    trees, (used, limit, whose) = TREES[name]
    observed = planted(tmp_path, *trees)().observed
    assert (observed["used_bytes"] // MIB, observed["limit_bytes"] // MIB, observed["of"]) == (used, limit, whose)


def test_the_thresholds_of_memory(tmp_path: Path) -> None:
    """By default it warns at nine tenths and never fails; where nothing can be read it only warns."""
    assert said(planted(tmp_path / "empty")()) == ("warn", "The memory in use cannot be read.")
    check = planted(tmp_path, HOST, of("/"), group(1000, 899))
    assert check().status == "pass"
    planted(tmp_path, group(1000, 900))
    assert said(check()) == ("warn", "90 % of 1000 bytes of memory are used.")
    assert (check().value, check().unit) == (90.0, "%")
    assert planted(tmp_path, group(1000, 1000))().status == "warn"
    assert planted(tmp_path, fail_share=1)().status == "fail"
    check = planted(tmp_path / "host", HOST, warn_share=0.25)
    assert said(check()) == ("warn", "25 % of 8.0 GiB of memory are used.")


def test_the_memory_of_this_machine() -> None:
    """The real files of this process are read, and give something that can be."""
    observed = MemoryCheck(warn_share=None)().observed
    assert (
        0 < observed["used_bytes"] < observed["limit_bytes"] <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    assert observed["of"] in ("cgroup", "host")
