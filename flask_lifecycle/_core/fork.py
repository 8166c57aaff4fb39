"""The functions that run before and after a fork, in ordered lists for the whole package.

Functions run in every forked child in the order of registration: those of the process, which has its applications renew
themselves, then those of their checks and probes and of modules that are imported later. They run once more if gevent
patches the child afterwards: gunicorn's gevent worker is forked from an unpatched master, and patches ``threading`` as
soon as it runs. A lock made before that would block all greenlets forever, if its holder switches to a greenlet that
wants it. A thread started before that would be a system thread among greenlets.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

Step = Callable[[], object]

# Methods are referred to weakly, so that a registration keeps no object alive.
_before: list[Callable[[], Step | None]] = []
_in_parent: list[Callable[[], Step | None]] = []
_in_child: list[Callable[[], Step | None]] = []


def renew_in_children(renew: Step) -> None:
    """Call a function in every child forked from now on, and once more if gevent patches the child after that."""
    _in_child.append(_reference(renew))


def around_forks(before: Step, in_parent: Step) -> None:
    """Call a function before every fork, last registered first, and one in the parent after the fork."""
    _before.insert(0, _reference(before))
    _in_parent.append(_reference(in_parent))


def _reference(step: Step) -> Callable[[], Step | None]:
    return weakref.WeakMethod(step) if inspect.ismethod(step) else lambda: step


def _run(references: list[Callable[[], Step | None]]) -> None:
    references[:] = [reference for reference in references if reference() is not None]
    for reference in references:
        if (step := reference()) is not None:
            step()


def _after_in_child() -> None:
    _run(_in_child)
    _await_patch()


def is_to_be_patched() -> bool:
    """Whether this process is a worker of gunicorn that gevent will patch in a moment."""
    return "gunicorn.workers.ggevent" in sys.modules and threading.get_ident.__module__ == "_thread"


def _await_patch() -> None:
    if not is_to_be_patched():
        return
    from gevent.events import GeventDidPatchAllEvent, subscribers

    def patched(event: Any) -> None:
        if isinstance(event, GeventDidPatchAllEvent):
            subscribers.remove(patched)
            _run(_in_child)

    subscribers.append(patched)


os.register_at_fork(
    before=lambda: _run(_before), after_in_parent=lambda: _run(_in_parent), after_in_child=_after_in_child
)
