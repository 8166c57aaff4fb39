"""``flask lifecycle run --reload-on``: one process after the other on the same listeners."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ._client import Address, Connection, get, refuses, storm
from ._process import Running, Starter, children_of, wait_until
from ._traffic import hung_request, in_flight

SERVES = re.compile(r"reload: process (\d+) serves, process (\d+) finishes")
# The application of the live tests, as somebody deploys it.
APPLICATION = """
import os
from live_app import app, lifecycle, pass_gate
from flask_lifecycle import HealthCheckError

@app.get("/version")
def version():
    return f"{version} {{os.getpid()}}"

{more}
"""
SICK = """
@lifecycle.check
def database():
    raise HealthCheckError("no connection")
"""
IGNORES = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(60)
"""
FORKS = """
home = os.path.dirname(__file__)
if not os.path.exists(home + "/child"):  # by the first process only
    child = os.fork()
    if child == 0:
        import time
        time.sleep(60)
        os._exit(0)
    with open(home + "/child", "w") as file:
        file.write(str(child))
"""
SLOW = """
@lifecycle.on_startup
def warm_up():
    pass_gate("warm")
"""


class Service:
    """A supervisor and its application, which can be deployed again; ``where`` are options for its listener."""

    def __init__(self, live: Starter, server: str, *where: str, version: str = "one", **more: Any) -> None:
        self.source = live.home / f"deployed_{version}.py"
        self.deploy(version, more.pop("application", ""))
        options = ("--reload-on", "SIGHUP", "--reload-within", more.pop("within", "20"), *(where or ("-p", "0")))
        listeners = more.pop("listeners", 1)
        self.running: Running = live.serve(server, *options, app=str(self.source), listeners=listeners, **more)

    def deploy(self, version: str, more: str = "") -> None:
        self.source.write_text(APPLICATION.format(version=version, more=more))

    @property
    def address(self) -> Address:
        return self.running.addresses[0]

    @property
    def pids(self) -> list[int]:
        """The processes that it has now."""
        return children_of(self.running.target)

    def ask_version(self) -> tuple[str, int]:
        version, pid = get(self.address, "/version").body.decode().split()
        return version, int(pid)

    def reload(self) -> None:
        """Have the next process serve."""
        before = len(SERVES.findall(self.running.log))
        self.running.send(signal.SIGHUP)
        self.running.wait_for(lambda: len(SERVES.findall(self.running.log)) > before, "the next process serves")

    def begin_reload(self) -> None:
        """Have the next process start up, which lasts until the gate "warm" is opened."""
        self.deploy("two", SLOW)
        self.running.send(signal.SIGHUP)
        self.running.wait_for(lambda: self.running.log.count("probes at") == 2, "it starts up")

    def wait_alone(self) -> None:
        self.running.wait_for(lambda: len(self.pids) == 1, "the process before has gone")

    def stop_process(self, pid: int) -> None:
        """Let a process accept nothing until it is told to go on."""
        os.kill(pid, signal.SIGSTOP)
        stat = Path(f"/proc/{pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the process is stopped")


@pytest.fixture
def service(live: Starter) -> Service:
    return Service(live, "waitress")


def test_reloads_under_load(live: Starter) -> None:
    """Three reloads under load on new and on kept connections refuse nobody and lose nothing."""
    service = Service(live, "waitress", settings={"LIFECYCLE_KEEPALIVE_LINGER": 10.0})
    address = service.running.address
    storms = [storm(address, service.running.gone, clients=2, keep_alive=keep) for keep in (False, True)]
    try:
        for _ in range(3):
            service.reload()
            assert [each.wait_answers(20) for each in storms] == [True, True], "a client was refused"
    finally:
        for each in storms:
            each.leave()
    assert [loss for each in storms for loss in each.lost] == []
    assert len(set(SERVES.findall(service.running.log))) == 3
    assert service.running.stop() == 0
    assert refuses(service.address)
    assert len(service.running.hooks()) == 8  # each process has run its two
    assert len(service.running.told("made live")) == 4  # and that which keeps the listeners does not load it


def test_a_broken_deploy_changes_nothing(live: Starter) -> None:
    """A process that does not come up takes nobody's place, and one line says why; the next does."""
    service = Service(live, "waitress", excuse="Traceback")
    version, pid = service.ask_version()
    service.deploy("two", "raise SystemExit(7)")
    service.running.send(signal.SIGHUP)
    service.running.wait_log(
        rf"reload failed: process \d+ exited with code 7 before it was ready; process {pid} continues to serve"
    )
    assert service.ask_version() == (version, pid)
    service.deploy("three")
    service.reload()
    service.wait_alone()
    assert service.ask_version()[0] == "three"
    assert service.running.stop() == 0


@pytest.mark.parametrize(
    ("within", "application", "why"),
    [("8", SICK, "check 'database' fails"), ("1", IGNORES, "it has sent no message")],
    ids=["sick", "hangs"],
)
def test_a_deploy_that_is_not_ready_in_time(live: Starter, within: str, application: str, why: str) -> None:
    """A process that is not ready in time takes nobody's place, and is killed if it has not left within as long."""
    service = Service(live, "waitress", within=within, excuse="Traceback")
    version, pid = service.ask_version()
    service.deploy("two", application)
    service.running.send(signal.SIGHUP)
    service.running.wait_log(
        rf"reload failed: process \d+ was not ready within {within} s \({why}\); process {pid} continues"
    )
    service.wait_alone()
    assert service.ask_version() == (version, pid)
    assert service.running.stop() == 0


def test_what_waits_is_served_by_the_next(live: Starter) -> None:
    """What the one before has accepted it answers, and what it has not is answered by the next one."""
    # The one before is stopped by the kernel, so that its accept queue fills up; in the meantime the next one takes
    # over.
    service = Service(live, "waitress")
    _, before = service.ask_version()
    with in_flight(service.running):
        service.stop_process(before)
        waiting = [Connection(service.address) for _ in range(5)]
        for connection in waiting:
            connection.ask("/version")
        service.reload()
        for connection in waiting:
            with connection:
                assert connection.answer().body.split()[1] != str(before).encode()
        os.kill(before, signal.SIGCONT)
        service.running.wait_log(r"\(left to another process\)")
        assert service.ask_version()[1] != before
    service.wait_alone()
    assert service.running.stop() == 0


def test_a_full_stop_serves_what_waits(live: Starter) -> None:
    """A stop of the service answers what waits in every listener, refuses what comes later, and removes the path."""
    with tempfile.TemporaryDirectory() as home:  # pytest's own may be longer than a socket's name
        where = ("--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--unix-socket", f"{home}/s")
        service = Service(live, "waitress", *where, listeners=3)
        for reloaded in (False, True):
            if reloaded:
                service.reload()
                service.wait_alone()
                assert os.path.exists(f"{home}/s")
        (pid,) = service.pids
        addresses = service.running.addresses[-3:]
        service.stop_process(pid)
        waiting = [Connection(address) for address in addresses]
        for connection in waiting:
            connection.ask("/fast")
        service.running.send(signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)
        for connection in waiting:
            with connection:
                assert connection.answer().body == b"fast"
        assert service.running.wait_gone() == 0
        assert all(refuses(address) for address in addresses)
        assert os.listdir(home) == []


def test_given_listeners(live: Starter) -> None:
    """A listener that was passed on stays open, for the next process and for the one that opened it."""
    with socket.create_server(("127.0.0.1", 0)) as given:
        service = Service(live, "waitress", "--fd", str(given.fileno()), fds=[given.fileno()])
        service.reload()
        service.wait_alone()
        assert service.running.stop() == 0
        with Connection(service.address) as late:
            late.ask("/fast")
            given.settimeout(10)
            accepted, _ = given.accept()
            with accepted:
                assert accepted.recv(3) == b"GET"


def test_probes_tell_the_truth(live: Starter) -> None:
    """While the next process starts, probes are the old one's; then its own; kept connections hear it is ready."""
    settings = {"LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_PROBE_HOST": "127.0.0.1", "LIFECYCLE_DETAILS": "always"}
    service = Service(live, "waitress", settings=settings)
    port = int(service.running.wait_log(r"probe listener on http://127.0.0.1:(\d+)")[1])
    probes = ("127.0.0.1", port)

    def asked() -> tuple[int, int]:
        with Connection(probes) as connection:
            connection.ask("/healthcheck?verbose", Accept="application/json")
            answer = connection.answer()
        return answer.status, int(re.search(rb'"pid": ?(\d+)', answer.body)[1])  # type: ignore[index]

    _, before = service.ask_version()
    assert asked() == (200, before)
    service.deploy("two", SLOW)
    with Connection(service.address) as kept, Connection(service.address) as busy:
        busy.ask("/gate/a")
        service.running.wait_event("begin live a")
        kept.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n")  # begun, so that it is not hung up
        service.running.send(signal.SIGHUP)
        service.running.wait_log(r"reload: process \d+ starts")
        service.running.wait_for(lambda: len(service.pids) == 2, "the next process")
        for _ in range(10):
            assert asked() == (200, before)
        service.running.open_gate("warm")
        service.running.wait_log(r"\(left to another process\)")
        service.running.wait_log("-> DRAINING")
        _, after = service.ask_version()
        assert after != before
        for _ in range(10):
            assert asked() == (200, after)
        kept.send(b"\r\n")
        assert kept.answer().status == 200
        service.running.open_gate("a")
        assert busy.answer().body == b"passed a"
    assert service.running.stop() == 0
    assert refuses(probes)


def test_the_port_of_the_probes_may_change(live: Starter) -> None:
    """A deploy that moves the probes moves them."""
    service = Service(live, "waitress", settings={"LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_PROBE_HOST": "127.0.0.1"})
    service.running.wait_log(r"probe listener on http://127.0.0.1:(\d+)")
    service.deploy("two", "object.__setattr__(app.extensions['lifecycle'].settings, 'probe_host', '127.0.0.2')")
    service.reload()
    service.wait_alone()
    port = int(service.running.wait_log(r"probe listener on http://127.0.0.2:(\d+)")[1])
    assert get(("127.0.0.2", port), "/livez").status == 200
    assert service.running.stop() == 0


@pytest.mark.parametrize("way", ["request", "signal"])
def test_a_process_that_stops_by_itself(service: Service, way: str) -> None:
    """A stop that begins in the process that serves stops the service, clean: nobody is reset."""
    with in_flight(service.running):
        if way == "request":
            with Connection(service.address) as asking:
                asking.ask("/stop", "POST")
                assert asking.answer().body == b"stopping"
        else:
            os.kill(service.pids[0], signal.SIGTERM)
        service.running.wait_log(r"listener closed \((device binding|socket filter|quiet period)\)")
        assert refuses(service.address)
        service.running.send(signal.SIGHUP)
        service.running.wait_log("no reload: the service stops")
    assert service.running.wait_gone() == 0


def test_a_process_that_dies(live: Starter) -> None:
    """A process that is killed is not replaced: the exit code tells, as a shell has it; unless the next is coming."""
    service = Service(live, "waitress")
    service.deploy("two", SLOW)
    (first,) = service.pids
    service.running.send(signal.SIGHUP)
    service.running.wait_log(r"reload: process \d+ starts")
    os.kill(first, signal.SIGKILL)
    service.running.wait_log(f"process {first} was killed by SIGKILL unexpectedly")
    service.running.open_gate("warm")
    service.running.wait_log(r"reload: process \d+ serves, process \(none\) finishes")
    version, second = service.ask_version()
    assert version == "two"
    os.kill(second, signal.SIGKILL)
    assert service.running.wait_gone() == 128 + signal.SIGKILL


def test_a_child_that_the_application_forks_as_it_is_loaded(live: Starter) -> None:
    """A forked child keeps none of the listeners, nor the channel: the address is free when the service has stopped."""
    service = Service(live, "waitress", application=FORKS)
    child = int((live.home / "child").read_text())
    try:
        links = Path(f"/proc/{child}/fd")
        wait_until(lambda: "socket:" not in str([*map(os.readlink, links.iterdir())]), "the child has no socket")
        service.reload()
        service.wait_alone()
        assert service.running.stop() == 0
        with socket.create_server(service.address):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_first_process_that_does_not_come_up(live: Starter) -> None:
    """The service leaves with the code of a first process that fails, and says so."""
    service = Service(live, "waitress", application="raise SystemExit(7)", listeners=0)
    assert service.running.wait_gone() == 7
    assert re.search(r"process \d+ exited with code 7 unexpectedly", service.running.log)


def test_a_supervisor_that_dies(service: Service) -> None:
    """Without its supervisor a process stops for good, and answers what it has."""
    (pid,) = service.pids
    with in_flight(service.running):
        os.kill(service.running.target, signal.SIGKILL)
        service.running.wait_gone()
        wait_until(lambda: "(the supervisor is gone; " in service.running.log or refuses(service.address), "stop")
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the process leaves")
    assert "clean, exit 0 (the supervisor is gone" in service.running.log


def test_a_stop_while_the_next_one_starts(service: Service) -> None:
    """A stop in the middle of a reload stops both processes."""
    service.begin_reload()
    service.running.send(signal.SIGHUP)  # once more, after this one: it never comes
    service.running.send(signal.SIGTERM)
    service.running.wait_log("shutdown begins: SIGTERM(?s:.*)shutdown begins: SIGTERM")
    service.running.open_gate("warm")
    assert service.running.wait_gone() == 0
    assert refuses(service.address)
    assert "continues to serve" not in service.running.log


def test_a_stop_as_the_next_one_takes_over(service: Service) -> None:
    """A stop that the process before has not begun when the next one takes over is the next one's, too."""
    # The one before is held up between the signal and its word ``stopping``; meanwhile the next one says ``ready``.
    (first,) = service.pids
    service.begin_reload()
    service.stop_process(first)
    service.running.send(signal.SIGTERM)
    service.running.open_gate("warm")
    service.running.wait_log(r"reload: process \d+ serves")
    os.kill(first, signal.SIGCONT)
    assert service.running.wait_gone() == 0
    assert "forced" not in service.running.log


def test_a_stop_while_nobody_serves(service: Service) -> None:
    """Where the process before has died, a stop is for the next one, however far its start is."""
    (first,) = service.pids
    service.begin_reload()
    os.kill(first, signal.SIGKILL)
    service.running.wait_log(f"process {first} was killed by SIGKILL unexpectedly")
    service.running.send(signal.SIGTERM)
    service.running.wait_log("shutdown begins: SIGTERM")
    service.running.open_gate("warm")
    assert service.running.wait_gone() == 128 + signal.SIGKILL
    assert refuses(service.address)


def test_a_reload_that_is_asked_for_twice(service: Service) -> None:
    """Who asks for a reload in the middle of one gets another one after it."""
    service.begin_reload()
    service.running.send(signal.SIGHUP)
    service.deploy("three")
    service.running.open_gate("warm")
    service.running.wait_for(lambda: len(SERVES.findall(service.running.log)) == 2, "two reloads")
    service.wait_alone()
    assert service.ask_version()[0] == "three"
    assert service.running.stop() == 0


def test_the_second_signal_forces(service: Service) -> None:
    """A second signal ends every process at once, also the one that finishes what it had before a reload."""
    with hung_request(service.running):
        service.reload()
        service.running.wait_log(r"\(left to another process\)")
        with Connection(service.address) as after:
            after.ask("/gate/never")
            service.running.wait_event("begin live never", times=2)
            service.running.send(signal.SIGTERM)
            service.running.wait_log("shutdown begins: SIGTERM")
            assert not service.running.gone.wait(0.3)
            assert len(service.pids) == 2
            assert service.running.stop() == 128 + signal.SIGTERM
    assert service.running.log.count("forced by SIGTERM") == 2


def test_a_signal_to_all(service: Service) -> None:
    """The same signal from systemd and, later, from a supervisor is not taken for a second one."""
    with Connection(service.address) as before:
        before.ask("/gate/a")
        service.running.wait_event("begin live a")
        service.reload()
        service.running.wait_log(r"\(left to another process\)")
        with Connection(service.address) as after:
            after.ask("/gate/a")
            service.running.wait_event("begin live a", times=2)
            for pid in service.pids:
                os.kill(pid, signal.SIGTERM)
            service.running.wait_log("shutdown begins: SIGTERM")
            assert not service.running.gone.wait(0.3)
            service.running.send(signal.SIGTERM)
            assert not service.running.gone.wait(0.3)
            service.running.open_gate("a")
            assert before.answer().body == after.answer().body == b"passed a"
    assert service.running.wait_gone() == 0
    assert "forced" not in service.running.log


@pytest.mark.parametrize(("number", "settings"), [(signal.SIGQUIT, {}), (signal.SIGTERM, {"LIFECYCLE_EXIT": "signal"})])
def test_it_leaves_by_the_signal(live: Starter, number: int, settings: dict[str, str]) -> None:
    """A process that dies by a signal, also by one that it does not handle, has its supervisor die by it as well."""
    service = Service(live, "waitress", settings=settings)
    assert service.running.stop(number) == -number


def test_ctrl_c(live: Starter) -> None:
    """Ctrl-C on a terminal stops the service in the middle of a request, which is answered."""
    service = Service(live, "waitress", terminal=True)
    with in_flight(service.running):
        service.running.type(b"\x03")
        service.running.wait_log("again to force")
        assert not service.running.gone.wait(0.3)
    assert service.running.wait_gone() == 0


def test_the_environment_and_the_directory_of_then(live: Starter) -> None:
    """The next process starts in the directory that the path leads to now, and without what was set on the way."""
    for name in ("old", "new"):
        (live.home / name).mkdir()
        source = APPLICATION.format(version=name, more="")
        (live.home / name / "web.py").write_text(
            f"import sys\nsys.path.append({os.getcwd()!r} + '/tests/live_apps')\n{source}"
        )
    (live.home / "current").symlink_to("old")
    command = (
        f"cd {live.home}/current && exec {sys.executable} -m flask --app web lifecycle run -p 0 --reload-on SIGHUP"
    )
    running = live.start("/bin/sh", "-c", command)
    running.wait_log("STARTING -> READY")
    assert get(running.address, "/version").body.startswith(b"old ")
    subprocess.run(["ln", "-sfn", "new", f"{live.home}/current"], check=True)
    address = running.address
    running.send(signal.SIGHUP)
    running.wait_log(SERVES.pattern)
    running.wait_log("shutdown complete")
    assert get(address, "/version").body.startswith(b"new ")
    assert running.stop() == 0


def test_another_server_than_waitress(live: Starter) -> None:
    """Only waitress can be replaced while it serves; for another server one sentence says so."""
    running = live.serve("cheroot", "--reload-on", "SIGHUP", "-p", "0", listeners=0)
    assert running.wait_gone() == 2
    assert running.log.splitlines()[-1] == (
        "Error: --reload-on needs waitress; leave out '--server cheroot' or '--reload-on'."
    )
