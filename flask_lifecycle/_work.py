"""Work that is not a request: tokens, which a drain waits for as it waits for requests.

A token is live from when it is made until :meth:`Work.done`, whoever calls it and however often. They are kept as the
requests in flight are (``_tally.py``): making and ending one takes no lock.

A process that does such work is one that has something to drain, also where it serves nothing: the ledger remembers
that there has been a token (:attr:`WorkLedger.used`), and a signal then begins a shutdown in place of ending the
process in the middle of a job. A decorated function is no work until it is called.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ._callbacks import name_of
from ._record import NamedTuple
from ._stacks import Threads
from ._tally import Tally

F = TypeVar("F", bound=Callable[..., Any])

# Of what a token says about itself, so much goes to a log.
_LONGEST = 200


class WorkInfo(NamedTuple):
    """One piece of work that is under way, or was when it was abandoned.

    ``age`` is in seconds, ``thread`` the name of the thread that began it (empty if that has ended), ``info`` what it
    was begun with, ``stack`` that thread's stack where it was asked for.
    """

    name: str
    age: float
    thread: str = ""
    info: Mapping[str, Any] = {}
    stack: str = ""

    def __str__(self) -> str:
        return f"{describe(self.name, self.info)} after {self.age:.1f} s"


def describe(name: str, info: Mapping[str, Any]) -> str:
    """A token in one line of a log: what it holds may come from outside."""
    said = ", ".join(f"{key if key.isidentifier() else _repr(key)}={_repr(value)}" for key, value in info.items())
    return f"work {_repr(name)}{f' ({said})' if said else ''}"


def _repr(value: Any) -> str:
    try:
        text = ascii(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class WorkLedger(Tally):
    """The tokens of one ``Lifecycle``."""

    def reset(self) -> None:
        super().reset()
        self.used = False  # whether any work was done in this process

    @property
    def working(self) -> bool:
        """Whether this process does such work, now or between two pieces of it."""
        return self.used or bool(self.active)

    def tokens(self, stacks: bool = False) -> tuple[WorkInfo, ...]:
        """A snapshot of what is under way, oldest first."""
        now, threads = self.clock(), Threads(stacks)
        return tuple(
            WorkInfo(
                token.name,
                now - token.started,
                threads.name(ident),
                dict(token.info),  # as it is now: who does the work may write its progress there
                threads.stack(ident) if token.inside is not None else "",
            )
            for token in sorted(self.active.copy(), key=lambda token: token.started)
            # The system gives the number of a thread that has ended to the next one. Who has only made a token may have
            # handed it on, and does something else by now.
            for ident in [token.thread.ident if token.thread.is_alive() else None]
        )

    def done_by(self, thread: threading.Thread) -> bool:
        """Whether a thread is inside a piece of work, which cannot end before the thread goes on."""
        return any(token.inside is thread for token in self.active.copy())


class Work:
    """A piece of work that a shutdown waits for, from now until :meth:`done`.

    A context manager, or a decorator: then each call of the function is a piece of work. Any thread may use it. One
    that is entered when it is over begins again.
    """

    __slots__ = ("_ledger", "info", "inside", "name", "started", "thread")

    def __init__(self, ledger: WorkLedger, name: str, info: Mapping[str, Any]) -> None:
        self.name = name
        self.info = info
        self.started = ledger.clock()
        self.thread = threading.current_thread()
        self.inside: threading.Thread | None = None  # whose block or call it is, if it is one
        self._ledger = ledger
        ledger.active[self] = None

    @property
    def live(self) -> bool:
        """Whether it is still under way."""
        return self in self._ledger.active

    def done(self) -> None:
        """Say that it is over; twice is harmless."""
        self._ledger.used = True
        self._ledger.leave(self)

    def __enter__(self) -> Work:
        self.thread = self.inside = threading.current_thread()
        if self not in self._ledger.active:
            self.started = self._ledger.clock()
            self._ledger.active[self] = None
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.done()

    def __call__(self, function: F) -> F:
        """Make each call of a function a piece of work; this token itself ends."""
        self._ledger.leave(self)
        return carried(function, lambda: Work(self._ledger, self.name, self.info))

    def _carry(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        self.thread = self.inside = threading.current_thread()
        return function(*arguments, **keywords)


def carried(function: F, begin: Callable[[], Any]) -> F:
    """A function of the same kind, each call of which is inside a context manager; a generator's until its end.

    :raises TypeError: it is an async generator function, or cannot be called at all.
    """
    if not callable(function):
        raise TypeError(f"Work was to be made of {function!r}, which is not callable; decorate a function.")
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"The async generator '{name_of(function)}' cannot be decorated; use 'with lifecycle.work(...)' inside it."
        )
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):

        async def carry_coroutine(*arguments: Any, **keywords: Any) -> Any:
            with begin():
                return await function(*arguments, **keywords)

        return functools.wraps(function)(carry_coroutine)  # type: ignore[return-value]  # of the same kind
    if inspect.isgeneratorfunction(function):

        def carry_generator(*arguments: Any, **keywords: Any) -> Any:
            with begin():
                return (yield from function(*arguments, **keywords))

        return functools.wraps(function)(carry_generator)  # type: ignore[return-value]  # of the same kind

    def carry(*arguments: Any, **keywords: Any) -> Any:
        with begin():
            return function(*arguments, **keywords)

    return functools.wraps(function)(carry)  # type: ignore[return-value]  # of the same kind


def submit(ledger: WorkLedger, executor: Any, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Give a call to an executor, and count its future in until it is done, cancelled or failed.

    :raises TypeError: that is no executor.
    """
    if not callable(getattr(executor, "submit", None)) or isinstance(executor, type):
        raise TypeError(f"submit() was given {executor!r}; give it an executor such as a ThreadPoolExecutor first.")
    from concurrent.futures import ThreadPoolExecutor  # there already, where there is an executor

    token = Work(ledger, name_of(function), {})
    try:
        if isinstance(executor, ThreadPoolExecutor):  # what goes to another process must not take the token along
            future = executor.submit(token._carry, function, *arguments, **keywords)
        else:
            future = executor.submit(function, *arguments, **keywords)
        future.add_done_callback(lambda _future: token.done())
    except BaseException:
        token.done()
        raise
    return future
