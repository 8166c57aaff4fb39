"""The report of a shutdown, and what a shutdown waits for: requests in flight and work items, over all applications."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import signal
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from blinker import Namespace

from .hooks import HookRecord
from .inflight import RequestInfo
from .log import logger
from .text import Lines, visible
from .work import WorkInfo, WorkLedger, describe

if TYPE_CHECKING:
    from .server import Application, Server

shutdown_complete = Namespace().signal(
    "lifecycle-shutdown-complete",
    doc="""Sent once for each application when the shutdown is over, unless the exit is forced. The sender is the
    application, ``report`` the :class:`ShutdownReport`. A receiver has what is left of the grace period.""",
)

T = TypeVar("T")

# The stage of a request that the server runs and no ledger has.
UNCOUNTED = "uncounted"
# At most this many requests and work items are logged one by one, with their stacks.
_MOST_LOGGED = 50
# Outcomes of hooks that are nothing to complain about.
_GOOD = ("ok", "skipped")


class PhaseRecord(NamedTuple):
    """One phase of a shutdown.

    :param name: ``announce``, ``delay``, ``stop accepting``, ``drain`` or ``hooks``.
    :param duration: seconds that it took.
    """

    name: str
    duration: float


class ShutdownReport(NamedTuple):
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


@dataclasses.dataclass(eq=False, repr=False)
class Unfinished:
    """A snapshot of the requests and work items that have not ended."""

    requests: tuple[RequestInfo, ...] = ()
    work: tuple[WorkInfo, ...] = ()

    def __len__(self) -> int:
        return len(self.requests) + len(self.work)

    def log(self, level: int, words: str) -> None:
        """Log each, with the stack of its thread; work items of one name share a line."""
        entries: list[tuple[RequestInfo | WorkInfo, int]] = [
            *((info, 0) for info in self.requests),
            *_by_name(self.work),
        ]
        for info, others in entries[:_MOST_LOGGED]:
            where = f"; its thread '{visible(info.thread)}' is at\n{info.stack.rstrip()}"
            stack = Lines.of(where) if info.stack else ""
            name = {"lifecycle_path": info.path} if isinstance(info, RequestInfo) else {"lifecycle_work": info.name}
            extra = {**name, "lifecycle_age": info.age}
            more = f" and {others} more of this name" if others else ""
            logger.log(level, "%s %s%s%s", words, info, more, stack, extra=extra)
        if len(entries) > _MOST_LOGGED:
            rest = sum(1 + others for _info, others in entries[_MOST_LOGGED:])
            logger.log(level, "%s %d more", words, rest, extra={"lifecycle_more": rest})
        uncounted = sum(info.stage == UNCOUNTED for info in self.requests)
        if uncounted:
            logger.warning(
                "%d of these requests did not go through the application, so they are not counted and readiness does"
                " not see them. Put what answers them inside, as in app.wsgi_app = Dispatcher(app.wsgi_app, ...).",
                uncounted, extra={"lifecycle_uncounted": uncounted},
            )  # fmt: skip

    def with_late_work(self, applications: Sequence[Application]) -> Unfinished:
        """These, and the work items that began after the drain; log them."""
        known = {(info.name, info.thread) for info in self.work}
        late = tuple(info for info in work_now(applications) if (info.name, info.thread) not in known)
        Unfinished((), late).log(logging.ERROR, "abandoned")
        return Unfinished(self.requests, (*self.work, *late))


def requests_now(
    applications: Iterable[Application], server: Server | None, stacks: bool = False
) -> tuple[RequestInfo, ...]:
    """Every request in flight, of the applications and of the server."""
    counted = [info for application in applications for info in application.ledger.requests(stacks)]
    return (*counted, *_not_counted(counted, server.unfinished() if server is not None else ()))


def _not_counted(counted: Sequence[RequestInfo], server: Sequence[RequestInfo]) -> list[RequestInfo]:
    """The requests of the server that no ledger has.

    A server cannot see which of its running requests the ledgers have. Running ones beyond their number are
    ``uncounted``: something around the application answers them, such as a dispatcher.
    """
    paths = {info.path for info in counted}
    others = [info for info in server if info.stage != "running"]
    running = sorted((info for info in server if info.stage == "running"), key=lambda info: info.path in paths)
    uncounted = running[: max(0, len(running) - len(counted))]
    return [*others, *(info._replace(stage=UNCOUNTED) for info in uncounted)]


def work_now(applications: Iterable[Application], stacks: bool = False) -> tuple[WorkInfo, ...]:
    """Every work item and start-up task that has not ended."""
    return tuple(info for ledger in work_ledgers(applications) for info in ledger.items(stacks))


def work_ledgers(applications: Iterable[Application]) -> list[WorkLedger]:
    """The work items and start-up tasks of applications, which those of one ``Lifecycle`` share."""
    return each_once(ledger for application in applications for ledger in (application.work, application.tasks))


def each_once(things: Iterable[T]) -> list[T]:
    """The things without repetitions, in their order."""
    return list({id(thing): thing for thing in things}.values())


def _by_name(work: Iterable[WorkInfo]) -> list[tuple[WorkInfo, int]]:
    """The oldest work item of each name, and how many others have that name."""
    groups: dict[str, list[WorkInfo]] = {}
    for info in work:
        groups.setdefault(info.name, []).append(info)
    return [(max(group, key=lambda info: info.age), len(group) - 1) for group in groups.values()]
