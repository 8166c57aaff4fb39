"""What is made anew in a forked child, and in one that gevent patches."""

from __future__ import annotations

import pytest

from tests._fakes import run_python

# A child as gunicorn makes its gevent workers, of a master that has loaded the application, or our package alone.
PATCHED = """
import os, sys, threading, time
from contextlib import nullcontext
from types import SimpleNamespace
import gunicorn.workers.ggevent
from flask import Flask
import flask_lifecycle
from flask_lifecycle import Lifecycle
from flask_lifecycle._core.deadline import Clock
from flask_lifecycle._core.hooks import inside_a_hook, run_hook
from flask_lifecycle._servers.serving import this_process

preload = sys.argv[1] == "preload"
if preload:
    app = Flask("app")
    Lifecycle(app)

child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))
try:
    assert [thread.name for thread in threading.enumerate()] == ["MainThread"], threading.enumerate()
    from gevent import monkey
    monkey.patch_all()
    if preload:
        lock = app.extensions["lifecycle"].startup._lock
    else:
        lock = this_process.shutdown._start.first

    def hold():
        with lock:
            time.sleep(0.05)

    def want():
        with lock:
            done.append("had it")

    done = []
    threads = [threading.Thread(target=hold), threading.Thread(target=want)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert done == ["had it"]

    def hook():
        other = threading.Thread(target=lambda: inside.append(inside_a_hook()))
        other.start()
        other.join(10.0)
        inside.append(inside_a_hook())

    inside = []
    made = SimpleNamespace(function=hook, takes_context=False, name="a", label="a", kind="startup")
    run_hook(made, None, 10.0, nullcontext, Clock())
    assert inside == [False, True], inside
    print("child done", flush=True)
    os._exit(0)
except BaseException as error:
    print(repr(error), flush=True)
    os._exit(1)
"""


@pytest.mark.parametrize("loaded", ["preload", "config"])
def test_what_a_child_has_before_it_is_patched_is_made_again(loaded: str) -> None:
    """A lock from before the patch lets no greenlet hold up all others, and no thread is started before the patch."""
    done = run_python(PATCHED, loaded)
    assert (done.stdout, done.returncode) == ("child done\n", 0), done.stderr
