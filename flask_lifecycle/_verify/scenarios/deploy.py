"""The replacement of a process by the next one."""

from __future__ import annotations

from ..trial import SLACK, BrokenError, NotCheckedError, Trial
from .catalogue import ALL, scenario


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
    lost = [loss for storm in storms for loss in storm.lost]
    answered = sum(storm.answered for storm in storms)
    if lost:
        raise BrokenError(f"{len(lost)} lost of {answered + len(lost)}, for example: {lost[0]}")
    if not all(goes_on):
        raise BrokenError("a client was refused")
    return f"{answered} answered, none lost or refused"
