"""What is made anew in a forked child, and once more where gevent patches that child afterwards.

gunicorn's gevent worker is forked from a master that is not patched, and patches ``threading`` as soon as it runs. A
lock that was made before that holds up all greenlets for ever, when the one that holds it lets another one run that
wants it. Nor may a thread be started between the two: it would be one of the system's, among greenlets.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import _tally

_renewals: list[Callable[[], object]] = [_tally.after_fork]


def renew_in_children(renew: Callable[[], object]) -> None:
    """Call a function in every child that is forked from now on; once more where the child is patched after that."""
    _renewals.append(renew)
    os.register_at_fork(after_in_child=renew)


def is_to_be_patched() -> bool:
    """Whether this process, a child of gunicorn's, is going to be patched in a moment."""
    return "gunicorn.workers.ggevent" in sys.modules and threading.get_ident.__module__ == "_thread"


def _await_patch() -> None:
    if not is_to_be_patched():
        return
    from gevent.events import GeventDidPatchAllEvent, subscribers

    def patched(event: Any) -> None:
        if isinstance(event, GeventDidPatchAllEvent):
            subscribers.remove(patched)
            for renew in _renewals:
                renew()

    subscribers.append(patched)


os.register_at_fork(after_in_child=_await_patch)
