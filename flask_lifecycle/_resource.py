"""What is opened at the start and closed after the drain, registered in one piece.

Opening is an ``on_startup`` function and closing an ``on_shutdown`` function of the same name, so a resource that could
not be opened is not closed, and those that were are closed in reverse order.

One that was given up, because opening it took longer than its timeout, may be open after all some time later. If it is
by the time of its turn in the shutdown, it is closed then; if it is later, whoever opens it closes it. The shutdown
writes that its turn is over and then looks whether it is open; the opening writes that it is open and then looks
whether the turn is over. So at least one of them sees both, and ``list.pop`` gives it to one of them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ._callbacks import name_of


class Resource:
    """A resource by its registration; :attr:`value` is what it is while it is open.

    It is opened and closed in two threads, neither of which is one that serves requests.
    """

    def __init__(self, function: Any, name: str | None) -> None:
        self.name = name or name_of(function)
        self._make = _maker(function, self.name)
        self._open: list[tuple[AbstractContextManager[Any], Any]] = []
        self._over = False  # the shutdown has come to it

    @property
    def value(self) -> Any:
        """What was yielded, or returned by ``__enter__``. Any thread may ask.

        :raises RuntimeError: it is not open: the start-up has not come to it yet, or the shutdown has.
        """
        for _manager, value in self._open:
            return value
        raise RuntimeError(f"The resource '{self.name}' is not open; it is between the start-up and the drain's end.")

    def open(self) -> None:
        """Open it; the start-up does."""
        manager = self._make()
        if not hasattr(type(manager), "__enter__"):
            raise TypeError(
                f"The resource '{self.name}' gave {manager!r}, which is no context manager; yield once, or return one."
            )
        self._open.append((manager, manager.__enter__()))
        if self._over:
            self.close()

    def opened_late(self) -> bool:
        """Whether it is open although the start-up has given it up; from now on it closes itself if it opens later."""
        self._over = True
        return bool(self._open)

    def close(self) -> None:
        """Close it; the shutdown does."""
        try:
            manager, _value = self._open.pop()
        except IndexError:
            return
        manager.__exit__(None, None, None)


def _maker(function: Any, name: str) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the context manager that is opened.

    :raises TypeError: this is nothing that could make one.
    """
    if inspect.isgeneratorfunction(function):
        return contextlib.contextmanager(function)
    if hasattr(type(function), "__enter__"):
        return lambda: function  # it has what a context manager has
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"The resource '{name}' is {function!r}; register a generator function that yields once, a context manager,"
            " or a function that returns one."
        )
    return function  # type: ignore[no-any-return]  # called when it is opened, and looked at then
