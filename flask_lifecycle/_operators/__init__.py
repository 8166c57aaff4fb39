"""Operators' requests to a running process: drain, cordon and uncordon, by HTTP or by file."""

from __future__ import annotations
