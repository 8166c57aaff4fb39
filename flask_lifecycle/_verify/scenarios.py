"""The catalogue: what is tried, what it promises, and why that matters.

A scenario is a function that works with a :class:`~.trial.Trial`. It returns what it saw if the promise holds, raises
:exc:`~.trial.BrokenError` if not, or what the client raises for a lost response; and :exc:`~.trial.NotCheckedError` if
it says nothing about this command. Where the application has the routes of ``verify``, a scenario orders things by what
they record, not by the clock.
"""

from __future__ import annotations

import dataclasses
import signal
import socket
import time
from collections.abc import Callable

from .client import Connection, LostError, Storm, is_refused, request_head
from .trial import BrokenError, NotCheckedError, Trial

STARTED, ACCEPTED, ALL = "started", "accepted", "all"
LEVELS = (STARTED, ACCEPTED, ALL)  # each includes those before it
BEYOND = "beyond"  # some servers keep it; it is reported, and none of the levels includes it


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One scenario.

    :param needs: the kinds of work whose paths it uses; without any it runs while the command starts.
    """

    name: str
    level: str
    needs: tuple[str, ...]
    promise: str
    why: str
    run: Callable[[Trial], str]

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


CATALOGUE: dict[str, Scenario] = {}


def scenario(
    name: str, level: str, *needs: str, promise: str, why: str
) -> Callable[[Callable[[Trial], str]], Callable[[Trial], str]]:
    """Add a function to the catalogue."""

    def add(function: Callable[[Trial], str]) -> Callable[[Trial], str]:
        CATALOGUE[name] = Scenario(name, level, needs, promise, why, function)
        return function

    return add


# -- accept: connections that arrive at the moment of the stop ---------------------------------------------------------


@scenario(
    "accept/queue", ALL, "fast",
    promise="Connections in the kernel's accept queue at the signal are answered.",
    why="The kernel completes handshakes while a server is busy; closing the listener resets these clients.",
)  # fmt: skip
def accept_queue(trial: Trial) -> str:
    with trial.subject.stopped():
        clients = [trial.connect() for _ in range(8)]
        for client in clients:
            client.ask(trial.path("fast"))
        trial.stop()
    for client in clients:
        trial.expect(client, "fast")
    return f"{len(clients)} of {len(clients)} answered"


def _storm(trial: Trial, keep: bool) -> str:
    subject = trial.subject
    with Storm(subject.address, trial.path("fast"), subject.gone, subject.patience, clients=6, keep=keep) as storm:
        trial.stop()
        trial.exit()
    if lost := storm.lost:
        raise BrokenError(f"{len(lost)} lost of {storm.answered + len(lost)}, for example: {lost[0]}")
    return f"{storm.answered} answered, none lost"


@scenario(
    "accept/storm", ALL, "fast",
    promise="Clients that open a connection for each request, without a pause, lose none.",
    why="This is a load balancer without keep-alive during a deploy.",
)  # fmt: skip
def accept_storm(trial: Trial) -> str:
    return _storm(trial, keep=False)


@scenario(
    "accept/storm-kept", ALL, "fast",
    promise="Clients that send one request after the other on kept connections lose none.",
    why="This is a load balancer or a connection pool during a deploy; most cannot repeat a POST.",
)  # fmt: skip
def accept_storm_kept(trial: Trial) -> str:
    return _storm(trial, keep=True)


# -- in flight: requests in every stage --------------------------------------------------------------------------------


@scenario(
    "in-flight/running", STARTED, "slow",
    promise="A request that runs at the signal is answered.",
    why="It may have changed the database already; its client must not have to guess.",
)  # fmt: skip
def running(trial: Trial) -> str:
    client = trial.begin("slow", 1.5)
    trial.stop()
    trial.expect(client, "slow")
    return "answered"


@scenario(
    "in-flight/queued", ACCEPTED, "slow",
    promise="Requests that wait for a free worker at the signal are answered.",
    why="On a busy server most requests wait; they are as good as accepted.",
)  # fmt: skip
def queued(trial: Trial) -> str:
    trial.begin("slow", 1)
    clients = [trial.connect() for _ in range(12)]
    for client in clients:
        client.ask(trial.path("slow", 0.5))
    trial.settle()
    trial.stop()
    for client in clients:
        trial.expect(client, "slow")
    return f"{len(clients)} of {len(clients)} answered"


def _in_parts(trial: Trial, kind: str, *parts: bytes, pause: float = 0.0) -> None:
    """Send a first part, stop in the middle, send the others, and expect the response."""
    client = trial.connect()
    client.send(parts[0])
    hold = trial.begin("slow", 1.5) if trial.own else None  # the stop waits for it
    trial.settle()
    trial.stop()
    trial.settle()
    for part in parts[1:]:
        client.send(part)
        time.sleep(pause)
    trial.expect(client, kind)
    if hold is not None:
        trial.expect(hold, "slow")


@scenario(
    "in-flight/half-head", ACCEPTED, "fast", "slow",
    promise="A request whose head has arrived in part at the signal is answered.",
    why="A head may be split by any network; its client has sent a request and expects a response.",
)  # fmt: skip
def half_head(trial: Trial) -> str:
    head = request_head(trial.path("fast"))
    _in_parts(trial, "fast", head[:20], head[20:])
    return "answered"


@scenario(
    "in-flight/half-body", ACCEPTED, "upload", "slow",
    promise="A request whose body has arrived in part at the signal is answered.",
    why="An upload takes seconds, and a client cannot tell how much of it counted.",
)  # fmt: skip
def half_body(trial: Trial) -> str:
    head = request_head(trial.path("upload"), "POST", 10)
    _in_parts(trial, "upload", head + b"half-", b"other")
    return "answered"


@scenario(
    "in-flight/trickled", ACCEPTED, "upload", "slow",
    promise="A request that arrives byte by byte during the stop is answered.",
    why="Phones on bad networks send like this.",
)  # fmt: skip
def trickled(trial: Trial) -> str:
    head = request_head(trial.path("upload"), "POST", 10)
    _in_parts(trial, "upload", head, *(b"%d" % number for number in range(10)), pause=0.05)
    return "answered"


def _must_work(trial: Trial, what: str, act: Callable[[Connection], int]) -> None:
    """Whether the server does this at all, before the stop."""
    with Connection(trial.subject.address, min(5.0, trial.subject.patience)) as client:
        try:
            status = act(client)
        except (LostError, OSError, ValueError):
            status = 0
    if status != 200:
        raise NotCheckedError(f"without a stop, too, the server does not answer {what}")


@scenario(
    "in-flight/chunked", ACCEPTED, "upload", "slow",
    promise="A request whose chunked body has arrived in part at the signal is answered.",
    why="Streaming clients do not know the length of what they send.",
)  # fmt: skip
def chunked(trial: Trial) -> str:
    head = request_head(trial.path("upload"), "POST", Transfer_Encoding="chunked")
    parts = head + b"5\r\nhalf-\r\n", b"5\r\nother\r\n0\r\n\r\n"

    def act(client: Connection) -> int:
        client.send(parts[0] + parts[1])
        return client.response().status

    _must_work(trial, "a chunked request", act)
    _in_parts(trial, "upload", *parts)
    return "answered"


@scenario(
    "in-flight/expect", ACCEPTED, "upload", "slow",
    promise="A client that waits for 100 Continue at the signal gets it, and its request is answered.",
    why="curl and many SDKs ask before they send a large body.",
)  # fmt: skip
def expect_continue(trial: Trial) -> str:
    head = request_head(trial.path("upload"), "POST", 5, Expect="100-continue")

    def act(client: Connection) -> int:
        client.send(head)
        if not client.sock.recv(1024).startswith(b"HTTP/1.1 100"):
            return 0
        client.send(b"other")
        return client.response().status

    _must_work(trial, "Expect: 100-continue", act)
    _in_parts(trial, "upload", head, b"other")
    return "answered"


@scenario(
    "in-flight/pipelined", ACCEPTED, "fast", "slow",
    promise="Of pipelined requests each is answered, or a response before it says that the connection closes.",
    why="A client may repeat what comes after Connection: close, and nothing else.",
)  # fmt: skip
def pipelined(trial: Trial) -> str:
    client = trial.begin("slow", 1)
    client.send(request_head(trial.path("fast")) * 2)
    trial.stop()
    answered = 0
    for _ in range(3):
        response = client.response()
        if response.status != 200:
            raise BrokenError(f"status {response.status} instead of 200")
        answered += 1
        if response.says_close:
            break
    return f"{answered} of 3 answered" + ("" if answered == 3 else ", then Connection: close")


@scenario(
    "in-flight/streamed", STARTED, "stream",
    promise="A response that is being streamed at the signal reaches its end.",
    why="Exports and generated files are useless if they are cut, and clients often cannot tell.",
)  # fmt: skip
def streamed(trial: Trial) -> str:
    client = trial.begin("stream", 2)
    trial.stop()
    trial.expect(client, "stream")
    return "whole"


@scenario(
    "in-flight/slow-reader", STARTED, "large",
    promise="A client that reads a large response slowly gets all of it.",
    why="The application has long returned; only the server knows that bytes wait.",
)  # fmt: skip
def slow_reader(trial: Trial) -> str:
    client = trial.connect(slow=True)
    client.ask(trial.path("large"))
    status, headers = client.head()
    trial.stop()
    trial.settle()
    body = client.body(headers)
    if status != 200 or len(body) < int(headers.get("content-length", len(body))):
        raise BrokenError(f"status {status}, {len(body)} bytes")
    return f"{len(body)} bytes"


@scenario(
    "in-flight/http-1.0", STARTED, "slow",
    promise="A request of HTTP/1.0 that runs at the signal is answered.",
    why="nginx speaks HTTP/1.0 to its upstreams unless it is configured otherwise.",
)  # fmt: skip
def http_10(trial: Trial) -> str:
    client = trial.begin("slow", 1.5, version="1.0")
    trial.stop()
    trial.expect(client, "slow")
    return "answered"


@scenario(
    "in-flight/half-closed", STARTED, "slow",
    promise="A client that has closed its sending side is answered.",
    why="Simple clients do this; the server must not take it for one that has gone.",
)  # fmt: skip
def half_closed(trial: Trial) -> str:
    def act(client: Connection) -> int:
        client.ask(trial.path("slow", 0.1))
        client.sock.shutdown(socket.SHUT_WR)
        return client.response().status

    _must_work(trial, "a half-closed client", act)
    client = trial.begin("slow", 1.5)
    client.sock.shutdown(socket.SHUT_WR)
    trial.stop()
    trial.expect(client, "slow")
    return "answered"


# -- connections: those without a request ------------------------------------------------------------------------------


def _hold_connections(trial: Trial, count: int, *, asked: bool) -> str:
    clients = [trial.connect() for _ in range(count)]
    if asked:
        for client in clients:
            client.get(trial.path("fast"))
    trial.stop()
    trial.exit(trial.grace / 2)
    lasted = trial.subject.gone_at - trial.subject.signalled_at
    return f"gone after {lasted:.1f} s"


@scenario(
    "connections/idle", ACCEPTED, "fast",
    promise="A kept connection without a request does not use up the grace period.",
    why="Every load balancer keeps some; with them each deploy would take as long as the grace period.",
)  # fmt: skip
def idle_connection(trial: Trial) -> str:
    return _hold_connections(trial, 1, asked=True)


@scenario(
    "connections/silent", ACCEPTED, "fast",
    promise="A connection that never sends anything does not use up the grace period.",
    why="Browsers and load balancers open connections ahead.",
)  # fmt: skip
def silent_connection(trial: Trial) -> str:
    return _hold_connections(trial, 1, asked=False)


@scenario(
    "connections/many-idle", ACCEPTED, "fast",
    promise="Fifty connections without a request do not use up the grace period.",
    why="If each is waited for in turn, one that is harmless alone adds up.",
)  # fmt: skip
def many_idle(trial: Trial) -> str:
    return _hold_connections(trial, 50, asked=False)


@scenario(
    "connections/close", ACCEPTED, "slow",
    promise="A response that ends during the stop says Connection: close.",
    why="Otherwise the client sends its next request on a connection that is about to go.",
)  # fmt: skip
def says_close(trial: Trial) -> str:
    client = trial.begin("slow", 1.5)
    trial.stop()
    response = client.response()
    if response.status != 200 or not response.says_close:
        raise BrokenError(f"status {response.status}, Connection: {response.headers.get('connection', '(none)')}")
    return "Connection: close"


# -- probes ------------------------------------------------------------------------------------------------------------


def _probe(trial: Trial, kind: str) -> int:
    """The status, on the probe listener if there is one; 0 if the connection is refused.

    :raises LostError: a probe was lost.
    """
    host, port = trial.subject.address
    try:
        with Connection((host, trial.probe_port or port), trial.subject.patience) as client:
            return client.get(trial.path(kind)).status
    except ConnectionRefusedError:
        return 0


@scenario(
    "probes/ready-fails", STARTED, "ready", "slow",
    promise="Readiness fails, or connections are refused, while the last requests run.",
    why="A load balancer that is not told keeps sending requests to a process that is about to end.",
)  # fmt: skip
def ready_fails(trial: Trial) -> str:
    if _probe(trial, "ready") != 200:
        raise BrokenError("readiness was not 200 before the stop")
    client = trial.begin("slow", 2)
    trial.stop()
    end = time.monotonic() + 1.5
    status = 200
    while status == 200 and time.monotonic() < end:
        try:
            status = _probe(trial, "ready")
        except LostError:
            status = 0
    trial.expect(client, "slow")
    if status == 200:
        raise BrokenError("readiness stayed 200 while the last request ran")
    return f"status {status}" if status else "connections refused"


@scenario(
    "probes/live-holds", STARTED, "live", "slow",
    promise="Liveness does not fail while the process stops.",
    why="Kubernetes kills a process whose liveness fails, with all its requests.",
)  # fmt: skip
def live_holds(trial: Trial) -> str:
    client = trial.begin("slow", 2)
    trial.stop()
    statuses: list[int] = []
    while not trial.subject.recorded("end") and not trial.subject.gone.is_set() and len(statuses) < 50:
        try:
            statuses.append(_probe(trial, "live"))
        except (LostError, TimeoutError):
            break  # the listener was closed under the probe, which "accept" judges
        if statuses[-1] not in (0, 200):
            raise BrokenError(f"liveness answered {statuses[-1]} during the stop")
        time.sleep(0.05)
    trial.expect(client, "slow")
    return f"{statuses.count(200)} answered 200, none failed"


@scenario(
    "probes/live-busy", ACCEPTED, "live", "slow",
    promise="Liveness answers while every worker is busy.",
    why="Otherwise the busiest process is killed first, and its load moves to the others.",
)  # fmt: skip
def live_busy(trial: Trial) -> str:
    if not trial.own:
        raise NotCheckedError("needs the routes of verify, which record when the requests end")
    trial.begin("slow", 4)
    for _ in range(40):
        trial.connect().ask(trial.path("slow", 4))
    try:
        status = _probe(trial, "live")
    except TimeoutError:
        status = 0
    ended = len(trial.subject.recorded("end"))
    if (status != 200 or ended) and trial.without_probe_port:
        raise NotCheckedError("the main listener does not answer probes while it is busy; set LIFECYCLE_PROBE_PORT")
    if status != 200 or ended:
        raise BrokenError(f"status {status} after {ended} of the busy requests had ended")
    return "answered before any of the busy requests ended"


# -- hooks -------------------------------------------------------------------------------------------------------------


def _shutdown_hooks(trial: Trial) -> list[float]:
    if not trial.own:
        raise NotCheckedError("needs an application with a Lifecycle")
    trial.exit()
    return trial.subject.recorded("shutdown")


@scenario(
    "hooks/run", STARTED, "slow",
    promise="The on_shutdown functions run.",
    why="They flush buffers, close pools and leave registries.",
)  # fmt: skip
def hooks_run(trial: Trial) -> str:
    trial.begin("slow", 0.1)
    trial.stop()
    if not (runs := _shutdown_hooks(trial)):
        raise BrokenError("the process has gone and no on_shutdown function has run")
    return f"ran in {len(runs)} process{'es' * (len(runs) > 1)}"


@scenario(
    "hooks/after-the-last-response", STARTED, "slow",
    promise="The on_shutdown functions run after the last request has ended.",
    why="A pool that is closed under a request breaks it.",
)  # fmt: skip
def hooks_after(trial: Trial) -> str:
    client = trial.begin("slow", 1.5)
    trial.stop()
    trial.expect(client, "slow")
    runs, ends = _shutdown_hooks(trial), trial.subject.recorded("end")
    # Of several workers those without a request may close theirs earlier.
    if not runs or not ends or max(runs) < max(ends):
        raise BrokenError("an on_shutdown function ran before the last request had ended")
    return f"{max(runs) - max(ends):.2f} s after it"


# -- exit --------------------------------------------------------------------------------------------------------------


@scenario(
    "exit/code", STARTED, "fast",
    promise="An idle process exits with 0.",
    why="A supervisor takes any other code for a crash: it alerts, restarts, or marks the deploy as failed.",
)  # fmt: skip
def exit_code(trial: Trial) -> str:
    trial.stop()
    code = trial.exit()
    if code:
        raise BrokenError(f"exit code {code}")
    return f"0 after {trial.subject.gone_at - trial.subject.signalled_at:.1f} s"


@scenario(
    "exit/hung-request", STARTED, "slow",
    promise="The process is gone within the grace period although a request does not end.",
    why="Otherwise the orchestrator kills it, and no on_shutdown function runs.",
)  # fmt: skip
def hung_request(trial: Trial) -> str:
    trial.begin("slow", trial.grace + 60)
    trial.stop()
    code = trial.exit()
    return f"exit code {code} after {trial.subject.gone_at - trial.subject.signalled_at:.1f} s"


@scenario(
    "exit/second-signal", BEYOND, "slow",
    promise="A second signal ends the process at once.",
    why="An operator who presses Ctrl-C twice, or a supervisor that repeats the signal, means it.",
)  # fmt: skip
def second_signal(trial: Trial) -> str:
    if trial.grace < 10:
        raise NotCheckedError("with a grace period under 10 s its end cannot be told from the second signal")
    trial.begin("slow", trial.grace + 60)
    trial.stop()
    trial.settle()
    if trial.subject.gone.is_set():
        return "gone at the first"
    trial.stop()
    code = trial.subject.wait_gone(trial.grace / 2)
    if code is None:
        raise BrokenError(f"still running {trial.grace / 2:.0f} s after the second signal")
    return f"exit code {code}"


@scenario(
    "exit/during-start", STARTED,
    promise="A process that is stopped while it starts is gone within the grace period.",
    why="Deploys are rolled back at any moment; a signal that is lost then is a hung deploy.",
)  # fmt: skip
def during_start(trial: Trial) -> str:
    trial.stop()
    code = trial.exit()
    return f"exit code {code}"


@scenario(
    "exit/address-free", STARTED, "fast",
    promise="The address is free when the process has gone.",
    why="The next process must not find the port taken.",
)  # fmt: skip
def address_free(trial: Trial) -> str:
    trial.stop()
    trial.exit()
    address = trial.subject.address
    if not is_refused(address, trial.subject.patience):
        raise BrokenError("something still listens after the exit")
    with socket.create_server(address):
        return "free"


@scenario(
    "exit/no-process-left", STARTED, "fast",
    promise="No process that the command has started is left after its exit.",
    why="An orphan keeps memory, locks and connections until the machine restarts.",
)  # fmt: skip
def no_process_left(trial: Trial) -> str:
    trial.stop()
    trial.exit()
    if left := trial.subject.children():
        raise BrokenError(f"{len(left)} still running: {', '.join(map(str, left))}")
    return "none"


SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGQUIT": signal.SIGQUIT, "SIGHUP": signal.SIGHUP}
