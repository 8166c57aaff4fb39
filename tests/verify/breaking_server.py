"""A server with a drain of its own, which keeps every promise of the catalogue but the one that it is given.

    python breaking_server.py PORT [SCENARIO [DESCRIPTOR]]

It answers the paths that ``flask lifecycle verify`` asks for, and records what the routes of the package record. On
SIGHUP it starts another process with the descriptor of its listener, which serves from then on.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

from flask_lifecycle._servers import listener as listeners
from flask_lifecycle._verify.routes import LARGE, VARIABLE, Record

PORT, BREAKS = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
PREFIX, HOOK, path = os.environ["LIFECYCLE_VERIFY"].split(":", 2)
record = Record(path).add

GRACE = 10.0
LINGER = 0.5  # how long a kept connection is answered after the signal
stops: list[int] = []  # the signals that came
reloads: list[int] = []
threads_left: list[Client] = []
draining = threading.Event()
pool = threading.Semaphore(4)
lock = threading.Lock()
connections: set[Client] = set()


class Client(http.server.BaseHTTPRequestHandler):
    """One connection; ``stage`` is ``silent``, ``idle``, ``head``, ``body``, ``queued``, ``busy`` or ``gone``."""

    protocol_version = "HTTP/1.1"
    stage, kind = "silent", ""

    def __init__(self, sock: socket.socket, *, probe: bool = False) -> None:
        self.request = self.connection = sock
        if not probe:
            with lock:
                connections.add(self)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        self.setup()
        self.close_connection = False
        with contextlib.suppress(OSError):
            while not self.close_connection and self.rfile.peek(1):  # type: ignore[attr-defined]  # it is buffered
                self.stage = "head"
                self.handle_one_request()
                self.stage = "idle"
        self.stage = "gone"
        self.rfile.close()
        self.connection.close()
        with lock:
            connections.discard(self)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_args: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.kind = path.rpartition("/")[2]
        self.stage = "body"
        size = len(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        if "Transfer-Encoding" in self.headers:
            while length := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(length + 2)) - 2
            self.rfile.readline()
        self.stage = "queued"
        probe = self.kind in ("ready", "live") and BREAKS != "probes/live-busy"
        with contextlib.nullcontext() if probe else pool:
            self.stage = "busy"
            self.respond(float(query.partition("=")[2] or "0"), size)

    do_POST = do_GET

    def respond(self, seconds: float, size: int) -> None:
        status, body = 200, {"upload": str(size)}.get(self.kind, self.kind).encode()
        if self.kind == "stream":
            self.stream(seconds)
            return
        if self.kind == "websocket":
            self.echo()
            return
        if self.kind == "thread":
            threads_left.append(self)
        if self.kind == "live" and BREAKS == "probes/live-cpu":
            while computing():
                time.sleep(0.01)
        if self.kind in ("slow", "cpu"):
            record("begin")
            time.sleep(seconds)
            record("end")
            if BREAKS == "in-flight/half-closed" and draining.is_set() and select.select([self.rfile], [], [], 0)[0]:
                self.close_connection = True
                return
        elif self.kind in ("large", "file"):
            body = LARGE
        elif draining.is_set():
            failing = {"ready": BREAKS != "probes/ready-fails", "live": BREAKS == "probes/live-holds"}
            status = 503 if failing.get(self.kind) else 200
        closes = self.close_connection or draining.is_set()
        hangs_up = BREAKS in ("accept/storm-kept", "in-flight/pipelined") and draining.is_set()  # and does not say so
        says = "close" if closes and not hangs_up and BREAKS != "connections/close" else "keep-alive"
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: {says}\r\n\r\n"
        self.wfile.write(head.encode() + body)
        self.close_connection = closes

    def stream(self, seconds: float) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        record("begin")
        for number in range(10):
            self.wfile.write(b"part %d\n" % number)
            time.sleep(seconds / 10)
        record("end")

    def echo(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while not draining.is_set():
            if select.select([self.rfile], [], [], 0.05)[0]:
                frame = self.connection.recv(1024)
                self.wfile.write(bytes([frame[0], frame[1] & 0x7F]) + frame[6:])
        if BREAKS != "in-flight/websocket":
            self.wfile.write(b"\x88\x02\x03\xe9")


def computing() -> bool:
    with lock:
        return any((client.stage, client.kind) == ("busy", "cpu") for client in connections)


def must_break(client: Client) -> bool:
    """Whether this connection is one of those that are cut after the signal."""
    stage, kind = client.stage, client.kind
    return {
        "in-flight/running": (stage, kind) == ("busy", "slow"),
        "in-flight/queued": stage == "queued",
        "in-flight/half-head": stage == "head",
        "in-flight/half-body": stage == "body",
        "in-flight/trickled": stage == "body",
        "in-flight/chunked": stage == "body" and "Transfer-Encoding" in client.headers,
        "in-flight/expect": stage == "body" and "Expect" in client.headers,
        "in-flight/streamed": (stage, kind) == ("busy", "stream"),
        "in-flight/slow-reader": (stage, kind) == ("busy", "large"),
        "in-flight/sendfile": (stage, kind) == ("busy", "file"),
        "in-flight/http-1.0": stage == "busy" and client.request_version == "HTTP/1.0",
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
        record(HOOK)
    if HOOK == "hangs" and BREAKS == "hooks/one-hangs":
        time.sleep(60)
    if BREAKS in ("hooks/run", "hooks/after-the-last-response") or (HOOK and BREAKS == "hooks/one-raises"):
        return
    record("shutdown")
    if BREAKS == "hooks/once":
        record("shutdown")


def drain(listener: socket.socket, probes: socket.socket) -> None:
    """From the signal to the exit."""
    draining.set()
    if BREAKS == "exit/hung-request":
        signal.pause()
    if BREAKS == "hooks/after-the-last-response":
        record("shutdown")
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
        subprocess.Popen(["sleep", "60"], env={VARIABLE: os.environ[VARIABLE]})  # as started by "env -i"
    if BREAKS == "exit/address-free" and os.fork() == 0:
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
    record("settings " + json.dumps({**paths, "grace": GRACE, "probe_port": probes.getsockname()[1]}))
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
