"""POSIX signals: save what was there, install ours, hand over, restore.

Theory of operation
-------------------

A handler may interrupt the main thread anywhere, also inside the logging or threading code that it would like to
use, so it does one thing: it writes the signal's number into a non-blocking pipe. A daemon thread reads the pipe and
does the rest. (``Event.set`` in a handler deadlocks when the signal lands inside ``Event``; the wake-up descriptor of
``signal.set_wakeup_fd`` is one a process, and asyncio and gunicorn own it.)

Handlers can be installed and restored by the main thread only, and a signal can be given back to whoever had it only
from there as well. The relay reaches the main thread in the one way there is: it leaves an *errand* and sends the
process's main thread the signal once more; the handler, finding an errand, runs it in place of writing the byte.
That errand is the last thing that ever happens through the handler, nobody else holds a lock of ours then, and it
does no more than restore and re-raise.

Interleavings: a signal from outside may come between the errand's being left and its being fetched; then it fetches
the errand itself, which is as well, and the relay's own signal finds the handler gone and goes to whoever had it. The
kernel merges equal pending signals, so the errand runs once: it is taken out of its variable before it runs.

Werkzeug's reloader puts its own handler in the place of ours, and then no signal of ours leads to the main thread. For
that there is one more, SIGURG, which is ignored where nobody has a handler for it, and which nobody else has here. Its
errands are its own: the process goes on after them, so a signal that came from outside must not be taken for one. It
comes to the receiver as any other if there is no errand.

After a fork the child gets back the handlers that were there before ours, and knows nothing of the pipe, which
belongs to the parent: a byte from a child's handler would stop the parent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from ._state import logger

# How long an errand in the main thread is waited for before the signal is sent once more.
_AGAIN = 0.01

Handler = Any  # what signal.getsignal gives: a callable, SIG_DFL, SIG_IGN or None


def in_main_thread() -> bool:
    """Whether the caller may install handlers."""
    return threading.current_thread() is threading.main_thread()


class SignalRelay:
    """Carries signals from their handlers to a thread. One a process.

    :param receive: called with each signal's number, in the relay's thread.
    """

    def __init__(self, receive: Callable[[int], None]) -> None:
        self._receive = receive
        self._forget()
        os.register_at_fork(after_in_child=self._after_fork)

    def _forget(self) -> None:
        self._saved: dict[int, Handler] = {}
        self._pipe: tuple[int, int] | None = None
        self._errand: Callable[[], None] | None = None
        self._has_way = False  # whether SIGURG leads to the main thread
        self._way_errand: Callable[[], None] | None = None

    @property
    def installed(self) -> frozenset[int]:
        """The signals that come here now."""
        return frozenset(self._saved)

    def previous(self, signum: int) -> Handler:
        """Who had the signal before us."""
        return self._saved.get(signum, signal.SIG_DFL)

    def install(self, signals: Iterable[int]) -> dict[int, Handler]:
        """Take over signals; return what they were handled by. For the main thread only; twice is harmless."""
        if self._pipe is None:
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._pipe = (read, write)
            threading.Thread(target=self._watch, args=(read,), name="lifecycle-signals", daemon=True).start()
        before = {}
        for signum in signals:
            before[signum] = signal.getsignal(signum)
            if before[signum] != self._handle:
                # None: installed by C code, which Python can neither name nor give back.
                self._saved[signum] = before[signum] if before[signum] is not None else signal.SIG_DFL
                signal.signal(signum, self._handle)
        return before

    def open_way(self) -> None:
        """Take SIGURG, if nobody has it, as a way to the main thread that nobody blocks. For the main thread only."""
        if signal.getsignal(signal.SIGURG) == signal.SIG_DFL:
            signal.signal(signal.SIGURG, self._handle_way)
            self._has_way = True

    def replace(self, signals: Iterable[int]) -> None:
        """Take over signals for good: whoever had them gets none of them back. For the main thread only."""
        self.install(signals)
        self._saved.update(dict.fromkeys(signals, signal.SIG_DFL))

    def restore(self, handlers: dict[int, Handler] | None = None) -> None:
        """Give back what was there: what ``install`` returned, or all that is ours. For the main thread only."""
        for signum, handler in (self._saved.copy() if handlers is None else handlers).items():
            if handler == self._handle:
                continue
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._saved.pop(signum, None)
        if not self._saved and self._has_way:
            self._has_way = False
            if signal.getsignal(signal.SIGURG) == self._handle_way:
                signal.signal(signal.SIGURG, signal.SIG_DFL)
        if not self._saved and self._pipe is not None:
            # The watcher closes its end when it has read the zero; no handler of ours writes any more.
            _read, write = self._pipe
            self._pipe = None
            os.write(write, b"\0")
            os.close(write)

    def run_in_main(self, errand: Callable[[], None]) -> bool:
        """Run a function in the main thread, interrupting what it does; ``False`` if no signal of ours is installed."""
        signum = next(iter(self._saved), None)
        if signum is None:
            return False
        self._errand = errand
        interrupt_main(signum)
        return True

    def run_in_main_by_way(self, errand: Callable[[], None]) -> None:
        """As :meth:`run_in_main`, also where all signals of ours have been taken from us. Blocks until it has run.

        A signal that comes when the main thread has given up the interpreter's lock, but is not in its system call
        yet, does not end that call: so it is sent until the errand has been fetched.
        """
        self._way_errand = errand
        pause = threading.Event()
        while self._has_way and self._way_errand is errand:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)
            pause.wait(_AGAIN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        errand, self._errand = self._errand, None
        if errand is not None:
            errand()
        else:
            self.pass_on(signum)

    def pass_on(self, signum: int) -> None:
        """Carry a signal to the thread; for a handler."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):  # 64 KiB that nobody has read: one more tells nothing new
                os.write(self._pipe[1], bytes([signum]))

    def _handle_way(self, signum: int, frame: FrameType | None) -> None:
        errand, self._way_errand = self._way_errand, None
        if errand is not None:
            errand()
        else:
            self._handle(signum, frame)

    def _watch(self, read: int) -> None:
        poll = select.poll()
        poll.register(read, select.POLLIN)
        while True:
            poll.poll()  # and not the read alone, which would stop all greenlets where threads are such
            data = os.read(read, 1)
            if data in (b"", b"\0"):
                os.close(read)
                return
            try:
                self._receive(data[0])
            except Exception:
                logger.exception("signal %d could not be handled", data[0], extra={"lifecycle_signum": data[0]})

    def _after_fork(self) -> None:
        if self._pipe is None:
            return
        for signum, handler in self._saved.items():
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, handler)
        if self._has_way and signal.getsignal(signal.SIGURG) == self._handle_way:
            signal.signal(signal.SIGURG, signal.SIG_DFL)
        for descriptor in self._pipe:
            os.close(descriptor)
        self._forget()


def interrupt_main(signum: int) -> None:
    """Send the main thread a signal. Any thread may take what is sent to the process, and then nothing ends a wait of
    the main one, where the handler runs.
    """
    if threading.get_ident.__module__ == "_thread":
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:  # greenlets: all of them are in the main thread, and their numbers are none of the system's
        from gevent import get_hub

        # In the hub, which raises in the main greenlet what the handler raises; here it would end this one alone.
        get_hub().loop.run_callback(signal.raise_signal, signum)


def die_by(signum: int) -> None:
    """End this process by a signal, as if nobody had ever handled it. For the main thread only.

    Returns only where the kernel ignores it: PID 1 of a namespace is not ended by a signal that it does not handle.
    """
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
