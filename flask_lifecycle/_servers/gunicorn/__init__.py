"""gunicorn: the adapter in a worker, the master, and the memory that they share."""

from __future__ import annotations
