"""Honest health probes for Flask, and a shutdown that loses nothing.

::

    from flask import Flask
    from flask_lifecycle import Lifecycle

    app = Flask(__name__)
    lifecycle = Lifecycle(app)

    @lifecycle.check("database", timeout=2)
    def database(): ...

    @lifecycle.on_shutdown
    def close_pool(): ...

Serve it with ``flask --app app lifecycle run``, or ``sys.exit(lifecycle.run(app).exit_code)``.

PYTEST_DONT_REWRITE: pytest would warn programs that import this package, which has a plugin, before they run pytest.
"""

from __future__ import annotations

from ._core.hooks import HookRecord, ShutdownContext
from ._core.inflight import RequestInfo
from ._core.report import PhaseRecord, ShutdownReport, shutdown_complete
from ._core.server import ServerInfo
from ._core.startup import StartupTask
from ._core.state import State, state_changed
from ._core.work import Work, WorkInfo
from ._extension import Lifecycle
from ._probes.clients import ProberInfo
from ._probes.endpoints import probe_refused
from .checks import (
    Check,
    CheckContext,
    CheckReport,
    CheckResult,
    HealthCheckError,
    HealthReport,
    Transition,
    check_changed,
    health_changed,
)

__all__ = [
    "Check",
    "CheckContext",
    "CheckReport",
    "CheckResult",
    "HealthCheckError",
    "HealthReport",
    "HookRecord",
    "Lifecycle",
    "PhaseRecord",
    "ProberInfo",
    "RequestInfo",
    "ServerInfo",
    "ShutdownContext",
    "ShutdownReport",
    "StartupTask",
    "State",
    "Transition",
    "Work",
    "WorkInfo",
    "check_changed",
    "health_changed",
    "probe_refused",
    "shutdown_complete",
    "state_changed",
]

__version__ = "0.1.0"
