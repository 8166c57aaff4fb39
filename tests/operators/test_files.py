"""What operators ask for by file: whose files count, which of them are new, and that nobody waits for them."""

from __future__ import annotations

import builtins
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import Lifecycle, State
from tests._fakes import BOUND, in_child, make_app, raiser, running, until, whole
from tests._needs import need_root
from tests.operators import test_cordon
from tests.operators.test_cordon import warnings


class Subject(test_cordon.Subject):
    """A started application whose control directory is looked at when the test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path
        self.directory: Any = self.state.features["control directory"]

    def write(self, text: str | bytes, age: float = 0.0) -> None:
        """Put a cordon into the place of another, in one step and as another file, some seconds old."""
        new = self.path / ".new"
        new.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(new, (time.time() - age,) * 2)
        new.rename(self.path / "cordon")

    def look(self, times: int = 1, cordon: str | bytes | None = None, age: float = 0.0) -> Any:
        """Write a cordon, if one is given, and look."""
        if cordon is not None:
            self.write(cordon, age)
        for _ in range(times):
            again = self.directory.look()
        return again

    def remove(self, times: int = 1) -> None:
        """Remove the cordon, and look."""
        (self.path / "cordon").unlink()
        self.look(times)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory that is ours alone."""
    made = tmp_path / "control"
    made.mkdir(mode=0o755)
    return made


@pytest.fixture
def subject(path: Path) -> Iterator[Subject]:
    """An application whose directory was empty at the first look."""
    subject = Subject(path)
    subject.look()
    yield subject
    subject.control.stop()
    subject.directory.stop()


def test_a_drain_is_asked_for_once(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """A file 'drain' that comes begins the shutdown, stays where it is, and is not looked at again."""
    assert subject.look(3) == 1.0
    (subject.path / "drain").touch()
    assert subject.look() is None
    reason = f"drain requested by the file '{subject.path}/drain'"
    assert subject.drained_by == reason
    assert warnings(caplog) == [f"{reason} (file)"]
    assert (subject.path / "drain").exists()


@pytest.mark.parametrize("how", ["touched", "moved"])
@pytest.mark.parametrize("time", [1, 2**32])
def test_a_stale_drain_is_ignored(path: Path, caplog: pytest.LogCaptureFixture, time: int, how: str) -> None:
    """A file that was there before is ignored, with one line that says so, until it is touched or comes again."""
    # The clock is not asked whether it is new: the clocks of who writes it and of this machine differ.
    (path / "drain").touch()
    os.utime(path / "drain", (time, time))
    subject = Subject(path)
    assert subject.look(3) == 1.0
    assert subject.drained_by is None
    assert warnings(caplog) == [
        f"the file '{path}/drain' was there before this process began, and is ignored; remove it, or touch it to drain"
    ]
    if how == "touched":
        (path / "drain").touch()
    else:  # it was seen to be gone, and the same file comes back
        (path / "drain").rename(path / "away")
        subject.look()
        (path / "away").rename(path / "drain")
    assert subject.look() is None
    assert subject.drained_by


def test_a_drain_between_init_app_and_the_first_look(path: Path) -> None:
    """What comes after init_app is meant for this process, although it has not looked yet."""
    subject = Subject(path)
    (path / "drain").touch()
    assert subject.look() is None


def test_a_process_that_was_forked_since_begins_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that takes the place of a drained one is not stopped by the file that stopped that one."""
    subject = Subject(path)  # in the master, which loads the application and forks
    (path / "drain").touch()

    def forked() -> int:
        assert subject.look() == 1.0
        assert "was there before this process began" in warnings(caplog)[0]
        (path / "drain").unlink()
        (path / "drain").touch()
        os.utime(path / "drain", ns=(1, 1))
        return 0 if subject.look() is None else 1

    assert in_child(forked) == 0


def test_a_child_that_serves_beside_its_parent(subject: Subject) -> None:
    """It watches the directory in a thread of its own; its parent's thread does not exist there."""
    subject.directory.begin()

    def forked() -> int:
        subject.directory.after_fork()
        subject.directory.begin()
        subject.write("10m by alice")
        until(lambda: not subject.ready)
        return 0

    assert in_child(forked) == 0


@pytest.mark.parametrize("text", ["10m by alice", "for 10m by alice\n", "for\t10m  by alice \r\n", "600 by alice"])
def test_a_cordon_by_file(subject: Subject, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file 'cordon' begins a lease once, which ends when the file is removed."""
    subject.look(cordon=text, times=3)
    assert (subject.lifecycle.state, subject.reason) == (State.NOT_READY, "cordoned by alice for 10m")
    subject.remove(2)
    assert subject.ready
    assert warnings(caplog) == [
        "cordon for 10m requested by alice (file)",
        "uncordon requested by the removal of its file (file)",
    ]


def test_a_lease_ends_although_its_file_stays(subject: Subject) -> None:
    """A lease ends by itself, and its file, which is still there, does not begin it again until it is written anew."""
    subject.look(cordon="10m by alice")
    subject.clock.pass_wait()
    until(lambda: subject.ready)
    subject.look(2)
    assert subject.ready
    subject.look(cordon="10m by alice")
    assert not subject.ready
    subject.look(cordon="20m by bob")
    assert subject.reason == "cordoned by bob for 20m"


@pytest.mark.parametrize(("age", "left"), [(0, 600), (400, 200), (-1000, 600)])
def test_a_cordon_survives_a_restart(path: Path, age: float, left: float) -> None:
    """What is left of a lease is kept by the next process; where the clocks differ, no more than the whole of it."""
    subject = Subject(path)
    subject.look(cordon="10m by alice", age=age)
    assert subject.reason == "cordoned by alice for 10m"
    assert subject.clock.waits.get(timeout=BOUND) == pytest.approx(left, abs=60)
    subject.control.stop()


def test_cordons_that_are_old(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """A lease that was over before the process began does nothing; a file that comes later counts whatever its time."""
    subject.write("10m by alice", age=601)
    fresh = Subject(subject.path)
    fresh.look(2)
    (subject.path / "cordon").unlink()
    fresh.look()
    assert (fresh.lifecycle.state, warnings(caplog)) == (State.READY, [])
    subject.look(cordon="10m by alice", age=601)
    assert subject.clock.waits.get(timeout=BOUND) == 600


def test_files_that_come_too_late(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """The removal of a file ends no lease that has replaced its own, and in a shutdown no file changes anything."""
    subject.look(cordon="10m by alice")
    subject.control.cordon(60, "bob", "HTTP")
    subject.remove()
    assert subject.reason == "cordoned by bob for 1m"
    subject.look(cordon="10m by alice")
    subject.lifecycle.shutdown("stop")
    subject.remove()
    subject.look(cordon="10m by alice")
    assert subject.reason == "stop"
    assert len(warnings(caplog)) == 3


def line(given: str) -> str:
    return f"must hold one line such as '10m by alice', not {given!a}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        *(
            (text, line(text))
            for text in ("", "10m", "by alice", "10m alice", "10m by alice\n20m by bob", "10m by alice bob")
        ),
        ("10m by a\u2028lice", r"is not valid: 'by' must be a name of up to 64 visible characters without blanks,"
         r" such as 'alice', not 'a\u2028lice'"),
        ("10x by alice", "is not valid: 'for' must be a duration such as '10m', '90s' or '1h30m', in the units"
         " s, m, h and d, not '10x'"),
        ("8d by alice", "is not valid: 'for' must be at most '7d', not '8d'; renew it then"),
        (b"\xff\x00", line(r"\xff" + "\0")),
        ("10m by alice" + " " * 4096, "is larger than 4096 bytes"),
    ],
)  # fmt: skip
def test_bad_content(subject: Subject, caplog: pytest.LogCaptureFixture, content: str | bytes, complaint: str) -> None:
    """A file that cannot be understood is warned of once and changes nothing, and is heeded once it is mended."""
    subject.look(cordon="5m by carol")
    caplog.clear()
    subject.look(cordon=content, times=3)
    assert subject.reason == "cordoned by carol for 5m"
    assert warnings(caplog) == [f"the file '{subject.path}/cordon' {complaint}; it changes nothing"]
    subject.look(cordon="10m by alice")
    assert subject.reason == "cordoned by alice for 10m"


def test_a_file_that_is_half_written_is_read_again(subject: Subject) -> None:
    """A file that was read between its beginning and its end is understood at the next look."""
    file = subject.path / "cordon"
    file.write_text("10m b")
    subject.look()
    assert subject.ready
    changed = file.stat().st_mtime_ns
    file.write_text("10m by alice")
    os.utime(file, ns=(changed, changed))  # as it is where times are coarse
    subject.look()
    assert subject.reason == "cordoned by alice for 10m"


@pytest.mark.parametrize("name", ["drain", "cordon"])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to(path.with_name("target")),
        lambda path: path.symlink_to(path.with_name("nothing")),
        os.mkfifo,
        Path.mkdir,
    ],
    ids=["symlink", "dangling", "fifo", "directory"],
)
def test_what_is_no_regular_file(
    subject: Subject, caplog: pytest.LogCaptureFixture, name: str, make: Callable[[Path], None]
) -> None:
    """A link, a FIFO (whose opening would wait for ever) and a directory are warned of once and change nothing."""
    (subject.path / "target").write_text("10m by mallory")
    make(subject.path / name)
    subject.look(3)
    assert (subject.ready, subject.drained_by) == (True, None)
    assert warnings(caplog) == [f"the file '{subject.path}/{name}' is not a regular file; it changes nothing"]


@pytest.mark.parametrize("instead", ["link", "FIFO"])
def test_a_file_that_is_exchanged_before_it_is_opened(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, instead: str
) -> None:
    """A link is not followed, and no writer of a FIFO is waited for."""
    # Interleaving: the look finds a good file; somebody puts something else into its place; the look opens it.
    subject.write("10m by alice")
    file, lstat = subject.path / "cordon", os.lstat

    def exchanged(path: str) -> os.stat_result:
        found = lstat(path)
        if path == str(file):
            file.rename(subject.path / "away")
            file.symlink_to("away") if instead == "link" else os.mkfifo(file)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", exchanged)
        subject.look()
    assert subject.ready
    complaint = "cannot be opened (Too many levels of symbolic links)" if instead == "link" else line("")
    assert warnings(caplog) == [f"the file '{file}' {complaint}; it changes nothing"]


@pytest.mark.services
def test_files_of_others(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that belongs to neither us nor root is warned of and changes nothing."""
    need_root()
    subject = Subject(path)
    subject.write("10m by mallory")
    os.chown(path / "cordon", 65534, -1)
    (path / "drain").touch()
    os.chown(path / "drain", 65534, -1)
    subject.look(3)
    assert (subject.ready, subject.drained_by) == (True, None)
    assert warnings(caplog) == [
        f"the file '{path}/{name}' belongs to another user than this process and root; it changes nothing"
        for name in ("drain", "cordon")
    ]


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_was_exchanged(subject: Subject, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    """A directory that is put into the place of ours after the start is refused if others may write to it."""
    subject.path.rename(subject.path.with_name("away"))
    subject.path.mkdir()
    subject.path.chmod(mode)
    (subject.path / "drain").touch()
    (subject.path / "cordon").write_text("10m by mallory")
    subject.look(3)
    assert (subject.ready, subject.drained_by) == (True, None)
    assert warnings(caplog) == [
        f"the control directory {str(subject.path)!r} may be written to by its group or by others; it changes nothing"
    ]


@pytest.mark.parametrize("now", ["nothing", "file"])
def test_a_directory_that_goes(subject: Subject, caplog: pytest.LogCaptureFixture, now: str) -> None:
    """A directory that is not there for a while ends no lease and is warned of once; when it comes back, it counts."""
    subject.look(cordon="10m by alice")
    caplog.clear()
    away = subject.path.with_name("away")
    subject.path.rename(away)
    if now == "file":
        subject.path.touch()
    subject.look(3)
    assert not subject.ready
    complaint = "does not exist" if now == "nothing" else "is not a directory"
    assert warnings(caplog) == [f"the control directory {str(subject.path)!r} {complaint}; it changes nothing"]
    subject.path.unlink(missing_ok=True)
    away.rename(subject.path)
    subject.remove()
    assert subject.ready


@pytest.mark.parametrize("failing", ["stat", "lstat", "open"])
def test_a_file_system_that_fails(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    """An error of the file system is no absence: it ends no lease, and is warned of."""
    subject.look(cordon="10m by alice")
    caplog.clear()
    with monkeypatch.context() as patch:
        if failing == "open":
            subject.write("20m by bob")
        patch.setattr(builtins if failing == "open" else os, failing, raiser(OSError(5, "Input/output error")))
        subject.look(3)
    assert subject.reason == "cordoned by alice for 10m"
    what = f"the control directory '{subject.path}'" if failing == "stat" else f"the file '{subject.path}/cordon'"
    assert warnings(caplog)[-1] == f"{what} cannot be opened (Input/output error); it changes nothing"


def test_a_file_system_that_hangs_holds_up_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the start, but for a moment, nor the end waits for a look that does not come back."""
    subject = Subject(path)
    looking, go_on = threading.Event(), threading.Event()

    def hang(*arguments: Any, **options: Any) -> int:
        looking.set()
        assert go_on.wait(BOUND)
        raise FileNotFoundError(2, "gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", hang)
        with running(subject.directory.begin):
            assert looking.wait(BOUND)
        subject.directory.state_changed(State.DRAINING, "stop")
        subject.directory.stop()
        assert "lifecycle-control" in {thread.name for thread in threading.enumerate()}
        go_on.set()
        until(lambda: "lifecycle-control" not in {thread.name for thread in threading.enumerate()})


def refused(path: Path, reason: str) -> None:
    message = (
        f"'LIFECYCLE_CONTROL_DIR' is {str(path)!r}, which {reason}; name a directory of the user that this process"
        " runs as, or of root, which no other user may write to."
    )
    with pytest.raises(ValueError, match=whole(message)) as caught:
        Lifecycle(make_app(LIFECYCLE_CONTROL_DIR=str(path)))
    assert caught.value.__suppress_context__


def test_directories_that_are_refused(path: Path) -> None:
    """A directory that does not exist, is none, or that the group or others may write to, is refused by init_app."""
    refused(path / "nothing", "does not exist")
    (path / "file").touch()
    refused(path / "file", "is not a directory")
    refused(path / ("x" * 300), "cannot be opened (File name too long)")
    for mode in (0o775, 0o757, 0o777, 0o1777):
        path.chmod(mode)
        refused(path, "may be written to by its group or by others")


@pytest.mark.services
def test_a_directory_of_another_user(path: Path) -> None:
    """A directory that belongs to neither us nor root is refused by init_app."""
    need_root()
    os.chown(path, 65534, -1)
    refused(path, "belongs to another user than this process and root")


def test_a_relative_path_is_taken_from_where_the_process_began(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes to another directory still looks into the one that was meant."""
    monkeypatch.chdir(path.parent)
    subject = Subject(Path("control"))
    monkeypatch.chdir("/")
    subject.look()
    (path / "drain").touch()
    assert subject.look() is None
