"""gunicorn -c examples/gunicorn/gunicorn.conf.py --chdir examples quickstart:app"""

from __future__ import annotations

from flask_lifecycle.gunicorn import *  # noqa: F403  the hooks, which gunicorn looks for by their names

bind = "127.0.0.1:8000"
workers = 2
worker_class = "gthread"
threads = 4
# Starts after the delay: at least LIFECYCLE_GRACE_PERIOD minus LIFECYCLE_SHUTDOWN_DELAY, or gunicorn kills workers. The
# supervisor of the master must wait for LIFECYCLE_GRACE_PERIOD and a second more.
graceful_timeout = 25
# Longer than the load balancer keeps idle connections. With gunicorn's default of 2 s, gunicorn closes connections on
# which the load balancer is just sending a request.
keepalive = 120
