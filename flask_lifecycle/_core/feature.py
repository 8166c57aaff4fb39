"""What a setting can add to an application: metrics, a probe listener, messages to systemd, ..."""

from __future__ import annotations

from typing import Any

from .state import State


class Feature:
    """One feature of an application. Its module is imported only if a setting asks for it; see ``_app.FEATURES``."""

    def __init__(self, application: Any) -> None:
        self._application = application

    @classmethod
    def of(cls, application: Any) -> Feature:
        """The feature of an application: a new one, unless the applications of the process share one."""
        return cls(application)

    def open(self) -> None:
        """Bind the sockets it needs, before the application is ready. Idempotent.

        :raises OSError: it cannot.
        """

    def begin(self) -> None:
        """The process serves, or is about to. Called once, before the start-up, and not in testing mode."""

    def state_changed(self, new: State, reason: str) -> None:
        """The state has changed. Called in the thread that changed it, so it must not block."""

    def stop(self) -> None:
        """The shutdown is over: release everything. Idempotent."""

    def after_fork(self) -> None:
        """Start anew in a forked child."""
