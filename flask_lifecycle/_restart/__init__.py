"""Restart in place: ``--reload-on`` replaces the worker behind the same listener."""

from __future__ import annotations
