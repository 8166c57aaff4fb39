"""mod_wsgi: Apache stops its processes, and our hooks run when the interpreter ends.

On SIGWINCH (``apachectl graceful-stop``) Apache closes its listeners, completes the accepted requests, and then ends
the daemon process; on SIGTERM it cuts running requests. In embedded mode the application runs in Apache's own
processes, which may end at any time.

A process drained by an operator stays, because Apache would start another one in its place.
"""

from __future__ import annotations

import mod_wsgi

from .._core.server import ACCEPTED, STARTED
from .adapter import Adapter


def find() -> ModWsgi:
    """The adapter of this process; the module ``mod_wsgi`` exists only in mod_wsgi's own processes."""
    return ModWsgi()


class ModWsgi(Adapter):
    """mod_wsgi, in a daemon process or in embedded mode."""

    name = "mod_wsgi"
    means = "by its module 'mod_wsgi'"
    guarantee = ACCEPTED
    advice = "if Apache is stopped by SIGWINCH (graceful-stop); SIGTERM cuts off running requests"
    stays = True

    def __init__(self) -> None:
        if not getattr(mod_wsgi, "process_group", ""):
            self.guarantee, self.advice = STARTED, "not tested in embedded mode; use WSGIDaemonProcess"
