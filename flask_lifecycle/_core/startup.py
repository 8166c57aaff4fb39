"""The start-up of an application: its ``on_startup`` functions, then its startup tasks.

Requests wait for the ``on_startup`` functions, whose results they need. A *startup task* delays only readiness, and
runs in any thread. No event leads back to STARTING, so a task that begins after the start-up is refused.

Interleavings: the last task ends while the start-up checks for tasks. The start-up records that its functions are over
and then reads the tasks; a task leaves and then checks the start-up. Each writes before it reads, so at least one sees
that both are over, and the state machine accepts the event only once. Or a task begins when the start-up ends:
``close`` and ``begin`` take the same lock, so either the start-up sees the task, or the task is refused.

After a fork the child keeps the tasks of the thread that forked, because this thread continues in the child: a task
that was begun at import and ends in the worker delays the worker's readiness. Tasks of other threads are lost: the
child has no thread that ends them, and is not ready without their results. They fail at the end of the child's
start-up, unless it has begun a task of the same name again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .callbacks import error_text
from .hooks import HookRecord, ShutdownContext, run_hook
from .log import logger
from .state import Event, State
from .work import F, Work, WorkLedger, wrapped

if TYPE_CHECKING:
    from .process import Process
    from .server import Application

ON_FAILURE = ("shutdown", "not_ready")

# Seconds between two log lines about a slow start-up: often enough for a deployment, and not a flood overnight.
STILL_STARTING = 60.0


class Startup:
    """The start-up of one application in this process. A forked child makes a new one. Any thread may use it."""

    def __init__(self, application: Application, process: Process) -> None:
        self._application = application
        self._process = process
        self.since = time.monotonic()  # when this process began to serve the application
        self.served_since: float | None = None  # when requests no longer had to wait for the start-up
        self.succeeded = False
        self.over = threading.Event()  # set when requests need not wait: it has succeeded, or never will
        self.function = ""  # the name of the on_startup function that runs now
        self.functions_over = threading.Event()
        self._lock = threading.Lock()
        self._steps: set[str] = set()  # the steps that were taken; guarded by the lock
        self._failed: list[StartupTask] = []  # the tasks that have made the application not ready

    def wait(self) -> bool:
        """Block a request until the start-up is over; run it if necessary. The middleware calls this."""
        if not self.over.is_set():
            self.ensure()
            self.over.wait()
        return True

    def ensure(self) -> None:
        """Run the start-up, unless it has run or ``run`` does it.

        Called when a server is detected, or at the first request or probe. ``on_startup`` functions get their own
        thread, so that a shutdown can answer the requests that wait for a function that hangs.
        """
        if self.over.is_set() or self._process.owner:
            return
        if not self._application.hooks.of("startup"):
            self.run()
        elif self._first("thread"):
            threading.Thread(target=self.run, name="lifecycle-startup", daemon=True).start()

    def begin(self) -> None:
        """Begin, because the process serves, or is about to. Idempotent."""
        if not self._first("begin"):
            return
        self.since = time.monotonic()
        self._application.begin_serving()
        slow = self._application.hooks.of("startup") or self._application.tasks.active
        if self._process.signals and slow:  # not in testing mode, where the thread would never end
            threading.Thread(target=self._log_waiting, name="lifecycle-startup-watch", daemon=True).start()

    def run(self) -> None:
        """Run the ``on_startup`` functions, once, and then let requests in. Blocks, but does not wait for tasks."""
        self.begin()
        application, process = self._application, self._process
        failed = self._run_functions()
        if failed:
            process.fail_start(f"on_startup '{failed}'")
            return
        if self.over.is_set() or not self._first("functions over"):
            return
        self.succeeded = True
        if process.signals and not application.machine.ending:
            # Before READY: from then on a SIGTERM may arrive, and our handler must get it. Before the requests: a
            # waiting request may fork next, and its child would have half-imported modules of this thread.
            process.servers.attach()
        if not process.owner and not application.machine.ending and not application.open_or_fail():
            return
        application.check_setup()
        application.tasks.fail_lost()
        self.check_tasks()  # without the lock: a receiver of READY may send a probe
        if application.machine.ending:
            return
        self.served_since = application.ledger.clock()
        self.over.set()
        if process.signals:
            application.start_checks()

    def _run_functions(self) -> str:
        """Run the ``on_startup`` functions in order, once; return the name of the one that failed, or an empty string.

        Blocks until they are over, also if another thread runs them. The first failure ends the start-up.
        """
        hooks, shutdown = self._application.hooks, self._process.shutdown
        if self._first("functions"):
            argument = ShutdownContext("", None, shutdown)
            for hook in hooks.of("startup"):
                self.function = hook.name
                record = run_hook(hook, argument, hook.timeout, self._application.context, shutdown.clock)
                hooks.records.append(record)
                if record.outcome != "ok":
                    break
            self.function = ""
            self.functions_over.set()
        self.functions_over.wait()
        return next((each.name for each in hooks.records if each.kind == "startup" and each.outcome != "ok"), "")

    @property
    def runs_functions(self) -> bool:
        """Whether the ``on_startup`` functions run now."""
        return "functions" in self._steps and not self.functions_over.is_set()

    def check_tasks(self) -> None:
        """Change the state if functions and tasks are over, or a task has failed; called after each of them."""
        tasks, machine = self._application.tasks, self._application.machine
        fatal = tasks.failed("shutdown")
        if fatal and "begin" in self._steps:  # a process that does not serve has nothing to stop
            self._process.fail_start(f"startup task '{fatal[0].name}'")
        if fatal or machine.state is not State.STARTING:
            return
        with contextlib.suppress(RuntimeError):  # another thread, or the shutdown, was faster
            for task in [task for task in tasks.failed("not_ready") if task not in self._failed]:
                self._failed.append(task)  # once: set_ready() may come after it
                machine.apply(Event.SET_NOT_READY, f"startup task '{task.name}' failed")
            if "functions over" in self._steps and tasks.close():
                machine.apply(Event.STARTED)

    def _first(self, step: str) -> bool:
        """Whether this is the first call for a step."""
        with self._lock:
            first = step not in self._steps
            self._steps.add(step)
            return first

    def _log_waiting(self) -> None:
        """Log every minute which functions and tasks the start-up waits for."""
        waited = 0.0
        while not self._application.machine.wait_for(lambda state: state is not State.STARTING, STILL_STARTING):
            waited += STILL_STARTING
            running = [f"on_startup '{self.function}'"] if self.function else []
            running += [f"startup task '{task.name}'" for task in self._application.tasks.items()]
            logger.warning(
                "not ready after %.0f s, waiting for %s", waited, ", ".join(running) or "the start-up",
                extra={"lifecycle_waiting": running},
            )  # fmt: skip


class StartupTasks(WorkLedger):
    """The startup tasks of one ``Lifecycle``. Any thread may call every method, and none blocks."""

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

    def __init__(self) -> None:
        self.failures: list[StartupTask] = []
        self._lost: list[StartupTask] = []  # of threads that are not in this forked child
        self.records: list[HookRecord] = []  # of the failures that make a shutdown unclean
        self._listeners: list[weakref.WeakMethod[Callable[[], object]]] = []
        super().__init__()

    def begin(self, name: str, on_failure: str) -> StartupTask:
        """Begin a task.

        :raises RuntimeError: the start-up is over.
        :raises TypeError: the name is not a string.
        :raises ValueError: ``on_failure`` is unknown.
        """
        if not isinstance(name, str) or not name:
            raise TypeError(f"A startup task needs a name that is a string, not {name!r}.")
        if on_failure not in ON_FAILURE:
            raise ValueError(
                f"The on_failure of the startup task '{name}' must be 'shutdown' or 'not_ready', not {on_failure!r}."
            )
        with self._lock:
            if self.closed:
                raise RuntimeError(
                    f"The startup task '{name}' begins when the start-up is over; begin it before, or use"
                    " set_not_ready() and set_ready()."
                )
            self._lost = [task for task in self._lost if task.name != name]
            return StartupTask(self, name, on_failure)

    def fail_lost(self) -> None:
        """Fail the tasks whose threads are not in this forked child."""
        lost, self._lost = self._lost, []
        for task in lost:
            self.active[task] = None
            task.fail(
                f"the thread '{task.thread.name}' that began it is not in this process, which was forked meanwhile;"
                " begin it in an on_startup function, or let it end before the fork"
            )

    def close(self) -> bool:
        """Refuse further tasks if all are over; return whether they are."""
        with self._lock:
            self.closed = self.closed or not self.active
            return self.closed

    def end(self, task: StartupTask, failure: HookRecord | None = None) -> bool:
        """Remove a task; return whether it was still there. A failure is recorded before the task is gone."""
        with self._lock:
            if task not in self.active:
                return False
            if failure is not None:
                self.failures.append(task)
                if task.on_failure == "shutdown":  # with "not_ready" the shutdown may still be clean
                    self.records.append(failure)
            self.leave(task)
            return True

    def listen(self, listener: Callable[[], object]) -> None:
        """Call a method after each task that ends, as long as its object lives."""
        self._listeners.append(weakref.WeakMethod(listener))

    def ended(self) -> None:
        """Call the listeners."""
        for reference in list(self._listeners):
            listener = reference()
            if listener is not None:
                listener()

    def failed(self, on_failure: str) -> list[StartupTask]:
        """The failed tasks with this ``on_failure``."""
        return [task for task in self.failures.copy() if task.on_failure == on_failure]


class StartupTask(Work):
    """A task that the application must finish before it is ready; it lasts until :meth:`done` or :meth:`fail`.

    As a context manager it fails by an exception; as a decorator it ends with the first call. Only the first end
    counts.
    """

    __slots__ = ("_tasks", "error", "on_failure")

    def __init__(self, tasks: StartupTasks, name: str, on_failure: str) -> None:
        self._tasks = tasks
        self.on_failure = on_failure
        self.error = ""
        super().__init__(tasks, name, {})

    def done(self) -> None:
        """End the task successfully, unless it has ended."""
        if self._tasks.end(self):
            self._tasks.ended()

    def fail(self, error: BaseException | str) -> None:
        """Fail the task, unless it has ended."""
        cause = error if isinstance(error, BaseException) else None
        self.error = str(error) if cause is None else error_text(cause)
        age = self._tasks.clock() - self.started
        # The report file has only the part before the colon: the type of an exception, whose text may be secret.
        what = f"fail(): {error}" if cause is None else self.error
        if self._tasks.end(self, HookRecord(self.name, "task", "failed", age, what)):
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
        """Make the first call of a function the task."""
        return wrapped(function, lambda: self)
