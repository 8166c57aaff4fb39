"""The servers that can carry an application: how each of them serves and how it stops.

A server file offers the coordinator a few verbs (:class:`flask_lifecycle._parties.Server`) and owns all that is
peculiar to its server. The coordinator knows no server, a server knows no phase.
"""

from __future__ import annotations

import importlib
import importlib.util
import socket
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._parties import Server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Runner(Server, Protocol):
    """A server of our own: bound to its addresses when it is made, serving until it is stopped."""

    def addresses(self) -> list[str]:
        """Where it listens, as a user would type it."""

    def listeners(self) -> Sequence[socket.socket]:
        """Its listening sockets, in the order of the addresses."""

    def hold_back(self) -> None:
        """Accept nobody until :meth:`take_over`. To be called before :meth:`serve`."""

    def take_over(self, ours: Collection[socket.socket]) -> None:
        """Accept after having been held back; of the sockets that were given, these are ours to close at the end."""

    def hand_over(self) -> None:
        """Accept nobody any more and leave the listeners to another process, with all that waits in them."""

    def serve(self) -> None:
        """Serve in the calling thread until :meth:`stop`. Blocks."""

    def close(self) -> None:
        """Let go of the listeners without ever having served; held back, of our copies alone."""


# The server, the module of its runner, and the package it needs with the extra that brings it.
RUNNERS = {
    "waitress": (".waitress", "waitress", "waitress"),
    "werkzeug": (".werkzeug", "werkzeug", None),
    "cheroot": (".cheroot", "cheroot", "cheroot"),
    "gevent": (".gevent", "gevent", "gevent"),
}


def create(
    server: str,
    app: WSGIApplication,
    host: str | None,
    port: int | None,
    lane: Callable[[str], str | None],
    options: dict[str, Any],
) -> Runner:
    """Make the runner of a server by its name, bound and listening.

    :param lane: names the lane of a request path that must never queue behind work; ``None`` for all else.
    :param options: what else the server takes, by its own names; and ``reuse_port``, to listen beside others.
    :raises ValueError: there is no such server, or it does not know an option.
    :raises RuntimeError: the package is not installed.
    :raises OSError: an address cannot be listened on.
    """
    if server not in RUNNERS:
        import difflib  # for this sentence alone

        near = difflib.get_close_matches(str(server), RUNNERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"There is no server '{server}'; did you mean '{near}'? One can be run by: {', '.join(RUNNERS)}."
        )
    module, package, extra = RUNNERS[server]
    if importlib.util.find_spec(package) is None:
        raise RuntimeError(
            f"The server '{server}' is not installed; install it with: pip install 'flask-lifecycle[{extra}]'"
        )
    make = importlib.import_module(module, __name__).create
    if not options.get("reuse_port"):
        runner: Runner = make(app, host, port, lane, {name: options[name] for name in options if name != "reuse_port"})
        return runner
    from . import _reuseport

    ours = _reuseport.listen(host, port, options)
    rest = {name: options[name] for name in options if name not in ("reuse_port", "listen")}
    runner = make(app, None, None, lane, {**rest, "sockets": ours})
    runner.hold_back()
    runner.take_over(ours)
    return runner
