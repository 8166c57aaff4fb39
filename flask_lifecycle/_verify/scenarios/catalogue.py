"""What a scenario is, and the levels of the promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ..trial import Trial

STARTED, ACCEPTED, ALL = "started", "accepted", "all"
LEVELS = (STARTED, ACCEPTED, ALL)  # each includes those before it
BEYOND = "beyond"  # some servers keep it; it is reported, and none of the levels includes it


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One scenario.

    :param needs: the kinds of work whose paths it uses; without any it runs while the command starts.
    :param promise: one sentence about what holds, and ``why`` one about why that matters.
    :param run: returns what it saw if the promise holds. It raises :exc:`~..trial.BrokenError` if not, or what the
        client raises for a lost response; and :exc:`~..trial.NotCheckedError` if it says nothing about this command.
    :param own: it needs the routes of ``verify``, or what they record.
    :param hook: what an ``on_shutdown`` function does that is added for it: ``raises`` or ``hangs``.
    """

    name: str
    level: str
    needs: tuple[str, ...]
    promise: str
    why: str
    run: Callable[[Trial], str]
    own: bool = False
    hook: str = ""

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


def scenario(
    name: str, level: str, *needs: str, promise: str, why: str, own: bool = False, hook: str = ""
) -> Callable[[Callable[[Trial], str]], Scenario]:
    """Make a scenario of the function that runs it."""
    return lambda function: Scenario(name, level, needs, promise, why, function, own or bool(hook), hook)
