"""The ``on_shutdown`` functions, the exit, what the process leaves behind, and its replacement by the next one."""

from __future__ import annotations

import socket
import time
from collections import Counter

from ..client import is_refused
from ..trial import ALL, BEYOND, SLACK, STARTED, BrokenError, NotCheckedError, Trial, check_storms, scenario


@scenario("hooks/run", STARTED, "slow", own=True)
def hooks_run(trial: Trial) -> str:
    """The on_shutdown functions run."""
    trial.begin("slow", 0.1)
    trial.stop_and_wait()
    if not (runs := trial.subject.recorded("shutdown")):
        raise BrokenError("the process has gone and no on_shutdown function has run")
    return f"ran in {len(runs)} process{'es' * (len(runs) > 1)}"


@scenario("hooks/after-the-last-response", STARTED, "slow", own=True)
def hooks_after(trial: Trial) -> str:
    """The on_shutdown functions run after the last request has ended."""
    client = trial.begin("slow", 1.5)
    trial.stop()
    trial.expect(client, "slow")
    trial.exit()
    runs, ends = trial.subject.recorded("shutdown"), trial.subject.recorded("end")
    # Of several workers those without a request may close theirs earlier.
    if not runs or not ends or max(runs) < max(ends):
        raise BrokenError("an on_shutdown function ran before the last request had ended")
    return f"{max(runs).when - max(ends).when:.2f} s after it"


@scenario("hooks/once", STARTED, "slow", own=True)
def hooks_once(trial: Trial) -> str:
    """The on_shutdown functions run once in each process that has run a request."""
    trial.begin("slow", 1)
    for _ in range(7):  # of several workers each gets some
        trial.connect().ask(trial.path("slow", 1))
    trial.settle()
    trial.stop_and_wait()
    served = {each.pid for each in trial.subject.recorded("begin")}
    runs = Counter(each.pid for each in trial.subject.recorded("shutdown"))
    if wrong := [runs[pid] for pid in served | set(runs) if runs[pid] != 1]:
        raise BrokenError(f"they ran {', '.join(map(str, wrong))} times in {len(wrong)} of {len(served)} processes")
    return "once" if len(served) == 1 else f"once in each of {len(served)} processes"


def _others_run(trial: Trial, hook: str) -> str:
    trial.stop_and_wait()
    if not trial.subject.recorded(hook):
        raise BrokenError("the process has gone and no on_shutdown function has run")
    if not trial.subject.recorded("shutdown"):
        raise BrokenError(f"one on_shutdown function {hook}, and the other has not run")
    return f"the other ran; gone after {trial.subject.lasted:.1f} s"


@scenario("hooks/one-raises", STARTED, "fast", hook="raises")
def one_raises(trial: Trial) -> str:
    """If an on_shutdown function raises, the others run."""
    return _others_run(trial, "raises")


@scenario("hooks/one-hangs", STARTED, "fast", hook="hangs")
def one_hangs(trial: Trial) -> str:
    """If an on_shutdown function hangs, the others run, and the process exits within the grace period."""
    return _others_run(trial, "hangs")


@scenario("exit/code", STARTED, "fast")
def exit_code(trial: Trial) -> str:
    """An idle process exits with 0."""
    if code := trial.stop_and_wait():
        raise BrokenError(f"exit code {code}")
    return f"0 after {trial.subject.lasted:.1f} s"


@scenario("exit/failed-hook", BEYOND, "fast", hook="raises")
def failed_hook(trial: Trial) -> str:
    """A process in which an on_shutdown function raises does not exit with 0."""
    if (code := trial.stop_and_wait()) == 0:
        raise BrokenError("exit code 0")
    return f"exit code {code}"


def _gone_in_time(trial: Trial) -> str:
    code = trial.stop_and_wait()
    return f"exit code {code} after {trial.subject.lasted:.1f} s"


@scenario("exit/hung-request", STARTED, "slow")
def hung_request(trial: Trial) -> str:
    """The process exits within the grace period even if a request does not end."""
    trial.begin("slow", trial.grace + 60)
    return _gone_in_time(trial)


@scenario("exit/thread-left", STARTED, "thread", own=True)
def thread_left(trial: Trial) -> str:
    """The process exits within the grace period even if a thread of the application does not end."""
    trial.check(trial.connect().get(trial.path("thread")), "thread")
    return _gone_in_time(trial)


@scenario("exit/second-signal", BEYOND, "slow")
def second_signal(trial: Trial) -> str:
    """A second signal ends the process at once."""
    if trial.grace < 10:
        raise NotCheckedError("with a grace period under 10 s its end cannot be told from the second signal")
    trial.begin("slow", trial.grace + 60)
    trial.stop()
    trial.settle()
    if trial.subject.gone.is_set():
        return "gone at the first"
    trial.stop()
    code = trial.subject.wait_gone(trial.grace / 2)
    if code is None:
        raise BrokenError(f"still running {trial.grace / 2:.0f} s after the second signal")
    return f"exit code {code}"


@scenario("exit/during-start", STARTED)
def during_start(trial: Trial) -> str:
    """A process that is stopped while it starts exits within the grace period."""
    return f"exit code {trial.stop_and_wait()}"


@scenario("exit/address-free", STARTED, "fast")
def address_free(trial: Trial) -> str:
    """The address is free when the process has exited."""
    trial.stop_and_wait()
    address = trial.subject.address
    if not is_refused(address, trial.subject.patience):
        raise BrokenError("something still listens after the exit")
    with socket.create_server(address):
        return "free"


@scenario("exit/no-process-left", STARTED, "fast")
def no_process_left(trial: Trial) -> str:
    """No process that the command started is left after it exits."""
    trial.stop_and_wait()
    end = time.monotonic() + SLACK
    while (left := trial.subject.children()) and time.monotonic() < end:
        time.sleep(0.05)  # some notice the end of the first process, and follow
    if left:
        raise BrokenError(f"{len(left)} still running: {', '.join(map(str, left))}")
    return "none"


@scenario("deploy/hand-over", ALL, "fast")
def hand_over(trial: Trial) -> str:
    """If the processes are replaced on a signal, clients that never pause lose no request, and none is refused."""
    subject = trial.subject
    if trial.reload_on is None:
        raise NotCheckedError("give --reload-on SIGNAL if the command replaces its processes on a signal")
    storms = [trial.storm(clients=3, keep=keep) for keep in (False, True)]
    old = set(subject.children())
    subject.signal(trial.reload_on)
    if not subject.wait_for(lambda: not old.issuperset(subject.children()), subject.patience):
        raise BrokenError("the signal started no process")
    if not subject.wait_for(lambda: old.isdisjoint(subject.children()), trial.grace + SLACK):
        raise BrokenError(f"a process from before the signal still runs {trial.grace + SLACK:.0f} s after it")
    goes_on = [storm.wait_answers(20) for storm in storms]
    for storm in storms:
        storm.leave()
    answered = check_storms(*storms)
    if not all(goes_on):
        raise BrokenError("a client was refused")
    return f"{answered} answered, none lost or refused"
