"""gunicorn -c examples/gunicorn/gunicorn.conf.py --chdir examples quickstart:app"""

from __future__ import annotations

from flask_lifecycle.gunicorn import *  # noqa: F403  the hooks, which gunicorn looks for by their names

bind = "127.0.0.1:8000"
workers = 2
worker_class = "gthread"
threads = 4
# From the end of the delay on: LIFECYCLE_GRACE_PERIOD less LIFECYCLE_SHUTDOWN_DELAY, or gunicorn kills first. The
# master leaves only then, so what supervises it waits for LIFECYCLE_GRACE_PERIOD and a second more.
graceful_timeout = 25
# Longer than the balancer keeps an idle connection: after gunicorn's own 2 s it would close one on which a request is
# just being sent.
keepalive = 120
