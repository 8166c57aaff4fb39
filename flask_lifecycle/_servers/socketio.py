"""Makes the running event handlers of Flask-SocketIO work items when a drain begins.

python-socketio runs each event in its own thread, outside of a request, so a shutdown would cut it and still be clean.
We find these threads by their stacks, once, when the drain begins, and each is a work item until it ends, unless its
handler is one already. Later events are not found; disconnect the clients in ``on_drain`` to prevent them
(docs/work.md). Greenlets of gevent and eventlet are not found either.
"""

from __future__ import annotations

import itertools
import sys
import threading
from types import CodeType
from typing import Any

from .._core.stacks import callers, collector_paused
from .._core.work import Work, WorkLedger

_RUN = threading.Thread.run.__code__


def await_events(ledger: WorkLedger) -> None:
    """Make the drain wait for the handlers that run now. Any thread may call this."""
    handle = getattr(getattr(sys.modules.get("socketio"), "Server", None), "_handle_event_internal", None)
    if handle is None:
        return
    events = _calls_by_threads(handle.__code__)
    for thread in threading.enumerate():
        if thread.ident in events and not ledger.done_by(thread):
            data: Any = events[thread.ident].get("data") or [""]
            work = Work(ledger, f"Socket.IO event {data[0]}", {})
            work.thread = work.inside = thread
            threading.Thread(target=_end_with, args=(work, thread), name="lifecycle-event", daemon=True).start()


def _calls_by_threads(target: CodeType) -> dict[int, dict[str, Any]]:
    """The threads whose target function this is, each with the variables of that call."""
    with collector_paused():
        return {
            ident: dict(frame.f_locals)
            for ident, innermost in sys._current_frames().items()
            for frame, caller in itertools.pairwise(callers(innermost))
            if frame.f_code is target and caller.f_code is _RUN
        }


def _end_with(work: Work, thread: threading.Thread) -> None:
    thread.join()
    work.done()
