"""The exit of the process, what it leaves behind, and its replacement by the next one."""

from __future__ import annotations

import socket
import time

from ..client import is_refused
from ..trial import ALL, BEYOND, SLACK, STARTED, BrokenError, NotCheckedError, Trial, check_storms, scenario


@scenario(
    "exit/code", STARTED, "fast",
    promise="An idle process exits with 0.",
    why="A supervisor treats any other code as a crash: it alerts, restarts, or marks the deploy as failed.",
)  # fmt: skip
def exit_code(trial: Trial) -> str:
    trial.stop()
    code = trial.exit()
    if code:
        raise BrokenError(f"exit code {code}")
    return f"0 after {trial.subject.lasted:.1f} s"


@scenario(
    "exit/failed-hook", BEYOND, "fast", hook="raises",
    promise="A process in which an on_shutdown function raises does not exit with 0.",
    why="If something could not be closed or flushed, the deploy should show it, not an incident weeks later.",
)  # fmt: skip
def failed_hook(trial: Trial) -> str:
    trial.stop()
    if (code := trial.exit()) == 0:
        raise BrokenError("exit code 0")
    return f"exit code {code}"


def _gone_in_time(trial: Trial) -> str:
    trial.stop()
    code = trial.exit()
    return f"exit code {code} after {trial.subject.lasted:.1f} s"


@scenario(
    "exit/hung-request", STARTED, "slow",
    promise="The process exits within the grace period even if a request does not end.",
    why="Otherwise the orchestrator kills it, and no on_shutdown function runs.",
)  # fmt: skip
def hung_request(trial: Trial) -> str:
    trial.begin("slow", trial.grace + 60)
    return _gone_in_time(trial)


@scenario(
    "exit/thread-left", STARTED, "thread", own=True,
    promise="The process exits within the grace period even if a thread of the application does not end.",
    why="The interpreter waits for such a thread forever, until the orchestrator kills the process.",
)  # fmt: skip
def thread_left(trial: Trial) -> str:
    trial.check(trial.connect().get(trial.path("thread")), "thread")
    return _gone_in_time(trial)


@scenario(
    "exit/second-signal", BEYOND, "slow",
    promise="A second signal ends the process at once.",
    why="An operator who presses Ctrl-C twice, or a supervisor that repeats the signal, does not want to wait.",
)  # fmt: skip
def second_signal(trial: Trial) -> str:
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


@scenario(
    "exit/during-start", STARTED,
    promise="A process that is stopped while it starts exits within the grace period.",
    why="A deploy may be rolled back at any moment; if the signal is lost then, the rollback hangs.",
)  # fmt: skip
def during_start(trial: Trial) -> str:
    trial.stop()
    code = trial.exit()
    return f"exit code {code}"


@scenario(
    "exit/address-free", STARTED, "fast",
    promise="The address is free when the process has exited.",
    why="Otherwise the next process cannot listen on the port.",
)  # fmt: skip
def address_free(trial: Trial) -> str:
    trial.stop()
    trial.exit()
    address = trial.subject.address
    if not is_refused(address, trial.subject.patience):
        raise BrokenError("something still listens after the exit")
    with socket.create_server(address):
        return "free"


@scenario(
    "exit/no-process-left", STARTED, "fast",
    promise="No process that the command started is left after it exits.",
    why="An orphan keeps memory, locks and connections until the machine restarts.",
)  # fmt: skip
def no_process_left(trial: Trial) -> str:
    trial.stop()
    trial.exit()
    end = time.monotonic() + SLACK
    while (left := trial.subject.children()) and time.monotonic() < end:
        time.sleep(0.05)  # some notice the end of the first process, and follow
    if left:
        raise BrokenError(f"{len(left)} still running: {', '.join(map(str, left))}")
    return "none"


@scenario(
    "deploy/hand-over", ALL, "fast",
    promise="If the processes are replaced on a signal, clients that never pause lose no request, and none is refused.",
    why="A deploy in place has no load balancer that could send clients elsewhere.",
)  # fmt: skip
def hand_over(trial: Trial) -> str:
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
