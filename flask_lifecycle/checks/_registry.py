"""The registered checks and groups."""

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
        self._validators: list[weakref.WeakMethod[Callable[[dict[str, Group]], Any]]] = []
        self._listeners: list[weakref.WeakMethod[Callable[[], Any]]] = []

    def checks(self) -> tuple[Check, ...]:
        return tuple(self._checks.values())

    def groups(self) -> dict[str, Group]:
        return self._groups

    def watch(self, validate: Callable[[dict[str, Group]], Any], changed: Callable[[], Any]) -> None:
        """Call two methods while their object lives: one validates the groups, now and before one is added; the other
        is called after each registration.

        :raises ValueError: the first method rejects a group.
        """
        validate(self._groups)
        self._validators.append(weakref.WeakMethod(validate))
        self._listeners.append(weakref.WeakMethod(changed))

    def add(self, check: Check) -> None:
        """Register a check; the next probe runs it.

        :raises ValueError: the name is taken, or a group does not exist.
        """
        with self._lock:
            if check.name in self._checks:
                raise ValueError(
                    f"The check '{check.name}' is registered already; give this one another name. If a factory"
                    " registers it for each application, register it once, outside the factory."
                )
            known = [name for name in self._groups if name != ALL]
            for group in check.groups:
                if group not in known:
                    raise ValueError(
                        f"The check '{check.name}' names the group {group!r}, which does not exist; the groups are"
                        f" {', '.join(map(repr, known))}, and lifecycle.group() adds more."
                    )
            self._checks = self._checks | {check.name: check}
        self._publish()

    def set_group(self, group: Group) -> None:
        """Add a group, or configure one of the standard groups.

        :raises ValueError: the name or the path is taken.
        """
        with self._lock:
            if group.name in self._set:
                cure = "configure it in one call" if group.name in ALWAYS else "give this one another name"
                raise ValueError(f"The group '{group.name}' is configured already; {cure}.")
            if any(other.path == group.path is not None for other in self._groups.values()):
                raise ValueError(f"The path '{group.path}' has a group already; give '{group.name}' another path.")
            groups = self._groups | {group.name: group}
            for reference in self._validators:
                if (validate := reference()) is not None:
                    validate(groups)
            self._groups = groups
            self._set.add(group.name)
        self._publish()

    def _publish(self) -> None:
        for reference in self._listeners:
            if (changed := reference()) is not None:
                changed()
