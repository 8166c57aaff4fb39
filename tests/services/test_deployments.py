"""The examples of deployments, really run: balancers in front of two instances, an image's command as PID 1."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests._needs import nginx_http, program
from tests.live._client import Connection, answers, get, storm
from tests.live._process import ROOT, Running, Starter

from .test_pid_1 import UNSHARE, child_of, pid_namespace

__all__ = ["pid_namespace"]
EXAMPLES = ROOT / "examples"
# That of the examples, by which their balancers' checks are chosen.
DELAY = {"LIFECYCLE_SHUTDOWN_DELAY": 2}
AUTO = {"LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_GRACE_PERIOD": 60.0}
FILES = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf", "envoy": "envoy.yaml"}


@contextlib.contextmanager
def port() -> Iterator[int]:
    """A port that nobody else is given, and that who sets SO_REUSEADDR can listen on."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", 0))
        yield int(sock.getsockname()[1])


def moved(kind: str, home: Path, back: int, front: int, retries: int) -> Path:
    """The example's configuration on other ports, and for HAProxy with so many retries."""
    text = (EXAMPLES / kind / FILES[kind]).read_text()
    for old, new in (("8000", back), ("8080", front)):
        assert re.search(rf"\b{old}\b", text)
        text = re.sub(rf"\b{old}\b", str(new), text)
    text = text.replace("retries 3", f"retries {retries}")
    if kind == "nginx":  # where it may write is a matter of the machine
        text = text.replace("http {", nginx_http(home), 1)
    file = home / FILES[kind]
    file.write_text(text)
    return file


def commands(kind: str, file: Path) -> tuple[list[str], list[str]]:
    """What checks a configuration, and what runs it in the foreground."""
    if kind == "haproxy":
        return [program("haproxy"), "-c", "-dW", "-f", str(file)], [program("haproxy"), "-db", "-f", str(file)]
    if kind == "nginx":
        options = [program("nginx"), "-p", str(file.parent), "-c", str(file)]
        return [*options, "-t"], [*options, "-g", "daemon off; master_process off;"]
    envoy = [str(Path(sys.executable).parent / "envoy"), "--log-level", "warning", "-c", str(file)]
    return [*envoy, "--mode", "validate"], [*envoy, "--use-dynamic-base-id", "--concurrency", "1"]


def start(live: Starter, kind: str, back: int, front: int, retries: int) -> None:
    """Check the example's configuration and run it, until it answers."""
    check, run = commands(kind, moved(kind, live.home, back, front, retries))
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    done = subprocess.run(check, env={**os.environ, **path}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    balancer = live.start(*run, env=path)
    balancer.wait_for(lambda: answers(("127.0.0.1", front), "/fast"), f"the first answer of {kind}")


def stop_one_of_two(live: Starter, server: str, kind: str, settings: dict[str, Any], retries: int = 3) -> Running:
    """Stop one of two instances behind the example's balancer, which goes on with the other one and loses nothing."""
    with port() as back, port() as front:
        instances = [live.serve(server, "-h", f"127.0.0.{n}", "-p", str(back), settings=settings) for n in (1, 2)]
        start(live, kind, back, front, retries)
        if kind != "nginx":  # which asks for nothing
            for instance in instances:
                instance.wait_for(lambda one=instance: int(get(one.address, "/visits").body) >= 3, "three checks")  # type: ignore[misc]
        with storm(("127.0.0.1", front), threading.Event(), clients=4, keep_alive=False) as clients:
            assert instances[0].stop() == 0
            assert clients.wait_answers(10), "answers of the other one"
            clients.leave()
        assert clients.lost == []
        assert int(re.findall(r"(\d+) served", instances[0].log)[-1]) > 0
        assert instances[1].stop() == 0
    return instances[0]


@pytest.mark.parametrize("kind", FILES)
def test_a_stop_behind_the_example_s_balancer_loses_nothing(live: Starter, kind: str) -> None:
    """The configuration is right, sends to both instances, and goes on with one while the other one stops."""
    stop_one_of_two(live, "waitress", kind, DELAY)


def test_an_adaptive_delay_behind_haproxy(live: Starter, server: str) -> None:
    """HAProxy is refused three times and then sends nothing more, so nothing is lost without a second try."""
    # The delay is over long before its maximum.
    stopped = stop_one_of_two(live, server, "haproxy", AUTO, retries=0)
    assert "delay auto, at most 15.0 s" in stopped.log
    ended = stopped.wait_log(r"delay ended after ([\d.]+) s: 1 prober refused 3 times, no new work for 1\.\d s")
    assert float(ended[1]) < 15.0


def image_command() -> list[str]:
    """The command of the example's Dockerfile, as Docker reads it."""
    (text,) = re.findall(r"^CMD (.*)$", (EXAMPLES / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    words: list[str] = json.loads(text)
    return words


@pytest.mark.usefixtures("pid_namespace")
def test_the_command_of_the_image_as_pid_1(live: Starter) -> None:
    """SIGTERM in the middle of a request: it is answered, and the process, which is PID 1, exits with 0."""
    with port() as free:
        words = [str(free) if word == "8000" else word for word in image_command()]
        tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        started = live.start(*UNSHARE, "--wd", str(EXAMPLES), *words, env={"PATH": tools})
        started.wait_log("STARTING -> READY")
        started.target = child_of(started)
        with Connection(("127.0.0.1", free)) as connection:
            connection.send(b"GET / HTTP/1.1\r\nHost: local")
            started.begin_stop()
            connection.send(b"host\r\n\r\n")
            answer = connection.answer()
        assert (answer.status, answer.body) == (200, b"hello\n")
        assert started.wait_gone() == 0
        assert "clean, exit 0" in started.log


def test_what_the_image_copies_is_there() -> None:
    """Each source of a COPY is in the checkout, and the application that the command names is one of them."""
    text = (EXAMPLES / "docker" / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    module = image_command()[image_command().index("--app") + 1]
    assert f"examples/{module}.py" in sources


def units(home: Path, port: int) -> list[Path]:
    """The example's units, with the program and the address of this test."""
    program, files = Path(sys.executable).parent / "flask", []
    for source in sorted((EXAMPLES / "systemd").iterdir()):
        text = source.read_text().replace("/srv/factory/.venv/bin/flask", str(program))
        text = text.replace("/srv/factory", str(EXAMPLES)).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        files.append(home / source.name)
        files[-1].write_text(text)
    return files


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Every line is known to systemd, and what the units name is there."""
    files = units(tmp_path, 8000)
    assert [file.name for file in files] == ["factory.service", "factory.socket"]
    command = [program("systemd-analyze"), "verify", "--man=no"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    files[0].write_text(files[0].read_text().replace("KillMode", "KillMod"))
    done = subprocess.run([*command, str(files[0])], capture_output=True, text=True, timeout=30)
    assert "Unknown key 'KillMod'" in done.stderr  # which it says of a line, whatever its exit code is


def test_the_service_serves_the_listener_of_the_socket_unit(live: Starter) -> None:
    """systemd's own activation starts the service's command for the first client, who is answered; SIGTERM ends it."""
    with port() as free:
        service, unit = (file.read_text() for file in units(live.home, free))
        (command,) = re.findall("^ExecStart=(.*)$", service, re.MULTILINE)
        (address,) = re.findall("^ListenStream=(.*)$", unit, re.MULTILINE)
        python_path = f"--setenv=PYTHONPATH={ROOT}"  # it keeps little of the environment
        activate = (program("systemd-socket-activate"), python_path, "-l", address)
        started = live.start("env", "--chdir", str(EXAMPLES), *activate, *command.split())
        started.wait_log("Listening on")
        assert get(("127.0.0.1", free), "/").body == b"hello\n"
        assert started.stop() == 0
        assert "clean, exit 0" in started.log
