"""Werkzeug's development server that we did not start: ``flask run`` or ``run_simple``."""

from __future__ import annotations

from typing import Any

from werkzeug.serving import BaseWSGIServer

from . import Found, instances


def find() -> FoundWerkzeug | None:
    """The one in this process that is open."""
    return FoundWerkzeug() if any(_serves(server) for server in instances(BaseWSGIServer)) else None


class FoundWerkzeug(Found):
    """Werkzeug's development server, by ``flask run`` or ``run_simple``.

    A connection has a thread from its accept on and writes synchronously, so the ledger sees all that can be waited
    for; a silent connection holds such a thread for ever, so the threads themselves cannot be.
    """

    name = "werkzeug"
    advice = "'flask lifecycle run' has more"


def _serves(server: Any) -> bool:
    """Whether a Werkzeug server is open, and is not our own probe listener. One whose bind failed has no socket."""
    sock = getattr(server, "socket", None)
    return sock is not None and sock.fileno() >= 0 and not hasattr(server, "lifecycle_probes")
