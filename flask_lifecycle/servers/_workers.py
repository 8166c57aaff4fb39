"""Threads that work off a queue.

The attributes are those of waitress' task dispatcher, so that what reads its load (``_pools.py``) and what sends
something ahead of its queue (``_canary.py``) knows this one, too.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol


class Task(Protocol):
    def service(self) -> object:
        """Do it. In a worker; it must not raise."""


class WorkerPool:
    """So many daemon threads, from the beginning until :meth:`end`."""

    def __init__(self, count: int, name: str) -> None:
        self.lock = threading.Lock()  # guards all the others
        self.queue: deque[Task] = deque()
        self.queue_cv = threading.Condition(self.lock)
        self.active_count = 0  # threads that are at work
        self.stop_count = 0
        self.threads = [threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(count)]
        self._ended = False
        for thread in self.threads:
            thread.start()

    def add(self, task: Task) -> None:
        """Have a thread do it as soon as one is free."""
        with self.lock:
            self.queue.append(task)
            self.queue_cv.notify()

    def end(self) -> None:
        """Let each thread go when nothing waits any more. Waits a moment, not for those that are at work."""
        with self.lock:
            self._ended = True
            self.queue_cv.notify_all()
        for thread in self.threads:
            thread.join(0.0 if self.active_count else 0.2)

    def _work(self) -> None:
        while True:
            with self.lock:
                self.queue_cv.wait_for(lambda: self.queue or self._ended)
                if not self.queue:
                    return
                task = self.queue.popleft()
                self.active_count += 1
            try:
                task.service()
            finally:
                with self.lock:
                    self.active_count -= 1
