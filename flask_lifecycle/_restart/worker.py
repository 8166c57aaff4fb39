"""Restart in place, as a serving process sees it: ``flask lifecycle run --reload-on``.

Theory of operation
-------------------

A *supervisor* (``_restart/supervisor.py``) has the listening sockets and starts the process that serves; on a signal it
starts the next one with the same sockets. Each of them is a *restart worker*: a new interpreter, started by the same
command. It talks to the supervisor through its own channel: a pair of Unix sockets, with lines of JSON, and descriptors
where needed.

=============  =============================================================================================
to a worker    ``serve``: the listeners, and whether this worker is the first
               ``leave``: another worker serves now; stop accepting, and finish what you have
               ``closed``: you are the last, and the supervisor has closed its copies of the listeners
               ``signal``: the supervisor got a signal, which this worker may have got as well
to the         ``begun``: this worker receives messages
supervisor     ``probes``: its probe listener
               ``waiting``: why it is not ready yet
               ``ready``: it is ready, accepts from now on, and answers the probes
               ``stopping``: it stops for good
               ``notify``: a message for systemd, which only listens to the supervisor
=============  =============================================================================================

*The next worker.* It does not listen before it is ready: the start-up is over and readiness passes. Until then the
previous worker serves, probes included, and if the next one never becomes ready it has accepted nothing. Then both
accept for the moment between ``ready`` and ``leave``, so a process accepts at every moment. Two processes may see the
same waiting connection: one gets it, the other's accept finds nothing.

*A hand-over* is a shutdown without a delay, because clients notice nothing, and it leaves the listeners open with all
waiting connections. A probe that reaches the old worker on a kept connection gets the state of the service: ready.

*A full stop* begins in the worker itself: by a signal that the supervisor forwards, by ``shutdown()``, by an operator.
The worker reports it, and before it closes the listeners it waits until the supervisor has closed its copies: only the
last copy closes a listener, and connections in the queue of another copy would get no answer.

*Both at once.* The message that the supervisor receives first decides. If it is ``stopping``, the next worker, which
may have begun to accept, is stopped as well, and both empty the queue. If it is ``ready``, the previous worker gets
``leave`` as the answer to ``stopping``, and leaves the listeners open. So does a worker that was given up at the moment
when it became ready.

*The supervisor dies* (``kill -9``): the channel ends, and the worker stops for good. Otherwise a new supervisor would
find the address in use.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._core.log import logger
from .._core.server import Peers
from .._core.shutdown import StopRequest
from .._core.state import ENDING, State
from .._servers.sockets import close_in_children
from ..checks._health import READY

if TYPE_CHECKING:
    from .._core.process import Process

VARIABLE = "LIFECYCLE_HANDOVER"
_LOOK = 0.1  # seconds between two looks at whether the worker is ready
_MOST_DESCRIPTORS = 253  # SCM_MAX_FD


class Channel:
    """One end of the channel between the supervisor and a worker. Sending never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""
        self._descriptors: list[int] = []

    def send(self, word: str, text: str = "", descriptors: Sequence[int] = ()) -> None:
        """Send a message, if the other end still exists."""
        line = json.dumps([word, text, len(descriptors)]).encode() + b"\n"
        with contextlib.suppress(OSError):
            socket.send_fds(self.socket, [line], descriptors, socket.MSG_DONTWAIT)

    def receive(self) -> list[tuple[str, str, list[int]]] | None:
        """Wait for messages: words, texts and descriptors; ``None`` if the other end is gone."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self.socket, 65536, _MOST_DESCRIPTORS)
        except ConnectionResetError:  # it has exited without reading everything
            return None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = []
        for line in lines:
            word, text, count = json.loads(line)
            messages.append((word, text, self._descriptors[:count]))
            del self._descriptors[:count]
        return messages


class RestartWorker(Peers):
    """This process as one of the workers that serve one after the other.

    :param channel: to the supervisor, which sends the first message.
    """

    one_application = True  # the next process gets the listener of one

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        ((_word, text, descriptors),) = channel.receive() or [("", "", [])]
        place, ours, probes = text.split()
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        self.first = place == "first"
        self.probes = sockets.pop() if int(probes) else None
        self.listeners = sockets
        self._ours = sockets[: int(ours)]
        self._serving = self.first
        self._left = False
        self._answered = threading.Event()
        # The application is loaded while they are open, and the server closes its own in children only later.
        close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """The sockets that a forked child must close."""
        probes = [self.probes] if self.probes is not None else []
        return [*self.listeners, *probes, self._channel.socket]

    def attach(self, process: Process, application: Any, server: Any, log_addresses: Callable[[], None]) -> None:
        self._process, self._app, self._runner, self._log_addresses = process, application, server, log_addresses
        server.hold_back()
        if self.first:
            server.take_over(self._ours)
            log_addresses()
            if probes := self._probe_sockets():
                self._channel.send("probes", "", probes)
        self._channel.send("begun")
        for name, target in (("lifecycle-handover", self._await_states), ("lifecycle-supervisor", self._receive)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def notify(self, text: str) -> bool:
        """Send a message to systemd by the supervisor, which is the main process there."""
        self._channel.send("notify", text)
        return True

    def await_sole_owner(self, timeout: float) -> None:
        """Block until no other process has the listeners, or another worker continues with them."""
        if self._serving:
            self._answered.wait(timeout)

    # -- in the hand-over thread: from the start to the shutdown ---------------------------------------------------

    def _await_states(self) -> None:
        machine = self._app.machine
        reported = ""
        while why := self._not_ready():
            if why != reported:
                self._channel.send("waiting", why)
                reported = why
            if machine.wait_for(lambda state: state in ENDING, _LOOK):
                break
        else:
            self._take_over()
        machine.wait_for(lambda state: state in ENDING, None)
        if self._serving and not self._left:
            self._channel.send("stopping")

    def _not_ready(self) -> str:
        """Why this worker is not ready to serve; empty if it is."""
        machine = self._app.machine
        state = machine.state
        if state is State.NOT_READY and machine.cordon is not None:
            return ""  # an operator cordons the service, so the previous worker is cordoned too
        if state is not State.READY:
            return f"{state.name}: {machine.reason}"
        report = self._app.health.report(READY)
        if report.status != "fail":
            return ""
        failing = [f"check '{check.name}' fails" for check in report.checks if check.status == "fail"]
        return failing[0] if failing else report.reason

    def _take_over(self) -> None:
        descriptors: list[int] = []
        if not self.first:
            self._serving = True
            self._runner.take_over(self._ours)
            if self._app.probe_listener is not None:
                self._app.probe_listener.start()
            self._log_addresses()
            descriptors = self._probe_sockets()
        self._channel.send("ready", "", descriptors)

    def _probe_sockets(self) -> list[int]:
        """The descriptor of the probe listener, if there is one."""
        listener = self._app.probe_listener
        return [] if listener is None or listener.socket is None else [listener.socket.fileno()]

    # -- in the supervisor thread: its messages ---------------------------------------------------------------------

    def _receive(self) -> None:
        while (messages := self._channel.receive()) is not None:
            for word, text, _descriptors in messages:
                if word == "signal":
                    self._process.forwarded(int(text))
                    continue
                if word == "leave":
                    self._leave(text)
                self._answered.set()
        self._answered.set()
        logger.error("the supervisor is gone", extra={"lifecycle_pid": os.getppid()})
        self._process.stop("the supervisor is gone", wait=False)

    def _leave(self, successor: str) -> None:
        self._left = True
        self._runner.hand_over()
        if self._app.probe_listener is not None:
            self._app.probe_listener.stop()
        self._process.begin(StopRequest(f"process {successor} serves now", delay=False, successor=True))


def restart_worker() -> RestartWorker | None:
    """This process as a restart worker, if a supervisor has started it."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return None
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    return RestartWorker(Channel(sock))
