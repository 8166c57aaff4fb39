"""The heartbeat of a job, in this process on a clock of the test, and of another process by the time of a file."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flask_lifecycle import CheckResult, Lifecycle
from flask_lifecycle.checks import Heartbeat
from tests._fakes import ROOT, ManualClock, fails


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def made(clock: ManualClock, path: Path | None = None) -> Heartbeat:
    return Heartbeat("importer", max_age=60, path=path, clock=clock.monotonic)


def test_a_job_that_beats_is_well(clock: ManualClock) -> None:
    """The check passes up to the largest age, from its creation until there is a beat, and fails above it."""
    beat = made(clock)
    Lifecycle().add_check(beat)
    assert (beat.name, beat.scope) == ("importer", "local")
    clock.advance(60)
    assert beat()[:3] == ("pass", "", {"age": 60.0, "max_age": 60, "beaten": False})
    clock.advance(1)
    assert beat()[:2] == ("fail", "There has been no beat for 61.0 s; at most 60 s are allowed.")
    beat.beat()
    clock.advance(60)
    assert beat() == CheckResult("pass", "", {"age": 60.0, "max_age": 60, "beaten": True}, 60.0, "s")
    clock.advance(0.5)
    assert beat()[:2] == ("fail", "The last beat was 60.5 s ago; at most 60 s are allowed.")
    beat.beat()
    assert (beat().status, beat().value) == ("pass", 0.0)


def test_the_clock_is_one_that_cannot_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default the clock is monotonic."""
    beat = Heartbeat("importer", max_age=60)
    beat.beat()
    for now in (0.0, 4e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert beat().status == "pass"


def test_another_process_beats(tmp_path: Path) -> None:
    """The first beat creates the file, and its time is the beat, ours or that of ``touch``."""
    path = tmp_path / "beat"
    beat = Heartbeat("importer", max_age=60, path=path)
    assert not beat().observed["beaten"]
    code = (
        "from flask_lifecycle.checks.heartbeat import Heartbeat; import sys; Heartbeat('', max_age=1, path=sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", f"{code}.beat()", str(path)], cwd=ROOT, check=True, timeout=60)
    assert beat().observed["beaten"]
    assert path.read_bytes() == b""
    os.utime(path, (1, 1))
    subprocess.run(["touch", str(path)], check=True, timeout=60)
    assert beat().observed["beaten"]
    assert beat().status == "pass"


def test_the_time_of_day_may_be_set(clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of the system time after a beat was seen do not change its age."""
    path = tmp_path / "beat"
    beat = made(clock, path)
    clock.advance(5)
    path.touch()
    os.utime(path, (1000.0, 1000.0))
    monkeypatch.setattr(time, "time", lambda: 1003.0)
    assert beat().value == 3.0
    monkeypatch.setattr(time, "time", lambda: 900000.0)  # set forwards
    clock.advance(10)
    assert beat().value == 13.0
    monkeypatch.setattr(time, "time", lambda: 0.0)  # set backwards
    clock.advance(10)
    assert beat().value == 23.0
    clock.advance(40)
    assert beat().status == "fail"
    os.utime(path, (5000.0, 5000.0))  # a beat in the future is one of now, and ages as any other
    assert beat().value == 0.0
    clock.advance(61)
    assert beat().status == "fail"


def test_the_file_of_an_earlier_life(clock: ManualClock, tmp_path: Path) -> None:
    """A beat from before this process counts as none."""
    path = tmp_path / "beat"
    path.touch()
    os.utime(path, (1, 1))
    beat = made(clock, path)
    assert beat()[:3] == ("pass", "", {"age": 0.0, "max_age": 60, "beaten": False})
    clock.advance(61)
    assert beat()[:2] == ("fail", "There has been no beat for 61.0 s; at most 60 s are allowed.")


def test_a_beat_that_cannot_be_written(clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The job does not fail for it; it is logged once, and again after a success; the check fails."""
    path = tmp_path / "missing" / "beat"
    beat = made(clock, path)
    caplog.set_level(logging.WARNING)
    beat.beat()
    beat.beat()
    assert [record.getMessage() for record in caplog.records] == ["the beat of 'importer' cannot be written"]
    clock.advance(61)
    assert beat().status == "fail"
    path.parent.mkdir()
    beat.beat()
    assert beat().status == "pass"
    path.unlink()
    path.parent.rmdir()
    beat.beat()
    assert len(caplog.records) == 2


def test_a_beat_that_cannot_be_read(clock: ManualClock, tmp_path: Path) -> None:
    """A beat that cannot be read fails, with the reason for the log; a path below a file does not exist."""
    # A link to nothing creates no file elsewhere.
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    error = fails(made(clock, tmp_path / "loop" / "beat"), "The beat cannot be read.")
    assert isinstance(error.__cause__, OSError)
    (tmp_path / "file").touch()
    assert not made(clock, tmp_path / "file" / "beat")().observed["beaten"]
    (tmp_path / "beat").symlink_to(tmp_path / "elsewhere")
    made(clock, tmp_path / "beat").beat()
    assert not (tmp_path / "elsewhere").exists()
