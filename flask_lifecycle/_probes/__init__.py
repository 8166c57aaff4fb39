"""The health endpoints, their access rules, and their own listener."""

from __future__ import annotations
