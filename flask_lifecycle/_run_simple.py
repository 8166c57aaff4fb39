"""``flask run``, ``app.run()`` and ``run_simple``: what a process has taken over there, and when.

``run_simple`` binds its listener, and with the reloader puts handlers of its own over ours, after ``init_app``. Nobody
tells when, so a thread looks for it: at one variable of the environment, until ``run_simple`` is there. Which part in a
stop the process then has, ``_reloader.py`` tells: that of who serves, or of a reloader's parent, who hands the stop on.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from . import _reloader
from ._report import signal_name
from ._shutdown import Coordinator
from ._signals import SignalRelay

# How often is looked whether it serves: soon after the start, and later.
_SOON = 0.005
_AT_TIMES = 0.25


class Process(Protocol):
    """What is asked of the process."""

    relay: SignalRelay
    coordinator: Coordinator

    def members(self) -> Sequence[Any]:
        """The applications in it."""

    def stop(self, reason: str, signum: int | None = None, *, delay: bool) -> None:
        """Begin the shutdown."""


class RunSimple:
    """The part of ``run_simple`` in one process, as far as it is known by now.

    :param find: finds its server.
    :param leaves: called in the main thread when that is about to be closed; is told whether in a reloader's child.
    """

    def __init__(self, process: Process, find: Callable[[], Any | None], leaves: Callable[[bool], None]) -> None:
        self.server: Any | None = None  # found, and kept
        self.parent: _reloader.Parent | None = None  # in the reloader's parent
        self.reloads = False  # whether this is a reloader's child, to which its parent hands signals on as well
        self._process = process
        self._find_server = find
        self._leaves = leaves
        self._finder: threading.Thread | None = None
        self._awaited: int | None = None  # a signal that came while a reloader's child was about to serve

    def look_out(self) -> None:
        """Have a thread look for it, unless one does. For the main thread only."""
        if self._finder is None or not self._finder.is_alive():
            self._process.relay.open_way()
            self._finder = threading.Thread(target=self._find, name="lifecycle-finder", daemon=True)
            self._finder.start()

    def await_start(self) -> None:
        """Where each request has a process of its own, let none be forked before the start-up is over.

        It would start for itself.
        """
        if self._finder is None or not _reloader.forks_to_answer() or not _reloader.role():
            return
        pause = threading.Event()
        while not self._process.coordinator.begun:
            served = all(member.served_since is not None for member in self._process.members())
            if served and not self._finder.is_alive():
                return
            pause.wait(_SOON)

    def answers(self) -> bool:
        """Whether the calling thread has just been forked to answer one request."""
        return self.server is not None and _reloader.forks_to_answer()

    def signals(self) -> set[int]:
        """Those that stop an application here."""
        given = [member.settings.signals for member in self._process.members()]
        ours = (signal.SIGTERM, signal.SIGINT)
        return {signum for signals in given for signum in (ours if signals is None else signals)}

    def keeps(self, signum: int) -> bool:
        """Whether a signal is kept until this process serves: a reloader's child that will be the one to answer what
        waits in the listener's queue.
        """
        if self.server is not None or os.environ.get("WERKZEUG_RUN_MAIN") is None:
            return False
        if self._process.coordinator.owned or not _reloader.child_begins():
            return False
        self._awaited = signum
        return True

    def _find(self) -> None:
        """Wait until it serves, and take over what is to be taken over there."""
        pause, seconds = threading.Event(), _SOON
        relay, coordinator = self._process.relay, self._process.coordinator
        while relay.installed and not (coordinator.owned or coordinator.begun):
            # It is run_simple that sets it; a look at the environment is all that anybody else pays.
            if os.environ.get("WERKZEUG_SERVER_FD") is None or not self._meet():
                seconds = min(seconds * 1.2, _AT_TIMES)
            elif self.server is not None or self.parent is not None:
                return
            else:
                seconds = _SOON
            pause.wait(seconds)

    def _meet(self) -> bool:
        """Take over what is to be taken over; ``False`` if it is not to be expected soon."""
        role = _reloader.role()
        if not role:
            return _reloader.child_begins()
        relay, wanted = self._process.relay, self.signals()
        if role != _reloader.ALONE:
            if not _reloader.has_replaced(signal.SIGTERM):
                return True
        elif signal.getsignal(signal.SIGINT) != signal.default_int_handler:
            wanted = set()  # the program has plans of its own with Ctrl-C
        else:
            wanted &= {signal.SIGINT}
        if role == _reloader.PARENT:
            self.parent = _reloader.Parent(self._grace, lambda: relay.run_in_main(lambda: sys.exit(0)))
        elif not self._adopt(role == _reloader.CHILD):
            return False
        if wanted:
            relay.run_in_main_by_way(lambda: relay.replace(wanted))
        if self._awaited is not None:
            self._process.stop(signal_name(self._awaited), self._awaited, delay=True)
        return True

    def _adopt(self, reloads: bool) -> bool:
        server = self._find_server()
        if server is None:
            return False
        self.reloads = reloads
        server.watch_end(functools.partial(self._leaves, reloads))
        self.server = server  # before the start-up, which would search for it
        for member in self._process.members():
            threading.Thread(target=member.see_to_start, name="lifecycle-startup", daemon=True).start()
        return True

    def _grace(self) -> float:
        return min((member.settings.grace_period for member in self._process.members()), default=0.0)
