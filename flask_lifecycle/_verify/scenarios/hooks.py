"""The ``on_shutdown`` functions."""

from __future__ import annotations

from collections import Counter

from ..trial import STARTED, BrokenError, Trial, scenario


@scenario(
    "hooks/run", STARTED, "slow", own=True,
    promise="The on_shutdown functions run.",
    why="They flush buffers, close pools and leave registries.",
)  # fmt: skip
def hooks_run(trial: Trial) -> str:
    trial.begin("slow", 0.1)
    trial.stop()
    trial.exit()
    if not (runs := trial.subject.recorded("shutdown")):
        raise BrokenError("the process has gone and no on_shutdown function has run")
    return f"ran in {len(runs)} process{'es' * (len(runs) > 1)}"


@scenario(
    "hooks/after-the-last-response", STARTED, "slow", own=True,
    promise="The on_shutdown functions run after the last request has ended.",
    why="A request breaks if its connection pool is closed while it runs.",
)  # fmt: skip
def hooks_after(trial: Trial) -> str:
    client = trial.begin("slow", 1.5)
    trial.stop()
    trial.expect(client, "slow")
    trial.exit()
    runs, ends = trial.subject.recorded("shutdown"), trial.subject.recorded("end")
    # Of several workers those without a request may close theirs earlier.
    if not runs or not ends or max(runs) < max(ends):
        raise BrokenError("an on_shutdown function ran before the last request had ended")
    return f"{max(runs).when - max(ends).when:.2f} s after it"


@scenario(
    "hooks/once", STARTED, "slow", own=True,
    promise="The on_shutdown functions run once in each process that has run a request.",
    why="A message that is sent twice, or a job that is given back twice, is a bug that only a deploy shows.",
)  # fmt: skip
def hooks_once(trial: Trial) -> str:
    trial.begin("slow", 1)
    for _ in range(7):  # of several workers each gets some
        trial.connect().ask(trial.path("slow", 1))
    trial.settle()
    trial.stop()
    trial.exit()
    served = {each.pid for each in trial.subject.recorded("begin")}
    runs = Counter(each.pid for each in trial.subject.recorded("shutdown"))
    if wrong := [runs[pid] for pid in served | set(runs) if runs[pid] != 1]:
        raise BrokenError(f"they ran {', '.join(map(str, wrong))} times in {len(wrong)} of {len(served)} processes")
    return "once" if len(served) == 1 else f"once in each of {len(served)} processes"


def _others_run(trial: Trial, hook: str) -> str:
    trial.stop()
    trial.exit()
    if not trial.subject.recorded(hook):
        raise BrokenError("the process has gone and no on_shutdown function has run")
    if not trial.subject.recorded("shutdown"):
        raise BrokenError(f"one on_shutdown function {hook}, and the other has not run")
    return f"the other ran; gone after {trial.subject.lasted:.1f} s"


@scenario(
    "hooks/one-raises", STARTED, "fast", hook="raises",
    promise="If an on_shutdown function raises, the others run.",
    why="A cache that cannot be reached must not keep the database's pool from being closed.",
)  # fmt: skip
def one_raises(trial: Trial) -> str:
    return _others_run(trial, "raises")


@scenario(
    "hooks/one-hangs", STARTED, "fast", hook="hangs",
    promise="If an on_shutdown function hangs, the others run, and the process exits within the grace period.",
    why="A broker that does not answer must not keep the other functions from running.",
)  # fmt: skip
def one_hangs(trial: Trial) -> str:
    return _others_run(trial, "hangs")
