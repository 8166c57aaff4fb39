"""Tasks of the start-up: an application is not ready until all of them have ended.

An ``on_startup`` function holds the requests too, because they need what it makes; a task holds readiness alone, and is
run by whoever has begun it, wherever that is. Nothing leads back to STARTING, so a task that comes when the start-up is
over is refused.

Interleavings: the last task ends while the start-up looks whether there is one. The start-up opens its gate and then
looks at the tasks; a task leaves and then has everybody who listens look at the gate. Each writes before it looks, so
at least one sees that both are done, and the state machine takes the event once. A task begins at the moment when the
start-up ends: ``close`` and ``begin`` take the same lock, so either the start-up sees the task, or the task is refused.

After a fork the child keeps the tasks of the thread that has forked, which goes on in it: one that was begun at import
and is to end in the worker holds the worker's readiness. Those that another thread has begun are lost: nobody is there
who would end them, and without what they make the child is not ready. They fail when the child's start-up is over,
unless that has begun one of the same name anew.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from ._callbacks import error_text
from ._hooks import HookRecord
from ._state import logger
from ._work import F, Work, WorkLedger, carried

ON_FAILURE = ("shutdown", "not_ready")


class StartupTasks(WorkLedger):
    """The start-up tasks of one ``Lifecycle``. Every method may be called from any thread, and none blocks."""

    def reset(self) -> None:
        this = threading.current_thread()
        kept = {task: None for task in self.active if task.thread is this}
        self._lost += [task for task in self.active if task not in kept]
        super().reset()
        self.active.update(kept)
        # Guards closed against begin. A signal handler, or a finalizer that the garbage collector calls, may end a task
        # in a thread that holds it.
        self._lock = threading.RLock()
        self.closed = False

    def __init__(self, records: list[HookRecord], clock: Callable[[], float] = time.monotonic) -> None:
        self.failures: list[StartupTask] = []
        self._lost: list[StartupTask] = []  # in a fork
        self.records = records  # which those that fail go to
        self._listeners: list[weakref.WeakMethod[Callable[[], object]]] = []
        super().__init__(clock)

    def begin(self, name: str, on_failure: str) -> StartupTask:
        """Begin a task.

        :raises RuntimeError: the start-up is over.
        """
        with self._lock:
            if self.closed:
                raise RuntimeError(
                    f"The startup task '{name}' begins when the start-up is over; begin it before, or use"
                    " set_not_ready() and set_ready()."
                )
            self._lost = [task for task in self._lost if task.name != name]
            return StartupTask(self, name, on_failure)

    def fail_lost(self) -> None:
        """Have those fail that a fork has separated from their threads."""
        lost, self._lost = self._lost, []
        for task in lost:
            self.active[task] = None
            task.fail(
                f"the thread '{task.thread.name}' that began it is not in this process, which was forked meanwhile;"
                " begin it in an on_startup function, or let it end before the fork"
            )

    def close(self) -> bool:
        """Whether all are over; if so there can be no more."""
        with self._lock:
            self.closed = self.closed or not self.active
            return self.closed

    def end(self, task: StartupTask, failure: HookRecord | None = None) -> bool:
        """Take a task out, once; say whether this was that once. A failure is known before the task is gone."""
        with self._lock:
            if task not in self.active:
                return False
            if failure is not None:
                self.failures.append(task)
                if task.on_failure == "shutdown":  # the other way is a choice, and no flaw of the stop
                    self.records.append(failure)
            self.leave(task)
            return True

    def listen(self, listener: Callable[[], object]) -> None:
        """Call a method, as long as its object lives, whenever a task has ended."""
        self._listeners.append(weakref.WeakMethod(listener))

    def ended(self) -> None:
        """Tell those who listen."""
        for reference in list(self._listeners):
            listener = reference()
            if listener is not None:
                listener()

    def failed(self, on_failure: str) -> list[StartupTask]:
        """The tasks that have failed, and were to lead to this."""
        return [task for task in self.failures.copy() if task.on_failure == on_failure]


class StartupTask(Work):
    """A task without which the application is not ready, from now until :meth:`done` or :meth:`fail`.

    A context manager, in which an exception is a failure, or a decorator: then it is over with the first call.
    Whichever end comes first counts.
    """

    __slots__ = ("_tasks", "error", "on_failure")

    def __init__(self, tasks: StartupTasks, name: str, on_failure: str) -> None:
        self._tasks = tasks
        self.on_failure = on_failure
        self.error = ""
        super().__init__(tasks, name, {})

    def done(self) -> None:
        """Say that it has succeeded; after it has ended this changes nothing."""
        if self._tasks.end(self):
            self._tasks.ended()

    def fail(self, error: BaseException | str) -> None:
        """Say that it has failed, and by what; after it has ended this changes nothing."""
        cause = error if isinstance(error, BaseException) else None
        self.error = str(error) if cause is None else error_text(cause)
        age = self._tasks.clock() - self.started
        # The receipt tells what comes before the colon: a type is no secret, the application's own words may be one.
        told = f"fail(): {error}" if cause is None else self.error
        if self._tasks.end(self, HookRecord(self.name, "task", "failed", age, told)):
            logger.error(
                "startup task '%s' failed after %.1f s: %s",
                self.name, age, self.error, exc_info=cause, extra={"lifecycle_task": self.name},
            )  # fmt: skip
            self._tasks.ended()

    def __enter__(self) -> StartupTask:
        self.thread = self.inside = threading.current_thread()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.done()
        else:
            self.fail(error)

    def __call__(self, function: F) -> F:
        """Have the first call of a function be the task."""
        return carried(function, lambda: self)


def read_on_failure(name: Any, on_failure: Any) -> None:
    """Refuse what is no task.

    :raises TypeError: the name is no string.
    :raises ValueError: there is no such way to fail.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"A startup task needs a name that is a string, not {name!r}.")
    if on_failure not in ON_FAILURE:
        raise ValueError(
            f"The on_failure of the startup task '{name}' must be 'shutdown' or 'not_ready', not {on_failure!r}."
        )
