"""mod_wsgi: Apache decides how it stops, and tells the application when its interpreter ends.

On SIGWINCH (``apachectl graceful-stop``) Apache closes its listeners, completes what it has, and then ends the daemon
process, where our hooks run; on SIGTERM it cuts what runs. An application in Apache's own processes (embedded mode) is
ended with them, at any time.

A process that was told to drain stays: Apache would start another in its place.
"""

from __future__ import annotations

import mod_wsgi

from ..._parties import ACCEPTED, STARTED
from . import Found


def find() -> FoundModWsgi:
    """The one whose process this is; nothing else has its module."""
    return FoundModWsgi()


class FoundModWsgi(Found):
    """mod_wsgi, in its daemon mode."""

    name = "mod_wsgi"
    means = "by its module 'mod_wsgi'"
    promise = ACCEPTED
    advice = "if Apache is stopped by SIGWINCH (graceful-stop); SIGTERM cuts what runs"
    stays = True

    def __init__(self) -> None:
        if not mod_wsgi.process_group:
            self.promise, self.advice = STARTED, "not tested in embedded mode; use WSGIDaemonProcess"
