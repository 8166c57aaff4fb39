"""Checks of the machine on a small file system of their own, which root may mount."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import Check, Lifecycle
from flask_lifecycle.checks import DiskCheck, MaintenanceFileCheck, MemoryCheck, PathCheck
from tests._fakes import fails
from tests._needs import missing
from tests.checks.test_system import MIB, said


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte and 32 files; mounting it needs the right to."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ("mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=32", "tmpfs", str(path))
    if subprocess.run(command, capture_output=True, timeout=60).returncode:
        missing("the right to mount a file system")
    yield path
    run("umount", str(path))


def test_a_disk_that_fills(disk: Path) -> None:
    """The check passes, warns at nine tenths, fails when the disk is full, and passes again when there is room."""
    check = DiskCheck(disk, fail_free=100 * 1024)
    assert check().observed["used_percent"] < 5
    assert (check().status, check().unit) == ("pass", "%")
    (disk / "file").write_bytes(b"x" * (MIB - 100 * 1024))
    assert said(check()) == ("warn", "The disk is 90.2 % full, 100 KiB are free.")
    assert check().value == 90.2
    assert check().observed == {"used_percent": 90.2, "free_bytes": 102400, "free_files": 30}
    with contextlib.suppress(OSError), (disk / "rest").open("wb") as file:
        file.write(b"x" * MIB)
    assert said(check()) == ("fail", "The disk is 100 % full, 0 bytes are free.")
    (disk / "file").unlink()
    assert check().status == "pass"


def test_the_thresholds_of_a_disk(disk: Path) -> None:
    """Each of the four thresholds decides alone; the worse of two counts."""
    (disk / "file").write_bytes(b"x" * (MIB // 2))
    half = MIB // 2
    for options, status in (
        ({}, "pass"),
        ({"warn_free": half}, "pass"),
        ({"warn_free": half + 1}, "warn"),
        ({"fail_free": half + 1}, "fail"),
        ({"warn_share": 0.5}, "warn"),
        ({"fail_share": 0.5}, "fail"),
        ({"fail_share": 0.51}, "pass"),
        ({"warn_share": 0.5, "fail_free": half + 1}, "fail"),
    ):
        off: dict[str, Any] = {"fail_free": None, "warn_share": None}
        assert DiskCheck(disk, **off | options)().status == status


def test_the_default_thresholds_of_a_disk(disk: Path) -> None:
    """Ten mebibytes must be free, which a disk of one never has."""
    assert DiskCheck(disk)().status == "fail"
    assert DiskCheck("/proc")().status == "fail"  # no size at all
    assert DiskCheck("/dev/shm", warn_share=None)().status == "pass"


def test_a_mount_and_its_marker(disk: Path) -> None:
    """A mount is seen, and so is its marker once it is there; what is below a file does not exist."""
    PathCheck(disk, kind="mount")()
    marker = PathCheck(disk / ".mounted", kind="file")
    fails(marker, "The path does not exist.")
    (disk / ".mounted").touch()
    marker()
    fails(PathCheck(disk / ".mounted" / "below"), "The path does not exist.")


def test_a_directory_that_cannot_be_written(disk: Path) -> None:
    """The check really writes: it fails on a full and on a read-only disk, and leaves nothing behind."""
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


def test_local_and_without_paths(disk: Path) -> None:
    """They can be registered, are local, and show no path."""
    lifecycle = Lifecycle()
    checks: list[Any] = [DiskCheck(disk), PathCheck(disk, kind="mount"), MaintenanceFileCheck(disk), MemoryCheck()]
    for check in checks:
        lifecycle.add_check(check)
        assert check.scope == "local"
        assert "disk/" not in f"{check!r} {check()} {Check.of(check)}"
        assert not re.search(r"/\w", str(check()))
    assert [check.name for check in checks] == ["disk", "path", "maintenance", "memory"]
