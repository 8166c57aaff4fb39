"""Work items: work that is not a request, which a drain waits for as it waits for requests.

As for requests in flight (``tally.py``), beginning and ending one takes no lock.

A process with work items has something to drain, even if it serves nothing: the ledger remembers that there has been
one (:attr:`WorkLedger.used`), and a signal then begins a shutdown instead of ending the process in the middle of a job.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from .callbacks import name_of
from .stacks import Threads
from .tally import Tally

F = TypeVar("F", bound=Callable[..., Any])

# At most this many characters of a value go to a log.
_LONGEST = 200


class WorkInfo(NamedTuple):
    """One work item that is under way, or was abandoned.

    :param name: the name that it was begun with.
    :param age: seconds since it began.
    :param thread: the name of the thread that began it; empty if that has ended.
    :param info: the keywords that it was begun with.
    :param stack: the stack of that thread, if you asked for it; otherwise empty.
    """

    name: str
    age: float
    thread: str = ""
    info: Mapping[str, Any] = MappingProxyType({})
    stack: str = ""

    def __str__(self) -> str:
        return f"{describe(self.name, self.info)} after {self.age:.1f} s"


def describe(name: str, info: Mapping[str, Any]) -> str:
    """A work item in one line of a log; its values may come from outside."""
    fields = ", ".join(f"{key if key.isidentifier() else _repr(key)}={_repr(value)}" for key, value in info.items())
    return f"work {_repr(name)}{f' ({fields})' if fields else ''}"


def _repr(value: Any) -> str:
    try:
        text = ascii(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class WorkLedger(Tally):
    """The work items of one ``Lifecycle``."""

    def reset(self) -> None:
        super().reset()
        self.used = False  # whether a work item has ended in this process

    @property
    def working(self) -> bool:
        """Whether this process has, or has had, work items."""
        return self.used or bool(self.active)

    def items(self, stacks: bool = False) -> tuple[WorkInfo, ...]:
        """The work items under way, oldest first."""
        now, threads = self.clock(), Threads(stacks)
        return tuple(
            WorkInfo(
                item.name,
                now - item.started,
                threads.name(ident),
                dict(item.info),  # a copy, because the work may write its progress there
                threads.stack(ident) if item.inside is not None else "",
            )
            for item in sorted(self.active.copy(), key=lambda item: item.started)
            # A thread's number is reused after its end. A thread that has made an item without entering it may have
            # passed it on, so its stack is not shown.
            for ident in [item.thread.ident if item.thread.is_alive() else None]
        )

    def done_by(self, thread: threading.Thread) -> bool:
        """Whether a thread is inside a work item, which cannot end while the thread blocks."""
        return any(item.inside is thread for item in self.active.copy())


class Work:
    """A work item: a shutdown waits for it, from now until :meth:`done`.

    It is a context manager, or a decorator that makes each call of a function a work item. Any thread may use it. An
    item that has ended begins again when it is entered.
    """

    __slots__ = ("_ledger", "info", "inside", "name", "started", "thread")

    def __init__(self, ledger: WorkLedger, name: str, info: Mapping[str, Any]) -> None:
        self.name = name
        self.info = info
        self.started = ledger.clock()
        self.thread = threading.current_thread()
        self.inside: threading.Thread | None = None  # the thread that has entered it
        self._ledger = ledger
        ledger.active[self] = None

    @property
    def live(self) -> bool:
        """Whether it is still under way."""
        return self in self._ledger.active

    def done(self) -> None:
        """End it. Idempotent."""
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
        """Make each call of a function a work item; this item itself ends."""
        self._ledger.leave(self)
        return wrapped(function, lambda: Work(self._ledger, self.name, self.info))

    def _call(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
        self.thread = self.inside = threading.current_thread()
        return function(*arguments, **keywords)


def wrapped(function: F, begin: Callable[[], Any]) -> F:
    """A function of the same kind, each call of which is inside a context manager; a generator's until its end.

    :raises TypeError: it is an async generator function, or cannot be called at all.
    """
    if not callable(function):
        raise TypeError(f"work() decorates functions, and {function!r} is not callable.")
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"The async generator '{name_of(function)}' cannot be decorated; use 'with lifecycle.work(...)' inside it."
        )

    def call(*arguments: Any, **keywords: Any) -> Any:
        with begin():
            return function(*arguments, **keywords)

    async def call_coroutine(*arguments: Any, **keywords: Any) -> Any:
        with begin():
            return await function(*arguments, **keywords)

    def call_generator(*arguments: Any, **keywords: Any) -> Any:
        with begin():
            return (yield from function(*arguments, **keywords))

    wrapper: Callable[..., Any] = call
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        wrapper = call_coroutine
    elif inspect.isgeneratorfunction(function):
        wrapper = call_generator
    return functools.wraps(function)(wrapper)  # type: ignore[return-value]  # of the same kind


def submit(ledger: WorkLedger, executor: Any, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Any:
    """Give a call to an executor; it is a work item until its future is done, cancelled or failed.

    :raises TypeError: that is no executor.
    """
    if not callable(getattr(executor, "submit", None)) or isinstance(executor, type):
        raise TypeError(f"submit() needs an executor, such as a ThreadPoolExecutor, not {executor!r}.")
    from concurrent.futures import ThreadPoolExecutor  # there already, where there is an executor

    item = Work(ledger, name_of(function), {})
    try:
        if isinstance(executor, ThreadPoolExecutor):  # a call for another process must not take the item along
            future = executor.submit(item._call, function, *arguments, **keywords)
        else:
            future = executor.submit(function, *arguments, **keywords)
        future.add_done_callback(lambda _future: item.done())
    except BaseException:
        item.done()
        raise
    return future
