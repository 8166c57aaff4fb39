"""A server with a drain of its own, which keeps every promise of the catalogue but the one that it is given.

    python breaking_server.py PORT [SCENARIO [DESCRIPTOR]]

It answers the paths that ``flask lifecycle verify`` asks for, and records what the routes of the package record. On
SIGHUP it starts another process with the descriptor of its listener, which serves from then on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from flask_lifecycle._servers import listener as listeners
from flask_lifecycle._verify import routes

PORT, BREAKS = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
PREFIX, HOOK, RECORD = os.environ["LIFECYCLE_VERIFY"].split(":", 2)

GRACE = 10.0
LINGER = 0.5  # how long a kept connection is answered after the signal
record = routes.Record(RECORD)
stops: list[int] = []  # the signals that came
reloads: list[int] = []
threads_left: list[Client] = []
draining = threading.Event()
pool = threading.Semaphore(4)
lock = threading.Lock()
connections: set[Client] = set()


class GoneError(Exception):
    """The connection has ended."""


class Client:
    """One connection; ``stage`` is ``silent``, ``idle``, ``head``, ``body``, ``queued``, ``busy`` or ``gone``."""

    def __init__(self, sock: socket.socket, *, probe: bool = False) -> None:
        self.sock, self.data, self.stage, self.kind = sock, b"", "silent", ""
        self.expects = self.chunked = self.old = False
        if not probe:
            with lock:
                connections.add(self)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(GoneError, OSError):
            while self.request():
                self.stage = "idle"
        self.stage = "gone"
        with contextlib.suppress(OSError):
            self.sock.close()
        with lock:
            connections.discard(self)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def read(self) -> None:
        if not (data := self.sock.recv(65536)):
            raise GoneError
        self.data += data

    def until(self, end: bytes) -> bytes:
        while end not in self.data:
            self.read()
        part, self.data = self.data.split(end, 1)
        return part

    def exactly(self, size: int) -> int:
        while len(self.data) < size:
            self.read()
        self.data = self.data[size:]
        return size

    def request(self) -> bool:
        if not self.data:
            self.read()
        self.stage = "head"
        lines = self.until(b"\r\n\r\n").decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        _, target, version = lines[0].split(" ")
        path, _, query = target.partition("?")
        self.kind = path.rpartition("/")[2]
        self.old, self.expects = version == "http/1.0", "expect" in headers
        self.chunked = "transfer-encoding" in headers
        self.stage = "body"
        if self.expects:
            self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = self.exactly(int(headers.get("content-length", "0")))
        if self.chunked:
            size = 0
            while length := int(self.until(b"\r\n"), 16):
                size += self.exactly(length)
                self.exactly(2)
            self.exactly(2)
        seconds = float(query.partition("=")[2] or "0")
        self.stage = "queued"
        probe = self.kind in ("ready", "live") and BREAKS != "probes/live-busy"
        with contextlib.nullcontext() if probe else pool:
            self.stage = "busy"
            closes = self.old or headers.get("connection") == "close"
            return self.respond(seconds, size, closes)

    def respond(self, seconds: float, size: int, closes: bool) -> bool:
        status, body = 200, {"upload": str(size), "ready": "ready", "live": "live"}.get(self.kind, self.kind).encode()
        if self.kind == "stream":
            self.sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            record.add("begin")
            for part in parts(seconds):
                self.sock.sendall(part)
            record.add("end")
            return False
        if self.kind == "websocket":
            self.echo()
            return False
        if self.kind == "thread":
            threads_left.append(self)
        if self.kind == "live" and BREAKS == "probes/live-cpu":
            while computing():
                time.sleep(0.01)
        if self.kind in ("slow", "cpu"):
            record.add("begin")
            time.sleep(seconds)
            record.add("end")
            if BREAKS == "in-flight/half-closed" and draining.is_set() and select.select([self.sock], [], [], 0)[0]:
                return False
        elif self.kind in ("large", "file"):
            body = routes.LARGE
        elif draining.is_set():
            failing = {"ready": BREAKS != "probes/ready-fails", "live": BREAKS == "probes/live-holds"}
            status = 503 if failing.get(self.kind) else 200
        closes = closes or draining.is_set()
        hangs_up = BREAKS in ("accept/storm-kept", "in-flight/pipelined") and draining.is_set()  # and does not say so
        says = "close" if closes and not hangs_up and BREAKS != "connections/close" else "keep-alive"
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: {says}\r\n\r\n"
        self.sock.sendall(head.encode() + body)
        return (not closes or bool(self.data)) and not hangs_up

    def echo(self) -> None:
        self.sock.sendall(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while not draining.is_set():
            if select.select([self.sock], [], [], 0.05)[0]:
                self.read()
                self.sock.sendall(bytes([self.data[0], self.data[1] & 0x7F]) + self.data[6:])
                self.data = b""
        if BREAKS != "in-flight/websocket":
            self.sock.sendall(b"\x88\x02\x03\xe9")


def computing() -> bool:
    with lock:
        return any((client.stage, client.kind) == ("busy", "cpu") for client in connections)


def parts(seconds: float) -> Iterator[bytes]:
    for number in range(routes.PARTS):
        yield b"part %d\n" % number
        time.sleep(seconds / routes.PARTS)


def must_break(client: Client) -> bool:
    """Whether this connection is one of those that are cut after the signal."""
    stage, kind = client.stage, client.kind
    return {
        "in-flight/running": (stage, kind) == ("busy", "slow"),
        "in-flight/queued": stage == "queued",
        "in-flight/half-head": stage == "head",
        "in-flight/half-body": stage == "body",
        "in-flight/trickled": stage == "body",
        "in-flight/chunked": stage == "body" and client.chunked,
        "in-flight/expect": stage == "body" and client.expects,
        "in-flight/streamed": (stage, kind) == ("busy", "stream"),
        "in-flight/slow-reader": (stage, kind) == ("busy", "large"),
        "in-flight/sendfile": (stage, kind) == ("busy", "file"),
        "in-flight/http-1.0": stage == "busy" and client.old,
    }.get(BREAKS, False)


def holds_up(client: Client, age: float) -> bool:
    """Whether the stop waits for a connection."""
    if client.stage == "idle" and BREAKS != "connections/idle":
        return age < LINGER
    if client.stage == "silent" and BREAKS != "connections/silent":
        return age < LINGER
    return client.stage != "gone"


def accept_all(listener: socket.socket) -> None:
    accepted = []
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted.append(listener.accept()[0])
    queued = BREAKS == "accept/queue" and len(accepted) > 1
    for sock in accepted:
        sock.setblocking(True)
        if queued or (BREAKS in ("accept/storm", "accept/flood") and stops):
            sock.close()
        else:
            Client(sock)


def answer_probes(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was shut down
        while True:
            Client(listener.accept()[0], probe=True)


def hand_over(listener: socket.socket) -> None:
    """Have another process serve; this one answers what it has, and goes with it."""
    descriptor = listener.fileno()
    command = [sys.executable, __file__, str(PORT), BREAKS or "none", str(descriptor)]
    successor = subprocess.Popen(command, pass_fds=[descriptor])
    draining.set()  # so that responses close their connections
    if BREAKS == "deploy/hand-over":
        with lock:
            for client in connections:
                client.cut()
    while not stops:
        time.sleep(0.01)
    successor.send_signal(signal.SIGTERM)
    os._exit(successor.wait())


def run_hooks() -> None:
    if HOOK:
        record.add(HOOK)
    if HOOK == "hangs" and BREAKS == "hooks/one-hangs":
        time.sleep(60)
    if BREAKS in ("hooks/run", "hooks/after-the-last-response") or (HOOK and BREAKS == "hooks/one-raises"):
        return
    record.add("shutdown")
    if BREAKS == "hooks/once":
        record.add("shutdown")


def drain(listener: socket.socket, probes: socket.socket) -> None:
    """From the signal to the exit."""
    draining.set()
    if BREAKS == "exit/hung-request":
        signal.pause()
    if BREAKS == "hooks/after-the-last-response":
        record.add("shutdown")
    if BREAKS == "probes/live-after-close":
        probes.shutdown(socket.SHUT_RDWR)
    if BREAKS not in ("accept/storm", "accept/flood"):
        listeners.refuse_connections(listener)
    began = time.monotonic()
    while time.monotonic() - began < GRACE:
        accept_all(listener)
        age = time.monotonic() - began
        with lock:
            for client in connections:
                if age < LINGER and must_break(client):
                    client.cut()
            if age > LINGER and not any(holds_up(client, age) for client in connections):
                break
        time.sleep(0.01)
    if BREAKS == "connections/many-idle":
        time.sleep(0.3 * len(connections))
    run_hooks()
    if BREAKS == "exit/thread-left" and threads_left:
        time.sleep(60)
    if BREAKS == "exit/no-process-left":
        listener.close()
    if BREAKS in ("exit/no-process-left", "exit/address-free") and os.fork() == 0:
        time.sleep(60)
    failed = HOOK == "raises" and BREAKS != "exit/failed-hook"
    os._exit(3 if failed or BREAKS == "exit/code" else 0)


def stop(number: int) -> None:
    stops.append(number)
    if len(stops) > 1 and BREAKS != "exit/second-signal":
        os._exit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if BREAKS == "exit/during-start" else lambda number, _: stop(number))
    signal.signal(signal.SIGHUP, lambda number, _: reloads.append(number))
    if BREAKS == "exit/during-start":
        print("starting", flush=True)
        time.sleep(60)
    probes = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=answer_probes, args=(probes,), daemon=True).start()
    paths = {"ready": f"/{PREFIX}/ready", "live": f"/{PREFIX}/live"}
    record.add("settings " + json.dumps({**paths, "grace": GRACE, "probe_port": probes.getsockname()[1]}))
    inherited = sys.argv[3:]
    listener = socket.socket(fileno=int(inherited[0])) if inherited else socket.create_server(("127.0.0.1", PORT))
    listener.setblocking(False)
    while not stops:
        select.select([listener], [], [], 0.05)
        if reloads:
            hand_over(listener)
        if not stops:
            accept_all(listener)
    threading.Thread(target=drain, args=(listener, probes)).start()
    while True:
        time.sleep(1)  # for the second signal


if __name__ == "__main__":
    main()
