"""The examples, each served by a real process, asked over a socket and stopped by SIGTERM."""

from __future__ import annotations

import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from simple_websocket import Client, ConnectionClosed  # type: ignore[import-untyped]  # it has no types

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
# Bounds of waits, in seconds: far above what they take, so that what reaches them is a failure.
START = 30.0
STOP = 20.0


def flask(example: str, server: str = "waitress") -> list[str]:
    """The command that serves an example on a free port."""
    app = f"examples/{example}"
    return [sys.executable, "-m", "flask", "--app", app, "lifecycle", "run", "-p", "0", "--server", server]


def script(example: str) -> list[str]:
    """The command that runs an example by itself."""
    return [sys.executable, f"examples/{example}"]


class Served:
    """An example in a process of its own, with its log and its port."""

    def __init__(self, command: list[str], **environ: str) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._ended = False
        self._new_line = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                with self._new_line:
                    self.lines.append(line.rstrip())
                    self._new_line.notify_all()
        with self._new_line:
            self._ended = True
            self._new_line.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_log(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log and return the match."""
        with self._new_line:
            self._new_line.wait_for(lambda: re.search(pattern, self.log) or self._ended, START)
        found = re.search(pattern, self.log)
        assert found, f"no line {pattern!r}; its log:\n{self.log}"
        return found

    def port(self) -> int:
        """The port that the process says it listens on."""
        return int(self.wait_log(r"listening on http://127\.0\.0\.1:(\d+)")[1])

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Ask for a path on a connection of its own; return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=STOP)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def ready(self) -> None:
        """Wait until the readiness probe says so."""
        deadline = time.monotonic() + START
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        try:
            return self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still there {STOP} s after SIGTERM; its log:\n{self.log}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start processes that end with the test."""
    served: list[Served] = []

    def start(command: list[str], **environ: str) -> Served:
        served.append(Served(command, **environ))
        return served[-1]

    yield start
    for one in served:
        one.close()


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run a function in a thread; the returned function waits for what it returned."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()

    def result() -> Any:
        thread.join(STOP)
        assert results, "no answer"
        return results[0]

    return result


@pytest.mark.parametrize(
    "command",
    [flask("quickstart.py"), script("quickstart.py")],
    ids=["flask", "python"],
)
def test_quickstart_answers_the_request_under_way(serve: Callable[..., Served], command: list[str]) -> None:
    """The quickstart is ready, and a SIGTERM in the middle of a request leaves it answered."""
    served = serve(command, PORT="0")
    served.ready()
    assert json.loads(served.get("/healthcheck")[1])["status"] == "pass"
    assert served.get("/livez")[0] == 200
    slow = in_thread(lambda: served.get("/slow?seconds=1"))
    deadline = time.monotonic() + START
    while json.loads(served.get("/")[1])["in_flight"] < 2:
        assert time.monotonic() < deadline, served.log
        time.sleep(0.01)
    served.terminate()
    assert slow() == (200, '{"slept":1.0}\n')
    assert served.exit_code() == 0, served.log
    assert "clean, exit 0" in served.log


def test_factory_warms_up_before_it_is_ready(serve: Callable[..., Served]) -> None:
    """The factory runs its start-up function before it is ready, and its hook when it stops."""
    served = serve(flask("factory.py"), FLASK_LIFECYCLE_GRACE_PERIOD="8")
    served.ready()
    assert served.get("/") == (200, "hello\n")
    served.terminate()
    assert served.exit_code() == 0, served.log
    assert "grace period 8.0 s" in served.log
    assert "saving because of" in served.log


@pytest.mark.parametrize("server", ["waitress", "werkzeug"])
@pytest.mark.parametrize(("last", "first"), [(None, 1), ("41", 42), ("no number", 1)])
def test_streaming_response_ends_by_itself(
    serve: Callable[..., Served], server: str, last: str | None, first: int
) -> None:
    """A stream without an end notices the drain, ends by itself and arrives to its last byte; it begins behind the
    event that the client has seen last.
    """
    served = serve(flask("streaming.py", server))
    served.ready()
    connection = http.client.HTTPConnection("127.0.0.1", served.port(), timeout=STOP)
    try:
        connection.request("GET", "/ticks", headers={} if last is None else {"Last-Event-ID": last})
        response = connection.getresponse()
        begun = [response.readline() for _ in range(4)]
        assert begun == [b"retry: 1000\n", b"\n", f"id: {first}\n".encode(), b"data: tick\n"]
        served.terminate()
        # read() raises IncompleteRead when the stream is cut off without its last chunk.
        rest = response.read().decode()
    finally:
        connection.close()
    assert re.search(r"^event: bye\ndata: reconnect\n\n\Z", rest, re.MULTILINE)
    assert served.exit_code() == 0, served.log
    assert "streams are asked to end" in served.log


def test_websocket_ends_by_itself(serve: Callable[..., Served]) -> None:
    """A websocket notices the drain, says good-bye and is closed with the code for a server that stops."""
    served = serve(flask("websocket.py", "werkzeug"))
    served.ready()
    daemon = functools.partial(threading.Thread, daemon=True)  # a failure is not to hold the tests
    client = Client.connect(f"ws://127.0.0.1:{served.port()}/echo", thread_class=daemon)
    client.send("hello")
    assert client.receive(timeout=STOP) == "hello"
    served.terminate()
    assert client.receive(timeout=STOP) == "good-bye, please connect again"
    with pytest.raises(ConnectionClosed, match="the server stops") as caught:
        client.receive(timeout=STOP)
    assert caught.value.reason == 1001
    client.sock.close()
    client.thread.join(STOP)
    assert served.exit_code() == 0, served.log
    assert "clean, exit 0" in served.log


def test_executors_finish_what_is_accepted(serve: Callable[..., Served]) -> None:
    """What a request has handed to an executor or a thread is finished, also what has not begun there, and the pool is
    closed after it.
    """
    served = serve(flask("executors.py"))
    served.ready()
    for name in ("may", "june", "july"):  # one more than the executor has threads
        assert served.get(f"/reports/{name}?seconds=1", "POST") == (202, f'{{"accepted":"{name}"}}\n')
    assert served.get("/mails/ada", "POST")[0] == 202
    served.wait_log("report to ada begins")
    served.terminate()
    assert served.exit_code() == 0, served.log
    assert sorted(re.findall(r"report (.*) is written", served.log)) == ["july", "june", "may", "to ada"]
    assert "clean, exit 0" in served.log


def test_scheduler_finishes_its_jobs(serve: Callable[..., Served]) -> None:
    """The job that runs when the process stops is finished, and none begins after it, although its time has come."""
    served = serve(flask("scheduler.py"), SECONDS="1")
    served.wait_log("job begins")
    served.terminate()
    assert served.exit_code() == 0, served.log
    begins, stops = served.log.count("job begins"), served.log.index("shutdown begins")
    assert begins == served.log.count("job ends")
    assert served.log.rindex("job begins") < stops < served.log.rindex("job ends")
    assert "clean, exit 0" in served.log


@pytest.mark.parametrize("command", [flask("jobs.py"), script("jobs.py")], ids=["beside a server", "alone"])
def test_jobs_are_finished_or_left(serve: Callable[..., Served], tmp_path: Path, command: list[str]) -> None:
    """The job under way is finished, with a web server and without, and the next is left for the next process."""
    for name, seconds in {"1": "0", "2": "1", "3": "0"}.items():
        (tmp_path / f"{name}.job").write_text(seconds)
    served = serve(command, SPOOL=str(tmp_path))
    served.wait_log(r"2\.job begins")
    served.terminate()
    assert served.exit_code() == 0, served.log
    assert re.findall(r"(\d)\.job (begins|ends)", served.log) == [
        ("1", "begins"), ("1", "ends"), ("2", "begins"), ("2", "ends"),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["3.job"]
    assert "clean, exit 0" in served.log


@pytest.mark.parametrize("way", ["json", "structlog"])
def test_logs_are_lines_of_json(serve: Callable[..., Served], way: str) -> None:
    """Every line of the log is JSON, and each change of the state, phase and hook is in it once, with its fields."""
    served = serve(flask("logs.py"), LOGS=way)
    served.ready()
    served.terminate()
    assert served.exit_code() == 0, served.log
    served.close()
    lines = [json.loads(line) for line in served.lines]
    assert {(line["level"], line["logger"]) for line in lines} == {("info", "flask_lifecycle")}
    states = [line["lifecycle_state"] for line in lines if "lifecycle_state" in line]
    assert states == ["READY", "DRAINING", "STOPPING", "STOPPED"]
    phases = [line["lifecycle_phase"] for line in lines if "lifecycle_phase" in line]
    assert phases == ["announce", "delay", "stop accepting", "drain", "hooks"]
    hooks = [(line["lifecycle_kind"], line["lifecycle_hook"]) for line in lines if "lifecycle_hook" in line]
    assert hooks == [("startup", "warm_up"), ("shutdown", "close_pool")]
    assert lines[-1]["event"].startswith("shutdown complete in ")
    assert lines[-1]["lifecycle_report"]["clean"] is True


OTHERS = {
    "cheroot": script("cheroot_server.py"),
    "run cheroot": flask("cheroot_server.py", "cheroot"),
    "gevent": script("gevent_server.py"),
}


@pytest.mark.parametrize("command", OTHERS.values(), ids=OTHERS)
def test_other_servers_answer_what_runs(serve: Callable[..., Served], command: list[str]) -> None:
    """A request that was sent before the signal is answered, whoever has started the server, and the stop is clean."""
    served = serve(command, PORT="0")
    served.ready()
    connection = http.client.HTTPConnection("127.0.0.1", served.port(), timeout=STOP)
    try:
        connection.request("GET", "/slow")
        served.terminate()
        assert connection.getresponse().read() == b'{"slept":1.0}\n'
    finally:
        connection.close()
    assert served.exit_code() == 0, served.log
    assert re.search(r"clean, exit 0", served.log)


def test_every_example_is_short_and_run_here() -> None:
    """No example is longer than a reader's patience, and each is served by a test of this file."""
    here = Path(__file__).read_text(encoding="utf-8")
    for name in EXAMPLES:
        text = (ROOT / "examples" / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, name
        assert re.search(rf'\b(flask|script)\("{re.escape(name)}"', here), name
