"""A restart in place, as the serving processes see it: ``flask lifecycle run --reload-on``.

Theory of operation
-------------------

A *supervisor* (``_supervisor.py``) has the listening sockets and starts the process that serves; on a signal it starts
the next one with the same sockets. Each such process is a *generation*, a fresh interpreter that was started by the
same command, and speaks to the supervisor through a channel of its own: a pair of Unix sockets, lines of JSON, with
descriptors where there are some to be had.

=============  =============================================================================================
to a process   ``serve``: here are the listeners, and whether you are the first
               ``leave``: another process serves now; accept nobody any more, and finish what you have
               ``closed``: you are the last, and I have closed my copies of the listeners
               ``signal``: I have got one, which you may have got as well
to the         ``begun``: I hear what you say
supervisor     ``probes``: here is my probe listener
               ``waiting``: why I am not ready yet
               ``ready``: I am, I accept from now on, and I answer the probes
               ``stopping``: I stop for good
               ``notify``: tell systemd, which listens to nobody but you
=============  =============================================================================================

*The next one.* It holds its listeners back until it is ready: the start-up is over and readiness passes. So what comes
while it starts is served by the one before, probes included, and if it never gets there nothing was ever given to it.
Then both accept, for the moment that ``ready`` and ``leave`` take, and nobody finds the listeners without anybody who
accepts. Two processes may find the same connection waiting: one gets it, the other's accept finds nothing.

*A hand-over* is a stop without a delay, because nobody has to notice, and one that leaves the listeners, with all that
waits in them, as they are. Who asks the one that leaves, on a connection that was kept, whether the service is ready is
told the truth: it is.

*A full stop* begins in the process itself: by a signal that the supervisor passes on, by ``shutdown()``, by an
operator. It says so, and waits before it closes the listeners until the supervisor has closed its copies: a listener is
closed with its last copy, and what another copy keeps in the queue would be answered by nobody.

*Both at once.* Whichever the supervisor learns first decides. If that is ``stopping``, the next one, which may have
begun to accept, is stopped as well, and both empty the queue; if it is ``ready``, the one before gets ``leave`` in
answer to ``stopping``, and leaves the listeners. So does one that was given up at the moment when it became ready.

*The supervisor dies* (``kill -9``): the channel ends, and the process stops for good. Whoever starts the supervisor
anew would else find the address taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from . import _sockets
from ._state import ENDING, State, StateMachine, logger
from .checks._health import READY, Health

VARIABLE = "LIFECYCLE_HANDOVER"
# Seconds between two looks at what keeps a process from being ready.
_LOOK = 0.1
_MOST_DESCRIPTORS = 253  # SCM_MAX_FD


class Channel:
    """One end of what a supervisor and a process say to each other. Sending never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, word: str, text: str = "", descriptors: Sequence[int] = ()) -> None:
        """Say something, if anybody hears it."""
        line = json.dumps([word, text, len(descriptors)]).encode() + b"\n"
        with contextlib.suppress(OSError):
            socket.send_fds(self.socket, [line], descriptors, socket.MSG_DONTWAIT)

    def receive(self) -> list[tuple[str, str, list[int]]] | None:
        """What the other end has said: words, texts and descriptors; ``None`` when it has gone. Waits for it."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self.socket, 65536, _MOST_DESCRIPTORS)
        except ConnectionResetError:  # it has gone without having read everything
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

    def close(self) -> None:
        self.socket.close()


class Application(Protocol):
    """What is asked of the application that is served."""

    machine: StateMachine
    health: Health

    @property
    def probe_socket(self) -> socket.socket | None:
        """The listener of its probes."""

    def start_probe_listener(self) -> None:
        """Begin to answer."""

    def close_probe_listener(self) -> None:
        """Leave the probes to another process."""


class Runner(Protocol):
    """What is asked of the server; see ``servers``."""

    def hold_back(self) -> None: ...
    def take_over(self, ours: Collection[socket.socket]) -> None: ...
    def hand_over(self) -> None: ...


class Process(Protocol):
    """What is asked of the process."""

    def succeed(self, reason: str) -> None:
        """Stop because another process goes on with the listeners."""

    def passed_on(self, signum: int) -> None:
        """The supervisor has got a signal."""

    def shutdown(self, reason: str, wait: bool) -> Any: ...


class Generation:
    """This process's place in the row.

    :param channel: to the supervisor, who speaks first.
    """

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
        # The application is loaded with them open, and the server that sees to its own is made after that.
        _sockets.close_in_children(self)

    def sockets(self) -> list[socket.socket]:
        """Those that a forked child must not keep open."""
        probes = [self.probes] if self.probes is not None else []
        return [*self.listeners, *probes, self._channel.socket]

    def begin(self, process: Process, app: Application, runner: Runner, tell: Callable[[], None]) -> None:
        """Take one's place; to be called before the server's loop.

        :param tell: logs where the server listens.
        """
        self._process, self._app, self._runner, self._tell = process, app, runner, tell
        runner.hold_back()
        if self.first:
            runner.take_over(self._ours)
            tell()
            if app.probe_socket is not None:
                self._channel.send("probes", "", [app.probe_socket.fileno()])
        self._channel.send("begun")
        for name, target in (("lifecycle-handover", self._go_on), ("lifecycle-supervisor", self._listen)):
            threading.Thread(target=target, name=name, daemon=True).start()

    def notify(self, text: str) -> None:
        """Have something told to systemd, whose main process is the supervisor."""
        self._channel.send("notify", text)

    def await_sole_owner(self, timeout: float) -> None:
        """Block until nobody else has the listeners, or somebody else goes on with them."""
        if self._serving:
            self._answered.wait(timeout)

    # -- a thread of its own: from the start to the stop ------------------------------------------------------------

    def _go_on(self) -> None:
        machine = self._app.machine
        said = ""
        while why := self._obstacle():
            if why != said:
                self._channel.send("waiting", why)
                said = why
            if machine.wait_for(lambda state: state in ENDING, _LOOK):
                break
        else:
            self._take_over()
        machine.wait_for(lambda state: state in ENDING, None)
        if self._serving and not self._left:
            self._channel.send("stopping")

    def _obstacle(self) -> str:
        """Why this process is not ready to serve; nothing if it is."""
        machine = self._app.machine
        state = machine.state
        if state is State.NOT_READY and machine.cordon is not None:
            return ""  # by an operator, who means the service, and so the one before as well
        if state is not State.READY:
            return f"{state.name}: {machine.reason}"
        report = self._app.health.report(READY)
        if report.status != "fail":
            return ""
        failing = [f"check '{check.name}' fails" for check in report.checks if check.status == "fail"]
        return failing[0] if failing else report.reason

    def _take_over(self) -> None:
        descriptors = []
        if not self.first:
            self._serving = True
            self._runner.take_over(self._ours)
            self._app.start_probe_listener()
            self._tell()
            descriptors = [self._app.probe_socket.fileno()] if self._app.probe_socket is not None else []
        self._channel.send("ready", "", descriptors)

    # -- a thread of its own: what the supervisor says --------------------------------------------------------------

    def _listen(self) -> None:
        while (messages := self._channel.receive()) is not None:
            for word, text, _descriptors in messages:
                if word == "signal":
                    self._process.passed_on(int(text))
                    continue
                if word == "leave":
                    self._leave(text)
                self._answered.set()
        self._answered.set()
        logger.error("the supervising process has gone", extra={"lifecycle_pid": os.getppid()})
        self._process.shutdown("the supervising process has gone", wait=False)

    def _leave(self, successor: str) -> None:
        self._left = True
        self._runner.hand_over()
        self._app.close_probe_listener()
        self._process.succeed(f"process {successor} serves now")


def place() -> Generation | None:
    """This process's place, if a supervisor has started it."""
    number = os.environ.pop(VARIABLE, "")
    if not number:
        return None
    sock = socket.socket(fileno=int(number))
    sock.set_inheritable(False)
    return Generation(Channel(sock))
