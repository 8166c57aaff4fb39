"""Health checks: the engine that runs them, and ready-made ones.

From ``@lifecycle.check`` to a response: ``Registry.add`` (``_health.py``) keeps the :class:`Check` (``_check.py``). A
probe calls ``Health.report`` (``_health.py``), which lets the state decide first, and then ``Engine.run``
(``_engine.py``). That starts a thread for each check, whose return value ``as_result`` (``_returned.py``) turns into a
:class:`CheckResult`, and returns a :class:`CheckReport` for each. ``_probes/render.py`` makes the body of the
:class:`HealthReport`.

The ready-made checks, and the packages they need, are imported lazily.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._check import Check, CheckContext, CheckReport, CheckResult, HealthCheckError
from ._health import Group, HealthReport, Transition, check_changed, health_changed

if TYPE_CHECKING:
    from .celery import CeleryCheck
    from .certificate import CertificateCheck
    from .heartbeat import Heartbeat
    from .network import DNSCheck, HTTPCheck, TCPCheck
    from .redis import RedisCheck
    from .sql import DatabaseCheck, MigrationsCheck, PoolCheck
    from .system import DiskCheck, MaintenanceFileCheck, MemoryCheck, PathCheck
    from .workers import WorkerPoolCheck

_READY_MADE = {
    "CeleryCheck": "celery",
    "CertificateCheck": "certificate",
    "DNSCheck": "network",
    "DatabaseCheck": "sql",
    "DiskCheck": "system",
    "HTTPCheck": "network",
    "Heartbeat": "heartbeat",
    "MaintenanceFileCheck": "system",
    "MemoryCheck": "system",
    "MigrationsCheck": "sql",
    "PathCheck": "system",
    "PoolCheck": "sql",
    "RedisCheck": "redis",
    "TCPCheck": "network",
    "WorkerPoolCheck": "workers",
}

__all__ = [
    "CeleryCheck",
    "CertificateCheck",
    "Check",
    "CheckContext",
    "CheckReport",
    "CheckResult",
    "DNSCheck",
    "DatabaseCheck",
    "DiskCheck",
    "Group",
    "HTTPCheck",
    "HealthCheckError",
    "HealthReport",
    "Heartbeat",
    "MaintenanceFileCheck",
    "MemoryCheck",
    "MigrationsCheck",
    "PathCheck",
    "PoolCheck",
    "RedisCheck",
    "TCPCheck",
    "Transition",
    "WorkerPoolCheck",
    "check_changed",
    "health_changed",
]


def __getattr__(name: str) -> Any:
    if name not in _READY_MADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_READY_MADE[name]}", __name__), name)
