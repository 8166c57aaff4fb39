"""The health endpoints: who may see what, and the listener of their own."""

from __future__ import annotations
