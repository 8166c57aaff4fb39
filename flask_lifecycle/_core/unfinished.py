"""What a shutdown waits for, over all applications and the server: requests in flight and work items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from .inflight import RequestInfo
from .server import Application, Server
from .state import logger
from .tally import Tally
from .text import Lines, visible
from .work import WorkInfo, WorkLedger

T = TypeVar("T")

# The stage of a request that the server runs and no ledger has.
UNCOUNTED = "uncounted"
# At most this many requests and work items are logged one by one, with their stacks.
_MOST_LOGGED = 50


@dataclass(eq=False, repr=False)
class Unfinished:
    """A snapshot of the requests and work items that have not ended."""

    requests: tuple[RequestInfo, ...] = ()
    work: tuple[WorkInfo, ...] = ()

    def __len__(self) -> int:
        return len(self.requests) + len(self.work)

    @classmethod
    def now(cls, applications: Sequence[Application], server: Server | None, stacks: bool = False) -> Unfinished:
        return cls(requests_now(applications, server, stacks), work_now(applications, stacks))

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
            logger.log(level, "%s %s%s%s", words, info, _and_more(others), stack, extra=extra)
        if len(entries) > _MOST_LOGGED:
            more = sum(1 + others for _info, others in entries[_MOST_LOGGED:])
            logger.log(level, "%s %d more", words, more, extra={"lifecycle_more": more})
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
        for info, others in _by_name(late):
            extra = {"lifecycle_work": info.name, "lifecycle_age": info.age}
            logger.error("abandoned %s%s", info, _and_more(others), extra=extra)
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
    ledgers = each_once(chain.from_iterable(work_ledgers(application) for application in applications))
    return tuple(info for ledger in ledgers for info in ledger.items(stacks))


def work_ledgers(application: Application) -> tuple[WorkLedger, ...]:
    return application.work, application.tasks


def ledgers(applications: Iterable[Application]) -> list[Tally]:
    """Everything that a drain waits for in the applications."""
    return each_once(each for application in applications for each in (application.ledger, *work_ledgers(application)))


def each_once(things: Iterable[T]) -> list[T]:
    """The things without repetitions, in their order."""
    return list({id(thing): thing for thing in things}.values())


def _and_more(others: int) -> str:
    return f" and {others} more of this name" if others else ""


def _by_name(work: Iterable[WorkInfo]) -> list[tuple[WorkInfo, int]]:
    """The oldest work item of each name, and how many others have that name."""
    groups: dict[str, list[WorkInfo]] = {}
    for info in work:
        groups.setdefault(info.name, []).append(info)
    return [(max(group, key=lambda info: info.age), len(group) - 1) for group in groups.values()]
