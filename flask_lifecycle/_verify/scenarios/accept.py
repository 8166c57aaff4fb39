"""Connections that arrive at the moment of the stop."""

from __future__ import annotations

from ..client import LostError
from ..trial import BrokenError, Trial
from .catalogue import ALL, scenario


@scenario(
    "accept/queue", ALL, "fast",
    promise="Connections in the kernel's accept queue at the signal are answered.",
    why="The kernel completes handshakes while a server is busy; closing the listener resets these clients.",
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
    promise="Of many connections that arrive at once around the signal, each is answered or refused.",
    why="Clients that reconnect all together must find a server that answers, or one that is not there.",
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
