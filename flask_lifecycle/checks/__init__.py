"""Health checks: what they are, the engine that runs them, and ready-made ones.

The engine's theory of operation is at the head of ``_engine.py``, what a probe makes of its checks at that of
``_health.py``. The ready-made checks are imported when they are first asked for, and what they need when they first
run: an application that uses none pays for none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._check import Check, CheckContext, CheckResult, HealthCheckError
from ._engine import CheckReport
from ._health import Group, HealthReport, Transition, check_changed, health_changed

if TYPE_CHECKING:
    from .celery import CeleryCheck
    from .heartbeat import Heartbeat
    from .migrations import MigrationsCheck
    from .network import CertificateCheck, DNSCheck, HTTPCheck, TCPCheck
    from .redis import RedisCheck
    from .sql import DatabaseCheck, PoolCheck
    from .system import DiskCheck, MaintenanceFileCheck, MemoryCheck, PathCheck
    from .workers import WorkerPoolCheck

_READY_MADE = {
    "CeleryCheck": "celery",
    "CertificateCheck": "network",
    "DNSCheck": "network",
    "DatabaseCheck": "sql",
    "DiskCheck": "system",
    "HTTPCheck": "network",
    "Heartbeat": "heartbeat",
    "MaintenanceFileCheck": "system",
    "MemoryCheck": "system",
    "MigrationsCheck": "migrations",
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
