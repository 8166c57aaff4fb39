"""The servers that an application can run on: how each of them serves and how it stops.

Each server's module offers a few methods to the shutdown (:class:`flask_lifecycle._core.server.Server`), and contains
everything specific to its server. The shutdown knows no particular server, and the servers do not know its phases.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .adapter import ConnectionAdapter

# Servers that we start: the names of their modules here, of their packages, and of the extras that install these.
RUNNERS = ("waitress", "werkzeug", "cheroot", "gevent")

# Servers that we do not start, each with the command that does.
THEIRS = {
    "gunicorn": "gunicorn app:app' with 'from flask_lifecycle.gunicorn import *' in 'gunicorn.conf.py",
    "uvicorn": "uvicorn --interface wsgi app:app",
    "hypercorn": "hypercorn wsgi:app:app",
    "granian": "granian --interface wsgi app:app",
    "uwsgi": "uwsgi --ini uwsgi.ini' as in 'examples/uwsgi",
    "mod_wsgi": "apachectl start' with a configuration as in 'examples/mod_wsgi",
}


def create(
    server: str, app: WSGIApplication, host: str | None, port: int | None, options: dict[str, Any]
) -> ConnectionAdapter:
    """Make a server by its name, bound and listening.

    :param options: what else the server takes, by its own names.
    :raises ValueError: there is no such server, or it does not know an option.
    :raises RuntimeError: the package is not installed.
    :raises OSError: an address cannot be listened on.
    """
    if server not in RUNNERS:
        raise ValueError(f"{_not_here(server)} The servers that can be run here are {', '.join(RUNNERS)}.")
    if importlib.util.find_spec(server) is None:
        raise RuntimeError(
            f"The server '{server}' is not installed; install it with: pip install 'flask-lifecycle[{server}]'"
        )
    runner: ConnectionAdapter = importlib.import_module(f".{server}", __name__).create(app, host, port, options)
    return runner


def _not_here(server: str) -> str:
    """Why a server cannot be run by its name, and what to do."""
    import difflib  # for this sentence alone

    near = difflib.get_close_matches(str(server), (*RUNNERS, *THEIRS), n=1)
    name = near[0] if near else None
    cure = f"; did you mean '{name}'?" if name not in (None, server) else "."
    if name not in THEIRS:
        return f"There is no server '{server}'{cure}"
    unknown = f"There is no server '{server}'{cure} " if name != server else ""
    return f"{unknown}The server '{name}' starts itself, and init_app is enough there; start it by '{THEIRS[name]}'."
