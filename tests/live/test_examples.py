"""The examples, each served by a real process, asked over a socket and stopped by SIGTERM."""

from __future__ import annotations

import functools
import json
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from simple_websocket import Client, ConnectionClosed  # type: ignore[import-untyped]  # it has no types

from ._client import PATIENCE, Connection, get, request_head
from ._process import ROOT, Running, Starter

EXAMPLES = ROOT / "examples"


def flask(example: str, server: str = "waitress") -> list[str]:
    """The command that serves an example on a free port."""
    app = str(EXAMPLES / example)
    return [sys.executable, "-m", "flask", "--app", app, "lifecycle", "run", "-p", "0", "--server", server]


def script(example: str) -> list[str]:
    """The command that runs an example by itself."""
    return [sys.executable, str(EXAMPLES / example)]


def ready(running: Running) -> tuple[str, int]:
    """Wait until an example is ready, and return its address."""
    running.wait_log("STARTING -> READY")
    running.wait_log("listening on http")
    return running.address


def post(running: Running, path: str) -> tuple[int, bytes]:
    """Send a request without a body; return the answer's status and body."""
    with Connection(running.address) as connection:
        connection.ask(path, "POST")
        answer = connection.answer()
        return answer.status, answer.body


@pytest.mark.parametrize("command", [flask("quickstart.py"), script("quickstart.py")], ids=["flask", "python"])
def test_quickstart_answers_the_request_under_way(live: Starter, command: list[str]) -> None:
    """The quickstart is ready, and in its stop no longer ready, and answers what runs and what has come in part."""
    running = live.start(*command, env={"PORT": "0", "FLASK_LIFECYCLE_SHUTDOWN_DELAY": "0.3"})
    address = ready(running)
    assert json.loads(get(address, "/healthcheck").body)["status"] == "pass"
    assert get(address, "/livez").status == 200
    with Connection(address) as slow, Connection(address) as probe, Connection(address) as work:
        slow.ask("/slow?seconds=1.5")
        running.wait_for(lambda: json.loads(get(address, "/").body)["in_flight"] >= 2, "the slow request")
        probe.send(request_head("/readyz")[:-2])
        work.send(request_head("/")[:-2])
        running.begin_stop()
        for each in (probe, work):
            each.send(b"\r\n")
        assert (probe.answer().status, work.answer().status) == (503, 200)
        assert slow.answer().body == b'{"slept":1.5}\n'
    assert running.wait_gone() == 0
    assert "clean, exit 0" in running.log


def test_factory_warms_up_before_it_is_ready(live: Starter) -> None:
    """The factory runs its start-up function before it is ready, and its hook when it stops."""
    running = live.start(*flask("factory.py"), env={"FLASK_LIFECYCLE_GRACE_PERIOD": "8"})
    assert get(ready(running), "/").body == b"hello\n"
    assert running.stop() == 0
    assert "grace period 8.0 s" in running.log
    assert "saving because of" in running.log


@pytest.mark.parametrize(
    ("server", "last", "first"), [("waitress", None, 1), ("werkzeug", "41", 42), ("waitress", "no number", 1)]
)
def test_streaming_response_ends_by_itself(live: Starter, server: str, last: str | None, first: int) -> None:
    """A stream without an end notices the drain and arrives to its last byte; a client goes on where it was."""
    running = live.start(*flask("streaming.py", server))
    with Connection(ready(running)) as client:
        client.ask("/ticks", "GET", b"", **({} if last is None else {"Last-Event-ID": last}))
        client.wait_for(b"tick")
        running.begin_stop()
        body = client.answer().body.decode()  # fails when the stream is cut off without its last chunk
    assert body.startswith(f"retry: 1000\n\nid: {first}\ndata: tick\n")
    assert body.endswith("event: bye\ndata: reconnect\n\n")
    assert running.wait_gone() == 0
    assert "streams are asked to end" in running.log


def test_websocket_ends_by_itself(live: Starter) -> None:
    """A websocket notices the drain, says good-bye and is closed with the code for a server that stops."""
    running = live.start(*flask("websocket.py", "werkzeug"))
    host, port = ready(running)
    daemon = functools.partial(threading.Thread, daemon=True)  # a failure is not to hold the tests
    client = Client.connect(f"ws://{host}:{port}/echo", thread_class=daemon)
    client.send("hello")
    assert client.receive(timeout=PATIENCE) == "hello"
    running.send(signal.SIGTERM)
    assert client.receive(timeout=PATIENCE) == "good-bye, please connect again"
    with pytest.raises(ConnectionClosed, match="the server stops") as caught:
        client.receive(timeout=PATIENCE)
    assert caught.value.reason == 1001
    client.sock.close()
    client.thread.join(PATIENCE)
    assert running.wait_gone() == 0
    assert "clean, exit 0" in running.log


def test_executors_finish_what_is_accepted(live: Starter) -> None:
    """What a request has handed to an executor or a thread is finished, begun or not; then the pool is closed."""
    running = live.start(*flask("executors.py"))
    ready(running)
    for name in ("may", "june", "july"):  # one more than the executor has threads
        assert post(running, f"/reports/{name}?seconds=0.5") == (202, f'{{"accepted":"{name}"}}\n'.encode())
    assert post(running, "/mails/ada")[0] == 202
    running.wait_log("report to ada begins")
    assert running.stop() == 0
    assert sorted(re.findall(r"report (.*) is written", running.log)) == ["july", "june", "may", "to ada"]
    assert "clean, exit 0" in running.log


def test_scheduler_finishes_its_jobs(live: Starter) -> None:
    """The job that runs when the process stops is finished, and none begins after it, although its time has come."""
    running = live.start(*flask("scheduler.py"), env={"SECONDS": "1"})
    running.wait_log("job begins")
    assert running.stop() == 0
    begins, stops = running.log.count("job begins"), running.log.index("shutdown begins")
    assert begins == running.log.count("job ends")
    assert running.log.rindex("job begins") < stops < running.log.rindex("job ends")
    assert "clean, exit 0" in running.log


@pytest.mark.parametrize("command", [flask("jobs.py"), script("jobs.py")], ids=["beside a server", "alone"])
def test_jobs_are_finished_or_left(live: Starter, tmp_path: Path, command: list[str]) -> None:
    """The job under way is finished, with a web server and without, and the next is left for the next process."""
    spool = tmp_path / "spool"
    spool.mkdir()
    for name, seconds in {"1": "0", "2": "1", "3": "0"}.items():
        (spool / f"{name}.job").write_text(seconds)
    running = live.start(*command, env={"SPOOL": str(spool)})
    running.wait_log(r"2\.job begins")
    assert running.stop() == 0
    jobs = re.findall(r"(\d)\.job (begins|ends)", running.log)
    assert jobs == [("1", "begins"), ("1", "ends"), ("2", "begins"), ("2", "ends")]
    assert [path.name for path in spool.iterdir()] == ["3.job"]
    assert "clean, exit 0" in running.log


@pytest.mark.parametrize("way", ["json", "structlog"])
def test_logs_are_lines_of_json(live: Starter, way: str) -> None:
    """Every line of the log is JSON with its fields; the last has the report, with each phase and hook of the stop."""
    running = live.start(*flask("logs.py"), env={"LOGS": way})
    ready(running)
    assert running.stop() == 0
    lines = [json.loads(line) for line in running.log.splitlines()]
    assert {(line["level"], line["logger"]) for line in lines} == {("info", "flask_lifecycle")}
    states = [line["lifecycle_state"] for line in lines if "lifecycle_state" in line]
    assert states == ["READY", "DRAINING"]
    assert [line["lifecycle_hook"] for line in lines if "lifecycle_hook" in line] == ["warm_up"]
    assert lines[-1]["event"].startswith("shutdown complete in ")
    report = lines[-1]["lifecycle_report"]
    assert [phase["name"] for phase in report["phases"]] == ["announce", "delay", "stop accepting", "drain", "hooks"]
    hooks = [(hook["kind"], hook["name"]) for hook in report["hooks"]]
    assert hooks == [("startup", "warm_up"), ("shutdown", "close_pool")]
    assert report["clean"] is True


OTHERS = {
    "cheroot": script("cheroot_server.py"),
    "run cheroot": flask("cheroot_server.py", "cheroot"),
    "gevent": script("gevent_server.py"),
}


@pytest.mark.parametrize("command", OTHERS.values(), ids=OTHERS)
def test_other_servers_answer_what_runs(live: Starter, command: list[str]) -> None:
    """A request that was sent before the signal is answered, whoever has started the server, and the stop is clean."""
    running = live.start(*command, env={"PORT": "0"})
    with Connection(ready(running)) as connection:
        connection.ask("/slow")
        running.send(signal.SIGTERM)
        assert connection.answer().body == b'{"slept":1.0}\n'
    assert running.wait_gone() == 0
    assert "clean, exit 0" in running.log


def test_every_example_is_short_and_run_here() -> None:
    """No example is longer than a reader's patience, and each is served by a test of this file."""
    here = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path.name
        assert re.search(rf'\b(flask|script)\("{re.escape(path.name)}"', here), path.name
