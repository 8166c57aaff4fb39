"""Monitors that run beside the application: systemd, stuck worker pools, crashes."""

from __future__ import annotations
