"""Health checks: the engine that runs them, and ready-made ones, which are imported lazily with what they need.

``docs/architecture.md`` follows a check from ``@lifecycle.check`` to the response of a probe.
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
    "celery": ("CeleryCheck",),
    "certificate": ("CertificateCheck",),
    "heartbeat": ("Heartbeat",),
    "network": ("DNSCheck", "HTTPCheck", "TCPCheck"),
    "redis": ("RedisCheck",),
    "sql": ("DatabaseCheck", "MigrationsCheck", "PoolCheck"),
    "system": ("DiskCheck", "MaintenanceFileCheck", "MemoryCheck", "PathCheck"),
    "workers": ("WorkerPoolCheck",),
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
    for module, names in _READY_MADE.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
