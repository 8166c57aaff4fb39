"""Connections that arrive at the moment of the shutdown, and connections without a request."""

from __future__ import annotations

from ..client import LostError
from ..trial import ACCEPTED, ALL, BrokenError, Trial, check_storms, scenario


@scenario(
    "accept/queue", ALL, "fast",
    promise="Connections that are in the kernel's accept queue when the signal arrives are answered.",
    why="The kernel completes handshakes while a server is busy. Closing the listener resets these connections.",
)  # fmt: skip
def accept_queue(trial: Trial) -> str:
    with trial.subject.stopped():
        clients = [trial.connect() for _ in range(4)]  # the smallest default of a server's backlog is 5
        for client in clients:
            client.ask(trial.path("fast"))
        trial.stop()
    for client in clients:
        trial.expect(client, "fast")
    return f"{len(clients)} of {len(clients)} answered"


@scenario(
    "accept/flood", ALL, "fast",
    promise="Many connections arrive at once, just before and after the signal. Each is answered or refused.",
    why="Clients may reconnect all at once. Each needs an answer, or a refusal after which it can try another server.",
)  # fmt: skip
def accept_flood(trial: Trial) -> str:
    clients = []
    for number in range(200):
        if number == 100:
            trial.stop()
        if (client := trial.connect_unless_gone()) is not None:
            client.ask(trial.path("fast"))
            clients.append(client)
    answered = 0
    for client in clients:
        try:
            trial.expect(client, "fast")
            answered += 1
        except LostError:
            if not client.held_up:
                raise
    return f"{answered} answered, {200 - len(clients)} refused"


def _storm(trial: Trial, keep: bool) -> str:
    with trial.storm(clients=6, keep=keep) as storm:
        trial.stop()
        trial.exit()
    return f"{check_storms(storm)} answered, none lost"


@scenario(
    "accept/storm", ALL, "fast",
    promise="Clients that open a connection for each request, without a pause, lose none.",
    why="A load balancer without keep-alive does this during a deploy.",
)  # fmt: skip
def accept_storm(trial: Trial) -> str:
    return _storm(trial, keep=False)


@scenario(
    "accept/storm-kept", ALL, "fast",
    promise="Clients that send one request after another on keep-alive connections lose none.",
    why="Load balancers and connection pools do this during a deploy, and most cannot repeat a POST.",
)  # fmt: skip
def accept_storm_kept(trial: Trial) -> str:
    return _storm(trial, keep=True)


def _hold_connections(trial: Trial, count: int, *, asked: bool) -> str:
    clients = [trial.connect() for _ in range(count)]
    if asked:
        for client in clients:
            client.get(trial.path("fast"))
    trial.stop()
    trial.exit(trial.grace / 2)
    return f"gone after {trial.subject.lasted:.1f} s"


@scenario(
    "connections/idle", ACCEPTED, "fast",
    promise="An idle keep-alive connection does not use up the grace period.",
    why="Every load balancer keeps some, so each deploy would take as long as the grace period.",
)  # fmt: skip
def idle_connection(trial: Trial) -> str:
    return _hold_connections(trial, 1, asked=True)


@scenario(
    "connections/silent", ACCEPTED, "fast",
    promise="A connection that never sends anything does not use up the grace period.",
    why="Browsers and load balancers open connections in advance.",
)  # fmt: skip
def silent_connection(trial: Trial) -> str:
    return _hold_connections(trial, 1, asked=False)


@scenario(
    "connections/many-idle", ACCEPTED, "fast",
    promise="Fifty connections without a request do not use up the grace period.",
    why="A wait that is harmless for one connection adds up if the server waits for one after another.",
)  # fmt: skip
def many_idle(trial: Trial) -> str:
    return _hold_connections(trial, 50, asked=False)


@scenario(
    "connections/close", ACCEPTED, "slow",
    promise="A response that ends during the shutdown has Connection: close.",
    why="Otherwise the client sends its next request on a connection that is about to close.",
)  # fmt: skip
def says_close(trial: Trial) -> str:
    client = trial.begin("slow", 1.5)
    trial.stop()
    response = client.response()
    if response.status != 200 or not response.says_close:
        raise BrokenError(f"status {response.status}, Connection: {response.headers.get('connection', '(none)')}")
    return "Connection: close"
