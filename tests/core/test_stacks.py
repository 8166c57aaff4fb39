"""Looks at the calls of other threads, which must not stop them for good, nor leave the collector switched off."""

from __future__ import annotations

import contextlib
import gc
import threading

from flask_lifecycle._core import stacks
from tests._fakes import BOUND, in_child, run_python, running

# Threads start and end all the time, and each collection has finalizers that let them run. Where a collection begins
# inside ``sys._current_frames()``, which holds the lock of the list of threads, a thread that starts waits for it with
# the GIL, and nothing runs any more (Python 3.11, within a hundred looks; 3.10.13 the same, more rarely).
LOOKS = """
import gc, sys, threading, time
from flask_lifecycle._core.stacks import Threads, calls_of

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        time.sleep(0.0001)

def nothing():
    pass

def churn():
    while not done:
        thread = threading.Thread(target=nothing)
        thread.start()
        thread.join()

done = []
threads = [threading.Thread(target=churn) for _ in range(3)]
gc.set_threshold(5)
for thread in threads:
    thread.start()
for _ in range(400):
    for _ in range(3):
        Cycle()
    assert calls_of(churn.__code__)
    Threads(stacks=True).stack(threads[0].ident)
done.append(True)
for thread in threads:
    thread.join()
assert gc.isenabled()
print("done")
"""


def test_looks_let_threads_start_and_end() -> None:
    """No look at the threads stops the process, whatever finalizers do."""
    ran = run_python(LOOKS, timeout=60.0)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


def test_calls_have_the_variables_of_the_moment() -> None:
    """A call is found in its thread, with the values that it had, and not in others."""
    inside, leave = threading.Event(), threading.Event()

    def call(argument: str = "one") -> None:
        inside.set()
        leave.wait(BOUND)

    with running(call) as thread:
        assert inside.wait(BOUND)
        (found,) = stacks.calls_of(call.__code__)
        assert found == stacks.Call(thread.ident or 0, found.variables)
        assert found.variables["argument"] == "one"
        assert stacks.calls_of(call.__code__, thread.ident) == [found]
        assert stacks.calls_of(call.__code__, threading.get_ident()) == []
        leave.set()
    assert stacks.calls_of(call.__code__) == []


def test_the_collector_is_left_as_it_was() -> None:
    """A pause inside another one does not end it, and a collector that the application has switched off stays off."""
    with stacks.collector_paused():
        with stacks.collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with stacks.collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_second_thread_waits_for_the_first_pause() -> None:
    """Only one thread at a time has the collector paused."""
    # One thread pauses, another pauses and finds the collector switched off, the first resumes it, and the second looks
    # while it runs, or leaves it off for ever.
    seen: list[bool] = []

    def pause() -> None:
        with stacks.collector_paused():
            seen.append(gc.isenabled())
        seen.append(gc.isenabled())

    with contextlib.ExitStack() as stack, stacks.collector_paused():
        thread = stack.enter_context(running(pause))
        thread.join(0.2)
        assert seen == []
    assert seen == [False, True]


def test_a_child_that_is_forked_in_a_pause_collects_garbage() -> None:
    """A fork waits for the pause of another thread; otherwise the child would never collect garbage."""
    paused, leave = threading.Event(), threading.Event()

    def pause() -> None:
        with stacks.collector_paused():
            paused.set()
            leave.wait(BOUND)

    def child() -> int:
        with stacks.collector_paused():
            pass
        return not gc.isenabled()

    with running(pause):
        assert paused.wait(BOUND)
        timer = threading.Timer(0.2, leave.set)
        timer.start()
        assert in_child(child) == 0
        timer.join(BOUND)
