"""Connections without a request."""

from __future__ import annotations

from ..trial import BrokenError, Trial
from .catalogue import ACCEPTED, scenario


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
    promise="A response that ends during the shutdown says Connection: close.",
    why="Otherwise the client sends its next request on a connection that is about to go.",
)  # fmt: skip
def says_close(trial: Trial) -> str:
    client = trial.begin("slow", 1.5)
    trial.stop()
    response = client.response()
    if response.status != 200 or not response.says_close:
        raise BrokenError(f"status {response.status}, Connection: {response.headers.get('connection', '(none)')}")
    return "Connection: close"
