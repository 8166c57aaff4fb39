"""Runs the hooks of all applications in a shutdown."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .deadline import Clock, Deadline
from .hooks import HookRecord, ShutdownContext, run_hook
from .server import Application
from .state import logger


class HookRunner:
    """Runs the hooks, those of later applications first.

    :param context: makes the argument of a hook.
    :param release: called when no ``on_drain`` function keeps the listener open any more.
    """

    def __init__(self, clock: Clock, context: Callable[[], ShutdownContext], release: Callable[[], None]) -> None:
        self.clock = clock
        self._context = context
        self._release = release
        self._drain_hooks_ended = threading.Event()

    def begin_drain(self, applications: Sequence[Application], deadline: Deadline) -> None:
        """Run the ``on_drain`` functions in parallel to the phases."""
        hooks = [hook for each in applications for hook in each.hooks.of("drain")]
        if not any(hook.hold for hook in hooks):
            self._release()
        if not hooks:
            self._drain_hooks_ended.set()
            return
        thread = threading.Thread(
            target=self._run_drain_hooks, args=(applications, deadline), name="lifecycle-on-drain", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is finalizing
            thread.run()

    def _run_drain_hooks(self, applications: Sequence[Application], deadline: Deadline) -> None:
        self.run(applications, "drain", deadline)
        self._release()
        self._drain_hooks_ended.set()

    def wait(self, applications: Sequence[Application], until: Deadline) -> None:
        """Wait for the ``on_drain`` functions, and for start-ups under way."""
        # Their own deadline is the same. We wait a moment longer, so that a hung one is recorded.
        self.clock.wait(self._drain_hooks_ended, until.remaining() + 0.1)
        for each in applications:
            if each.hooks.startup_begun.is_set():
                self.clock.wait(each.hooks.startup_over, until.remaining())

    def run(self, applications: Sequence[Application], kind: str, deadline: Deadline, group: bool = False) -> None:
        """Run the hooks of a kind, each within its own timeout and its share of the remaining time.

        :param group: run the hooks of the process group instead of those of each process.
        """
        context = self._context()
        todo = [(hook, each) for each in reversed(applications) for hook in each.hooks.of(kind) if hook.group is group]
        for number, (hook, application) in enumerate(todo, 1):
            if kind == "drain" and not any(waiting.hold for waiting, *_ in todo[number - 1 :]):
                self._release()
            if application.hooks.unopened(hook):
                extra = {"lifecycle_hook": hook.name, "lifecycle_kind": kind, "lifecycle_outcome": "skipped"}
                logger.info("%s skipped: its start did not succeed", hook.label, extra=extra)
                application.hooks.records.append(HookRecord(hook.name, kind, "skipped", 0.0))
                continue
            share = deadline.remaining() if number == len(todo) else deadline.remaining() / 2
            limit = min(hook.timeout or share, share)
            record = run_hook(hook, context, limit, application.context, self.clock)
            application.hooks.records.append(record)
