"""An application factory: one ``Lifecycle`` object for any number of applications.

Serve it with ::

    flask --app examples/factory.py lifecycle run -p 8000

Settings may come from the environment: ``FLASK_LIFECYCLE_GRACE_PERIOD=8`` sets ``LIFECYCLE_GRACE_PERIOD``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Flask

from flask_lifecycle import Lifecycle, ShutdownContext

logger = logging.getLogger(__name__)
lifecycle = Lifecycle()
site = Blueprint("site", __name__)
cache: dict[str, str] = {}


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.from_mapping(config or {})
    app.register_blueprint(site)
    lifecycle.init_app(app)
    return app


@site.get("/")
def index() -> str:
    return cache["greeting"]


@lifecycle.on_startup
def warm_cache() -> None:
    """Runs before the application is ready; until then ``/startupz`` and ``/readyz`` answer 503."""
    cache["greeting"] = "hello\n"


@lifecycle.check("cache", critical=False)
def cache_is_warm() -> dict[str, int]:
    """A check may return data. This one is not critical: it only warns."""
    if not cache:
        raise RuntimeError("the cache is empty")
    return {"entries": len(cache)}


@lifecycle.on_shutdown(timeout=2)
def save_cache(context: ShutdownContext) -> None:
    """The argument, if a function takes one, has the reason and the remaining seconds."""
    logger.warning("saving because of %s, %.1f s left", context.reason, context.remaining())
