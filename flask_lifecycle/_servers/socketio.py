"""Makes the running event handlers of Flask-SocketIO work items when a drain begins.

python-socketio runs each event in its own thread, outside of a request, so a shutdown would cut it and still be clean.
We find these threads by their stacks, once, when the drain begins, and each is a work item until it ends, unless its
handler is one already. Later events are not found; disconnect the clients in ``on_drain`` to prevent them
(docs/work.md). Greenlets of gevent and eventlet are not found either.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from .._core.work import Work, WorkLedger

_RUN = threading.Thread.run.__code__


def await_events(ledger: WorkLedger) -> None:
    """Make the drain wait for the handlers that run now. Any thread may call this."""
    handle = getattr(getattr(sys.modules.get("socketio"), "Server", None), "_handle_event_internal", None)
    if handle is None:
        return
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = _called_by_thread(frames.get(thread.ident or 0))
        if frame is not None and frame.f_code is handle.__code__ and not ledger.done_by(thread):
            data: Any = frame.f_locals.get("data") or [""]
            work = Work(ledger, f"Socket.IO event {data[0]}", {})
            work.thread = work.inside = thread
            threading.Thread(target=_end_with, args=(work, thread), name="lifecycle-event", daemon=True).start()


def _called_by_thread(frame: FrameType | None) -> FrameType | None:
    """The frame of a thread's target function, on the stack that ends in this frame."""
    while frame is not None and (frame.f_back is None or frame.f_back.f_code is not _RUN):
        frame = frame.f_back
    return frame


def _end_with(work: Work, thread: threading.Thread) -> None:
    thread.join()
    work.done()
