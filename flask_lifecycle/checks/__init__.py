"""Health checks: what they are, the engine that runs them, and ready-made ones.

The engine's theory of operation is at the head of ``_engine.py``, what a probe makes of its checks at that of
``_health.py``.
"""

from __future__ import annotations

from ._check import (
    DEFAULT_TIMEOUT,
    DEFAULT_TTL,
    Check,
    CheckContext,
    CheckResult,
    HealthCheckError,
    check_timeout,
    text_of,
)
from ._engine import App, CheckReport, Engine, overall
from ._health import (
    ALL,
    ALWAYS,
    LIVE,
    READY,
    STARTUP,
    Group,
    Health,
    HealthReport,
    Transition,
    check_changed,
    health_changed,
)
from ._registry import Registry

__all__ = [
    "ALL",
    "ALWAYS",
    "DEFAULT_TIMEOUT",
    "DEFAULT_TTL",
    "LIVE",
    "READY",
    "STARTUP",
    "App",
    "Check",
    "CheckContext",
    "CheckReport",
    "CheckResult",
    "Engine",
    "Group",
    "Health",
    "HealthCheckError",
    "HealthReport",
    "Registry",
    "Transition",
    "check_changed",
    "check_timeout",
    "health_changed",
    "overall",
    "text_of",
]
