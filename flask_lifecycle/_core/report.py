"""The report of a shutdown."""

from __future__ import annotations

import dataclasses
import datetime
import signal
from typing import Any, NamedTuple

from blinker import Namespace

from .hooks import HookRecord
from .inflight import RequestInfo
from .work import WorkInfo, describe

shutdown_complete = Namespace().signal(
    "lifecycle-shutdown-complete",
    doc="""Sent once for each application when the shutdown is over, before the process leaves; not where the exit is
    forced. The sender is the application, ``report`` the :class:`ShutdownReport`. A receiver has what is left of the
    grace period.""",
)

# Outcomes of hooks that are nothing to complain about.
_GOOD = ("ok", "skipped")


class PhaseRecord(NamedTuple):
    """One phase of a shutdown.

    :param name: ``announce``, ``delay``, ``stop accepting``, ``drain`` or ``hooks``.
    :param duration: seconds that it took.
    """

    name: str
    duration: float


@dataclasses.dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What happened during a shutdown; every caller of ``shutdown`` gets the same report. Times are seconds.

    :param reason: why it began, such as ``SIGTERM`` or ``shutdown()``.
    :param signal: the number of the signal, or ``None`` if there was none.
    :param phases: how long each phase took, in order.
    :param abandoned: requests that were not answered by the deadline.
    :param hooks: what became of each hook.
    :param duration: from the beginning of the shutdown to its end.
    :param work: work items that had not ended by the deadline.
    :param served: number of requests answered since the drain began.
    :param refused: number of requests refused with 503.
    :param began: when it began, in seconds since the epoch.
    :param forced: the exit code, if a second signal or the deadline forced the exit; otherwise ``None``.
    """

    reason: str
    signal: int | None
    phases: tuple[PhaseRecord, ...]
    abandoned: tuple[RequestInfo, ...]
    hooks: tuple[HookRecord, ...]
    duration: float
    work: tuple[WorkInfo, ...] = ()
    served: int = 0
    refused: int = 0
    began: float = 0.0
    forced: int | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing was abandoned or forced, no thread crashed, and no hook or startup task failed or hung."""
        good = all(hook.outcome in _GOOD for hook in self.hooks)
        return good and not self.abandoned and not self.work and self.forced is None

    @property
    def exit_code(self) -> int:
        """0 after a clean shutdown, else 1; after a forced exit, its code."""
        return self.forced if self.forced is not None else 0 if self.clean else 1

    @property
    def summary(self) -> str:
        """The outcome as one line, such as ``1 abandoned, 1 hook failed, exit 1``; also ``str()`` of the report."""
        parts = ["forced"] if self.forced is not None else []
        lost = len(self.abandoned) + len(self.work)
        parts += ["a thread crashed"] if any(hook.kind == "crash" for hook in self.hooks) else []
        parts += [f"{lost} abandoned"] if lost else []
        for outcome in ("failed", "hung"):
            n = sum(hook.outcome == outcome and hook.kind != "crash" for hook in self.hooks)
            parts += [f"{n} hook{'s' if n > 1 else ''} {outcome}"] if n else []
        return f"{', '.join(parts) or 'clean'}, exit {self.exit_code}"

    def __str__(self) -> str:
        return self.summary

    @property
    def course(self) -> str:
        """The phases that took time, and the numbers of requests, as the last line of the log shows them."""
        phases = ", ".join(f"{phase.name} {phase.duration:.1f} s" for phase in self.phases if phase.duration >= 0.05)
        return f"{phases or 'at once'}; {self.served} served, {self.refused} refused"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON; of an exception only the type, because its text may contain secrets."""
        began = datetime.datetime.fromtimestamp(self.began, datetime.timezone.utc)
        return {
            "summary": self.summary,
            "reason": self.reason,
            "signal": None if self.signal is None else signal_name(self.signal),
            "began": began.isoformat(timespec="milliseconds"),
            "duration": round(self.duration, 3),
            "exit_code": self.exit_code,
            "clean": self.clean,
            "forced": self.forced is not None,
            "served": self.served,
            "refused": self.refused,
            "phases": [{"name": phase.name, "seconds": round(phase.duration, 3)} for phase in self.phases],
            "hooks": [_hook(record) for record in self.hooks],
            "abandoned": [_request(info) for info in self.abandoned],
            "work": [_work(info) for info in self.work],
        }


def _hook(record: HookRecord) -> dict[str, Any]:
    document: dict[str, Any] = {"name": record.name, "kind": record.kind, "outcome": record.outcome}
    document |= {"seconds": round(record.duration, 3)}
    return document | ({"error": record.error.partition(":")[0]} if record.error else {})


def _request(info: RequestInfo) -> dict[str, Any]:
    document: dict[str, Any] = {
        "method": info.method,
        "path": info.path,
        "age": round(info.age, 3),
        "stage": info.stage,
    }
    more = {"route": info.route, "remote": info.remote, "thread": info.thread, "stack": info.stack}
    return document | {key: value for key, value in more.items() if value}


def _work(info: WorkInfo) -> dict[str, Any]:
    document: dict[str, Any] = {"name": info.name, "age": round(info.age, 3), "what": describe(info.name, info.info)}
    return document | {key: value for key, value in (("thread", info.thread), ("stack", info.stack)) if value}


def signal_name(signum: int) -> str:
    """``SIGTERM`` for 15; the number itself where it has no name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return str(signum)
