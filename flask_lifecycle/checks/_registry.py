"""Which checks and groups there are."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from ._check import Check
from ._health import ALL, ALWAYS, Group, HealthReport


class Registry:
    """The checks and groups of one ``Lifecycle``, in the order of their registration. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both against two registrations of one name
        self._checks: dict[str, Check] = {}
        self._groups = {name: Group(name) for name in ALWAYS}
        self._set: set[str] = set()  # the groups that lifecycle.group() was called for
        self.renderer: Callable[[HealthReport], Any] | None = None  # of every group that has none of its own
        self._watchers: list[weakref.WeakMethod[Callable[[], Any]]] = []
        self._judges: list[weakref.WeakMethod[Callable[[dict[str, Group]], Any]]] = []

    def checks(self) -> tuple[Check, ...]:
        return tuple(self._checks.values())

    def groups(self) -> dict[str, Group]:
        return self._groups

    def watch(self, judge: Callable[[dict[str, Group]], Any], watcher: Callable[[], Any]) -> None:
        """Call methods as long as their object lives: a judge of the groups, now and before there is another; a watcher
        after each registration.

        :raises ValueError: the judge refuses a group.
        """
        judge(self._groups)
        self._judges.append(weakref.WeakMethod(judge))
        self._watchers.append(weakref.WeakMethod(watcher))

    def add(self, check: Check) -> None:
        """Register a check; the next probe sees it.

        :raises ValueError: the name is taken, or there is no such group.
        """
        with self._lock:
            if check.name in self._checks:
                raise ValueError(f"There is a check '{check.name}' already; give this one another name.")
            known = [name for name in self._groups if name != ALL]
            for group in check.groups:
                if group not in known:
                    raise ValueError(
                        f"The check '{check.name}' names the group {group!r}, which there is not; the groups are"
                        f" {', '.join(map(repr, known))}, and lifecycle.group() makes more."
                    )
            self._checks = self._checks | {check.name: check}
        self._tell()

    def set_group(self, group: Group) -> None:
        """Add a group, or say how one of those that are always there answers.

        :raises ValueError: there is one of this name already, or of this path.
        """
        with self._lock:
            if group.name in self._set:
                cure = "say all of it in one call" if group.name in ALWAYS else "give this one another name"
                raise ValueError(f"There is a group '{group.name}' already; {cure}.")
            if any(other.path == group.path is not None for other in self._groups.values()):
                raise ValueError(f"There is a group at '{group.path}' already; give '{group.name}' another path.")
            groups = self._groups | {group.name: group}
            for reference in self._judges:
                judge = reference()
                if judge is not None:
                    judge(groups)
            self._groups = groups
            self._set.add(group.name)
        self._tell()

    def _tell(self) -> None:
        for reference in self._watchers:
            watcher = reference()
            if watcher is not None:
                watcher()
