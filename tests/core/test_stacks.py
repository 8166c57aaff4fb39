"""Looks at the calls of other threads, which must not stop them for good, nor leave the collector switched off."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings

from flask_lifecycle._core import stacks

BOUND = 20.0

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
    ran = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


def test_calls_have_the_variables_of_the_moment() -> None:
    """A call is found in its thread, with the values that it had, and not in others."""
    inside, leave = threading.Event(), threading.Event()

    def call(argument: str) -> None:
        inside.set()
        leave.wait(BOUND)

    thread = threading.Thread(target=call, args=("one",))
    thread.start()
    try:
        assert inside.wait(BOUND)
        (found,) = stacks.calls_of(call.__code__)
        assert found == stacks.Call(thread.ident or 0, found.variables)
        assert found.variables["argument"] == "one"
        assert stacks.calls_of(call.__code__, thread.ident) == [found]
        assert stacks.calls_of(call.__code__, threading.get_ident()) == []
    finally:
        leave.set()
        thread.join()
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
    """Interleaving: one thread pauses, another pauses and finds the collector switched off, the first resumes it, and
    the second looks while it runs, or leaves it off for ever.
    """
    seen: list[bool] = []

    def pause() -> None:
        with stacks.collector_paused():
            seen.append(gc.isenabled())
        seen.append(gc.isenabled())

    with stacks.collector_paused():
        thread = threading.Thread(target=pause)
        thread.start()
        thread.join(0.2)
        assert seen == []
    thread.join(BOUND)
    assert seen == [False, True]


def test_a_child_that_is_forked_in_a_pause_collects_garbage() -> None:
    """A fork waits for the pause of another thread; otherwise the child would never collect garbage."""
    paused, leave = threading.Event(), threading.Event()

    def pause() -> None:
        with stacks.collector_paused():
            paused.set()
            leave.wait(BOUND)

    thread = threading.Thread(target=pause)
    thread.start()
    assert paused.wait(BOUND)
    timer = threading.Timer(0.2, leave.set)
    timer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, since Python 3.12
        child = os.fork()
    if child == 0:  # pragma: no cover  another process
        with stacks.collector_paused():
            pass
        os._exit(0 if gc.isenabled() else 1)
    thread.join(BOUND)
    timer.join(BOUND)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
