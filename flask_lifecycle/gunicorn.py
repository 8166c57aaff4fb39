"""Hooks for ``gunicorn.conf.py``, with which a shutdown of gunicorn drops no requests::

    from flask_lifecycle.gunicorn import *

If you define one of these hooks yourself, call ours from it::

    from flask_lifecycle import gunicorn as lifecycle_hooks

    def worker_exit(server, worker):
        lifecycle_hooks.worker_exit(server, worker)
        ...
"""

from __future__ import annotations

from ._servers.gunicorn import (
    on_exit,
    post_fork,
    post_request,
    post_worker_init,
    pre_fork,
    when_ready,
    worker_exit,
)

__all__ = ["on_exit", "post_fork", "post_request", "post_worker_init", "pre_fork", "when_ready", "worker_exit"]
