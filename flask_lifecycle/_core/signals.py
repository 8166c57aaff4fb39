"""POSIX signals: save the previous handlers, install ours, pass signals on, restore.

Theory of operation
-------------------

A handler may interrupt the main thread anywhere, even inside logging or threading code (``Event.set`` in a handler
deadlocks if the signal arrives inside ``Event``). So it only writes the signal's number to a non-blocking pipe, and a
daemon thread does the rest. (A process has only one ``signal.set_wakeup_fd``, which asyncio and gunicorn use.)

Only the main thread can install and restore handlers, or pass a signal to the previous handler. To run a function
there, the relay stores it as an *errand* and sends the main thread the signal once more; the handler then runs the
errand instead of writing to the pipe. No thread holds a lock of ours then, and the errand only restores the handlers
and raises the signal again.

Interleavings: a signal from outside may arrive after the errand was stored and before the relay's own signal. It runs
the errand, which is harmless, and the relay's own signal goes to the previous handler. The kernel merges equal pending
signals; the errand runs only once, because the handler removes it first.

A signal that arrives after the main thread has released the interpreter's lock, and before its system call, does not
interrupt that call. So a signal for an errand is repeated until the handler has taken it, but only for some seconds,
because the call may be uninterruptible. Interleavings: the check and the repeated signal come before the handler takes
the errand, and the two signals are one; or the errand is gone, and no signal follows, which would go to the handler
before ours, or kill the process. A lock makes the check and the signal one step. The main thread holds it only while
the handler takes the errand; it is reentrant because a signal may interrupt that.

Werkzeug's reloader replaces our handlers, and then no signal of ours reaches the main thread. For this case we also
handle SIGURG, which is ignored without a handler, and which no other library uses here. Its errands are separate: the
process continues after them, so a signal from outside must not run the other kind.

After a fork the child restores the previous handlers and closes the pipe, which belongs to the parent: a byte from a
child's handler would stop the parent. A child installs our handlers when it begins to serve. The thread that detects
this needs SIGURG to reach the main thread, so every child handles SIGURG.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from .fork import renew_in_children
from .log import logger

# Seconds to wait for an errand before sending its signal again, and seconds until we give up.
_AGAIN = 0.01
_PATIENCE = 5.0

Handler = Any  # what signal.getsignal gives: a callable, SIG_DFL, SIG_IGN or None


def in_main_thread() -> bool:
    """Whether this is the main thread, which alone may install handlers."""
    return threading.current_thread() is threading.main_thread()


class SignalRelay:
    """Passes signals from their handlers to a thread. A process has one relay.

    :param receive: called with each signal's number, in the relay's thread.
    """

    def __init__(self, receive: Callable[[int], None]) -> None:
        self._receive = receive
        self._forget()
        renew_in_children(self._after_fork)

    def _forget(self) -> None:
        self._saved: dict[int, Handler] = {}
        self._pipe: tuple[int, int] | None = None
        self._errand: Callable[[], None] | None = None
        self._taking = threading.RLock()  # held while the errand is taken, and while its signal is repeated
        self._has_sigurg = False  # whether SIGURG leads to the main thread
        self._sigurg_errand: Callable[[], None] | None = None

    @property
    def installed(self) -> frozenset[int]:
        """The signals that we handle now."""
        return frozenset(self._saved)

    def previous(self, signum: int) -> Handler:
        """The handler that a signal had before ours."""
        return self._saved.get(signum, signal.SIG_DFL)

    def install(self, signals: Iterable[int]) -> dict[int, Handler]:
        """Install our handler for signals; return the previous ones. Idempotent; call it in the main thread only."""
        if self._pipe is None:
            read, write = os.pipe()
            os.set_blocking(write, False)
            self._pipe = (read, write)
            threading.Thread(target=self._watch, args=(read,), name="lifecycle-signals", daemon=True).start()
        before = {}
        for signum in signals:
            before[signum] = signal.getsignal(signum)
            if before[signum] != self._handle:
                # None means a handler of C code, which Python cannot restore.
                self._saved[signum] = before[signum] if before[signum] is not None else signal.SIG_DFL
                signal.signal(signum, self._handle)
        return before

    def take_sigurg(self) -> None:
        """Handle SIGURG, if it has no handler, to reach the main thread. Call it in the main thread only."""
        if signal.getsignal(signal.SIGURG) == signal.SIG_DFL:
            signal.signal(signal.SIGURG, self._handle_sigurg)
            self._has_sigurg = True

    def replace(self, signals: Iterable[int]) -> None:
        """Install our handler without keeping the previous ones. Call it in the main thread only."""
        self.install(signals)
        self._saved.update(dict.fromkeys(signals, signal.SIG_DFL))

    def restore(self, handlers: dict[int, Handler] | None = None) -> None:
        """Restore the handlers that ``install`` returned; by default all. Call it in the main thread only."""
        for signum, handler in (self._saved.copy() if handlers is None else handlers).items():
            if handler == self._handle:
                continue
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._saved.pop(signum, None)
        if not self._saved and self._has_sigurg:
            self._has_sigurg = False
            if signal.getsignal(signal.SIGURG) == self._handle_sigurg:
                signal.signal(signal.SIGURG, signal.SIG_DFL)
        if not self._saved and self._pipe is not None:
            # The thread closes its end of the pipe when it reads the zero; our handlers do not write any more.
            _read, write = self._pipe
            self._pipe = None
            os.write(write, b"\0")
            os.close(write)

    def run_in_main(self, errand: Callable[[], None]) -> bool:
        """Interrupt the main thread and run a function there; ``False`` if we handle no signal.

        Blocks until the main thread has begun it, but only for some seconds.
        """
        signum = next(iter(self._saved), None)
        if signum is None:
            return False
        self._errand = errand
        if in_main_thread() or _has_greenlets():
            interrupt_main(signum)
        else:
            self._interrupt_while(signum, lambda: self._errand is errand)
        return True

    def run_in_main_by_sigurg(self, errand: Callable[[], None]) -> None:
        """As :meth:`run_in_main`, but works even if other code has replaced our handlers."""
        if in_main_thread() or _has_greenlets():
            errand()
            return
        self._sigurg_errand = errand
        self._interrupt_while(signal.SIGURG, lambda: self._has_sigurg and self._sigurg_errand is errand)

    def _interrupt_while(self, signum: int, waits: Callable[[], bool]) -> None:
        """Send a signal to the main thread again and again while an errand waits, but only for some seconds."""
        pause, until = threading.Event(), time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            with self._taking:
                if not waits():
                    return
                interrupt_main(signum)
            pause.wait(_AGAIN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        with self._taking:
            errand, self._errand = self._errand, None
        if errand is not None:
            errand()
        else:
            self.pass_on(signum)

    def pass_on(self, signum: int) -> None:
        """Pass a signal on to the thread. Handlers call this."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):  # the thread has 64 KiB of signals to read already
                os.write(self._pipe[1], bytes([signum]))

    def _handle_sigurg(self, signum: int, frame: FrameType | None) -> None:
        errand, self._sigurg_errand = self._sigurg_errand, None
        if errand is not None:
            errand()
        else:
            self._handle(signum, frame)

    def _watch(self, read: int) -> None:
        poll = select.poll()
        poll.register(read, select.POLLIN)
        while True:
            poll.poll()  # a blocking read would stop all greenlets, if threads are greenlets
            data = os.read(read, 1)
            if data in (b"", b"\0"):
                os.close(read)
                return
            try:
                self._receive(data[0])
            except Exception:
                logger.exception("signal %d could not be handled", data[0], extra={"lifecycle_signum": data[0]})

    def _after_fork(self) -> None:
        for signum, handler in self._saved.items():
            if signal.getsignal(signum) == self._handle:
                signal.signal(signum, handler)
        if self._has_sigurg and signal.getsignal(signal.SIGURG) == self._handle_sigurg:
            signal.signal(signal.SIGURG, signal.SIG_DFL)
        for descriptor in self._pipe or ():
            os.close(descriptor)
        self._forget()


def _has_greenlets() -> bool:
    """Whether gevent has patched ``threading``: all threads are greenlets of the main thread."""
    return threading.get_ident.__module__ != "_thread"


def interrupt_main(signum: int) -> None:
    """Send a signal to the main thread, where its handler runs.

    A signal sent to the process may go to any thread, and then does not interrupt a wait of the main thread.
    """
    if not _has_greenlets():
        signal.pthread_kill(threading.main_thread().ident or 0, signum)
    else:  # greenlets have no thread numbers of the system
        from gevent import get_hub

        # In the hub, which passes an exception of the handler to the main greenlet; here it would end this greenlet.
        get_hub().loop.run_callback(signal.raise_signal, signum)


def die_by(signum: int) -> None:
    """End this process by a signal with its default handler. Call it in the main thread only.

    Returns only if the kernel ignores the signal: a signal without a handler does not end PID 1 of a namespace.
    """
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
