"""The report of a shutdown: what it says, and the file in which it outlives the process."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_lifecycle import HookRecord, PhaseRecord, RequestInfo, ShutdownReport, WorkInfo, shutdown_complete
from flask_lifecycle._config import Settings
from flask_lifecycle._core import report_file
from flask_lifecycle._core.process import Process
from tests._fakes import (
    BOUND,
    FakeMember,
    ManualClock,
    StuckLedger,
    enter,
    get,
    raiser,
    run_python,
    running,
    serve,
    state_of,
    stop,
    until,
)

PHASES = {"announce": 0.0, "delay": 1.0, "drain": 2.04, "hooks": 0.06}
REPORT = ShutdownReport(
    reason="SIGTERM",
    signal=15,
    phases=tuple(PhaseRecord(*each) for each in PHASES.items()),
    abandoned=(RequestInfo("GET", "/slow/5", 3.25, "waitress-0", route="/slow/<int:n>", stack="  File x\n"),),
    hooks=(HookRecord("pool", "shutdown", "failed", 0.06, "OperationalError: host=db user=me"),),
    duration=3.1,
    work=(WorkInfo("import", 7.0, "worker", {"file": "a.csv"}),),
    served=12,
    refused=3,
    began=1_700_000_000.0,
)


def test_the_report_as_json() -> None:
    """The report says all of it but the text of exceptions, which may hold hosts and passwords, and is JSON."""
    assert json.loads(json.dumps(REPORT.as_dict())) == {
        "summary": "2 abandoned, 1 hook failed, exit 1",
        "reason": "SIGTERM",
        "signal": "SIGTERM",
        "began": "2023-11-14T22:13:20.000+00:00",
        "duration": 3.1,
        "exit_code": 1,
        "clean": False,
        "forced": False,
        "served": 12,
        "refused": 3,
        "phases": [{"name": name, "seconds": seconds} for name, seconds in PHASES.items()],
        "hooks": [
            {"name": "pool", "kind": "shutdown", "outcome": "failed", "seconds": 0.06, "error": "OperationalError"}
        ],
        "abandoned": [
            {
                "method": "GET",
                "path": "/slow/5",
                "stage": "running",
                "age": 3.25,
                "route": "/slow/<int:n>",
                "thread": "waitress-0",
                "stack": "  File x\n",
            }
        ],
        "work": [{"name": "import", "age": 7.0, "what": "work 'import' (file='a.csv')", "thread": "worker"}],
    }


def test_the_course_in_words() -> None:
    """The log's last line names the phases that took time, and how many requests there were; a forced exit says so."""
    assert REPORT.course == "delay 1.0 s, drain 2.0 s, hooks 0.1 s; 12 served, 3 refused"
    assert ShutdownReport("x", None, (), (), (), 0.1).course == "at once; 0 served, 0 refused"
    assert REPORT.summary == str(REPORT) == "2 abandoned, 1 hook failed, exit 1"
    outcomes = ("failed", "hung", "hung", "ok", "skipped")
    hooks = tuple(HookRecord("x", "shutdown", outcome, 0.0) for outcome in outcomes)
    report = ShutdownReport("x", None, (), (), hooks, 0.1)
    assert (str(report), report.clean, report.exit_code) == ("1 hook failed, 2 hooks hung, exit 1", False, 1)
    report = ShutdownReport("x", None, (), (), hooks[3:], 0.1)
    assert (str(report), report.clean, report.exit_code) == ("clean, exit 0", True, 0)
    forced = ShutdownReport("SIGTERM", 999, (), (), (), 0.1, forced=143)
    assert (str(forced), forced.clean, forced.exit_code) == ("forced, exit 143", False, 143)
    assert forced.as_dict()["signal"] == "999"


def test_requests_served_and_refused_are_counted() -> None:
    """Requests that end after the drain has begun are served, those that the guard answers are refused."""
    app, lifecycle = serve(LIFECYCLE_DRAIN_POLICY="reject")
    begun, free, counted = threading.Event(), threading.Event(), list[int]()

    @app.get("/slow")
    def slow() -> str:
        begun.set()
        free.wait(BOUND)
        return "done"

    assert get(app, "/work").status_code == 200  # before the drain: not counted
    with running(lambda: counted.append(get(app, "/slow").status_code)):
        assert begun.wait(BOUND)
        lifecycle.shutdown(wait=False)
        until(lambda: state_of(app).guard.installed)
        assert [get(app, "/work").status_code for _ in range(2)] == [503, 503]
        free.set()
    report = lifecycle.shutdown()
    assert (report.served, report.refused, counted) == (1, 2, [200])


def test_the_signal_at_the_end() -> None:
    """``shutdown_complete`` gives each application the report that everybody gets; it is JSON whatever the reason."""
    app, lifecycle = serve()
    heard: list[tuple[Any, Any]] = []
    with shutdown_complete.connected_to(lambda sender, report: heard.append((sender, report)), sender=app):
        report = lifecycle.shutdown(404)  # type: ignore[call-overload]  # mypy would have said it
    assert heard == [(app, report)]
    assert json.loads(json.dumps(report.as_dict()))["reason"] == "404"


def test_a_report_that_cannot_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong with the report, the shutdown ends."""
    assert stop(FakeMember(), keep=raiser(ValueError("no disk"))).clean
    assert "the report could not be written" in caplog.messages


def test_what_holds_up_a_drain_is_told_halfway(caplog: pytest.LogCaptureFixture) -> None:
    """Halfway through the drain each unfinished request is told with its route, its age and its thread's stack."""
    app, lifecycle = serve(LIFECYCLE_GRACE_PERIOD=0.5, LIFECYCLE_HOOK_RESERVE=0.1, LIFECYCLE_LOG_REMOTE_ADDR=True)
    begun, free = threading.Event(), threading.Event()

    @app.get("/slow/<int:number>")
    def slow(number: int) -> str:
        begun.set()
        free.wait(BOUND)
        return "done"

    with running(lambda: app.test_client().get("/slow/5"), "worker-1"):
        assert begun.wait(BOUND)
        (seen,) = lifecycle.requests(stacks=True)
        report = lifecycle.shutdown()
        free.set()
    assert (seen.route, seen.remote, seen.thread) == ("/slow/<int:number>", "127.0.0.1", "worker-1")
    assert "in slow" in seen.stack
    told = [record for record in caplog.records if "/slow/5" in record.getMessage()]
    head = "GET /slow/5 [/slow/<int:number>] from 127.0.0.1 after "
    for record, level, words in zip(
        told, ("WARNING", "ERROR"), ("halfway through the drain, waiting for ", "abandoned "), strict=True
    ):
        assert record.levelname == level
        assert record.getMessage().startswith(words + head)
        assert "its thread 'worker-1' is at\n" in record.getMessage()
        assert "in slow" in record.getMessage()
        assert record.__dict__["lifecycle_path"] == "/slow/5"
    assert "in slow" in report.abandoned[0].stack


def test_a_body_that_is_only_sent_yet_has_no_stack() -> None:
    """A thread whose earlier answer is still being sent runs another request by now: the stack is that one's."""
    member = FakeMember()
    first, second = enter(member.ledger, "/sending"), enter(member.ledger, "/running")
    stacks = {info.path: bool(info.stack) for info in member.ledger.requests(stacks=True)}
    assert stacks == {"/sending": False, "/running": True}
    first.close()
    second.close()


def test_a_flood_of_stragglers_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The first fifty are told one by one, the rest by their number; the report has them all."""
    clock = ManualClock()
    member = FakeMember(clock, grace_period=1.0, hook_reserve=0.2)
    member.ledger = StuckLedger(clock)
    bodies = [enter(member.ledger, f"/{number}") for number in range(53)]
    report = stop(member, clock=clock)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert (len(told), told[-1]) == (51, "abandoned 3 more")
    assert len(report.abandoned) == len(bodies)


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    """A regular file is replaced in one step, with nothing left beside it, whatever was there, a pipe included."""
    path = tmp_path / f"report-{os.getpid()}.json"
    path.write_text("an older, longer one" * 1000)
    os.mkfifo(tmp_path / f"{path.name}.{os.getpid()}.tmp")
    report_file.write(str(tmp_path / "report-{pid}.json"), REPORT)
    assert json.loads(path.read_text()) == REPORT.as_dict()
    assert os.listdir(tmp_path) == [path.name]
    app, _lifecycle = serve(LIFECYCLE_REPORT_FILE=path)
    state_of(app).features["report file"].begin()
    assert state_of(app).last_report == report_file.read(str(path)) == REPORT.as_dict()


def test_a_pipe_with_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no regular file is written in place, to the end also if it takes a few bytes at a time."""
    write_some = os.write
    os.mkfifo(path := tmp_path / "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(os, "write", lambda handle, data: write_some(handle, data[:100]))
    report_file.write(str(path), REPORT)
    told = os.read(reader, 65536)
    os.close(reader)
    assert json.loads(told) == REPORT.as_dict()


@pytest.mark.parametrize(
    ("name", "error"),
    [("pipe", "No such device or address"), ("gone/report.json", "No such file or directory"), ("d", "Is a directory")],
)
def test_what_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, error: str) -> None:
    """A pipe that nobody reads, or what cannot be written, is one warning, and leaves nothing behind."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "d").mkdir()
    path = str(tmp_path / name)
    report_file.write(path, REPORT)
    assert caplog.messages == [f"the report could not be written to '{path}': {error}"]
    assert report_file.read(path) is None
    assert sorted(os.listdir(tmp_path)) == ["d", "pipe"]


def test_a_link_to_a_pipe_or_a_device_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link that another user has put in the report's place leads to no pipe and no device, and is not replaced."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    path = tmp_path / "report.json"
    path.symlink_to("pipe")
    report_file.write(str(path), REPORT)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert caplog.messages == [f"the report could not be written to '{path}': it is a link, which is not followed"]
    assert (path.is_symlink(), sorted(os.listdir(tmp_path))) == (True, ["pipe", "report.json"])


def test_a_link_to_a_file_is_replaced(tmp_path: Path) -> None:
    """The file that a link names is somebody else's and stays as it is; the report takes the link's place."""
    (tmp_path / "other").write_text("precious")
    path = tmp_path / "report.json"
    path.symlink_to("other")
    assert report_file.read(str(path)) is None
    report_file.write(str(path), REPORT)
    assert (tmp_path / "other").read_text() == "precious"
    assert (path.is_symlink(), json.loads(path.read_text())) == (False, REPORT.as_dict())


@pytest.mark.parametrize("put", [os.symlink, os.link])
@pytest.mark.parametrize("place", ["in the place of a pipe", "beside it, where it is made"])
def test_what_is_put_there_before_the_opening_is_not_written(
    put: Callable[[str, str], None],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kind of the file is that of what was opened, and what is made beside the report is new."""
    # The writer sees a pipe, or removes what lies beside the report; another process puts a link to a file of ours
    # there; the writer opens the path.
    victim, path, opening = tmp_path / "victim", tmp_path / "report.json", os.open
    victim.write_text("precious")
    if place == "in the place of a pipe":
        os.mkfifo(path)

    def swapped(name: str, *rest: Any) -> int:
        path.unlink(missing_ok=True)
        put(str(victim), name)
        return opening(name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", swapped)
        report_file.write(str(path), REPORT)
    assert victim.read_text() == "precious"
    why = "it is " if place == "in the place of a pipe" else "File exists"
    (message,) = caplog.messages
    assert message.startswith(f"the report could not be written to '{path}': {why}")
    assert path.exists() is (why == "it is ")


def test_a_write_that_fails_halfway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails halfway leaves nothing beside the file."""
    monkeypatch.setattr(os, "replace", lambda *paths: os.unlink("/nowhere"))
    report_file.write(str(tmp_path / "report.json"), REPORT)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def termination_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of Kubernetes' own."""
    path = tmp_path / "termination-log"
    monkeypatch.setattr(report_file, "TERMINATION_LOG", str(path))
    return path


def test_the_termination_log(termination_log: Path) -> None:
    """What Kubernetes mounts is written in place, as a mounted file cannot be replaced, and no more than it keeps."""
    termination_log.write_text("x" * 9000)
    inode = termination_log.stat().st_ino
    report_file.write(str(termination_log), REPORT)
    assert json.loads(termination_log.read_text()) == REPORT.as_dict()
    assert termination_log.stat().st_ino == inode
    report_file.write(str(termination_log), REPORT._replace(abandoned=REPORT.abandoned * 500))
    assert len(termination_log.read_bytes()) <= 4096


@pytest.mark.parametrize("link", [True, False])
def test_no_termination_log(termination_log: Path, caplog: pytest.LogCaptureFixture, link: bool) -> None:
    """Where there is none nothing is made and nothing said; a link, which Kubernetes mounts not, is left alone."""
    victim = termination_log.with_name("victim")
    victim.write_text("precious")
    if link:
        termination_log.symlink_to(victim)
    report_file.write(str(termination_log), REPORT)
    assert victim.read_text() == "precious"
    assert termination_log.exists() is link
    texts = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert texts == (["it is a link, which is not followed"] if link else [])
    assert report_file.read(str(termination_log)) is None


@pytest.mark.parametrize("number", [0, 1, 5, 10, 40, 1000])
def test_the_report_fits(number: int) -> None:
    """However much was abandoned, the report stays JSON within Kubernetes' 4,096 bytes and says what is missing."""
    stack = "  File\n" * 20
    requests = tuple(RequestInfo("GET", f"/päth/{n}" + "x" * 50, 1.0, "w", stack=stack) for n in range(number))
    hooks = tuple(HookRecord(f"hook {n}", "shutdown", "ok", 0.0) for n in range(number))
    work = tuple(WorkInfo("import", 1.0, "t", {"file": "y" * 150}, stack) for n in range(number))
    document = REPORT._replace(abandoned=requests, hooks=hooks, work=work).as_dict()
    encoded = report_file.shortened(document, 4096)
    told = json.loads(encoded)
    assert len(encoded) <= 4096
    assert (told["summary"], told["exit_code"]) == (document["summary"], 1 if number else 0)
    for name in ("abandoned", "work", "hooks"):
        assert len(told[name]) + told.get(f"more_{name}", 0) == number
    if number <= 5:
        assert len(told["abandoned"]) == number
    assert len(document["abandoned"]) == number  # the report itself is as it was
    assert len(report_file.shortened(document | {"reason": "r" * 9000}, 4096)) <= 4096


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "[" * 100_000, f'{{"": "{"x" * (1 << 20)}"}}'])
def test_a_report_that_is_none(tmp_path: Path, content: str) -> None:
    """What another program left in the file is no report, nor is more than a megabyte."""
    (tmp_path / "report.json").write_text(content)
    assert report_file.read(str(tmp_path / "report.json")) is None
    assert report_file.read(str(tmp_path / "nowhere")) is None
    assert report_file.read(None) is None


def test_each_file_is_written_once(tmp_path: Path) -> None:
    """Applications of one process share the report, and each file that they name gets it."""
    process = Process(signals=False)
    members = [FakeMember(report_file=str(tmp_path / name)) for name in ("a", "b", "a")] + [FakeMember()]
    for member in members:
        process.join(member, ())
    process.exit.keep(REPORT)
    assert os.listdir(tmp_path) == []  # an application in testing mode writes nothing
    process.signals = True
    process.exit.keep(REPORT)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_where_the_report_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cluster it goes where ``kubectl describe pod`` finds it, else nowhere, or as it is told at the start."""

    def path(**config: Any) -> Any:
        return Settings.from_mapping(config).report_file

    assert path() is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert path() == "/dev/termination-log"
    assert path(LIFECYCLE_REPORT_FILE=None) is None
    monkeypatch.chdir(tmp_path)
    assert path(LIFECYCLE_REPORT_FILE="report.json") == str(tmp_path / "report.json")
    Path("to a file").symlink_to("missing")  # which the report replaces
    assert path(LIFECYCLE_REPORT_FILE="to a file") == str(tmp_path / "to a file")
    Path("out").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"out', a link to a pipe or a device, which is not followed; name a file\.$"):
        path(LIFECYCLE_REPORT_FILE="out")


UNTELLABLE = """
import signal, threading
from flask import Flask
from flask_lifecycle import Lifecycle
from flask_lifecycle._servers.serving import this_process

class Hangs:
    def __repr__(self):
        threading.Event().wait(60)

app = Flask(__name__)
app.config["LIFECYCLE_GRACE_PERIOD"] = 60.0
lifecycle = Lifecycle(app)
item = lifecycle.work("import", of=Hangs())
lifecycle.shutdown("test", wait=False)
this_process.shutdown.thread.join(0.2)
this_process.exit.force(signal.SIGTERM)
"""
BROKEN = """
from flask_lifecycle._core.exit import exit_now

def fail():
    raise ValueError("no words")

exit_now(3, "said all the same", keep=fail)
"""


@pytest.mark.parametrize(
    ("program", "code", "said"), [(UNTELLABLE, 128 + signal.SIGTERM, ""), (BROKEN, 3, "said all the same")]
)
def test_a_forced_exit_asks_nobody(program: str, code: int, said: str) -> None:
    """Neither an object that hangs when it is to say what it is, nor a report that cannot be made, holds it up."""
    done = run_python(program)
    assert done.returncode == code
    assert said in done.stderr
