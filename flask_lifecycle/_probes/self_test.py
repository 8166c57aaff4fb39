"""The self-test: one probe as a kubelet sends it, through the whole application, at the start.

A kubelet asks by IP address, over plain HTTP, without cookies. A redirect to HTTPS, a check of hosts or a login that is
wrapped around the application after ``init_app`` answers in the probe's place, and the pod is restarted for no reason.
So the process tests this once, and logs the result.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask

from .._config import given_keys
from .._core.feature import Feature
from .._core.inflight import Ledger, count_around
from .._core.log import logger
from .._core.state import State

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .endpoints import Probes

# In the environ of the test's request: a list, to which the probe that answers adds the name of its group.
MARK = "flask_lifecycle.self_test"


def obstacle(app: WSGIApplication, path: str) -> str:
    """What answers a probe in its place, as the end of a sentence; empty if the probe answers."""
    from werkzeug.test import create_environ

    reached: list[str] = []  # a middleware may replace the environ
    headers = {"User-Agent": "kube-probe/1.30", "Accept": "*/*", "Connection": "close"}
    base = {"REMOTE_ADDR": "10.0.0.2", "wsgi.multithread": True, MARK: reached}
    environ = create_environ(path, "http://10.0.0.1:8080", headers=headers, environ_base=base)
    found = "is not answered at all"

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        nonlocal found
        location = next((f" to {value}" for name, value in headers if name.lower() == "location"), "")
        found = f"is answered {status}{location}"
        return lambda data: None

    try:
        result = app(environ, start_response)
        try:
            next(iter(result), b"")  # some applications call start_response only then
        finally:
            getattr(result, "close", lambda: None)()
    except Exception as error:
        found = f"fails with {type(error).__name__}"
    return "" if reached else f"{found} by {' around '.join(layers(app))}"


def layers(app: Any) -> list[str]:
    """The WSGI applications around each other, from the outside in, as far as they can be seen."""
    layers: list[str] = []
    app = getattr(app, "lifecycle_around", app)
    while app is not None and getattr(app, "__module__", "").partition(".")[0] != "flask_lifecycle":
        layers.append(getattr(app, "__qualname__", None) or type(app).__qualname__)
        inner = getattr(app, "__dict__", {})
        app = next((inner[name] for name in ("app", "wsgi_app", "application") if name in inner), None)
        app = getattr(app, "lifecycle_around", app)
        if len(layers) == 10:  # or the applications form a circle
            break
    return layers


class SelfTest(Feature):
    """``LIFECYCLE_SELF_TEST``: sends itself a probe when the start-up is over, and warns if something else answers."""

    _due = False

    def begin(self) -> None:
        self._due = True

    def state_changed(self, new: State, reason: str) -> None:
        if self._due:
            self._due = False
            if new in (State.READY, State.NOT_READY):
                threading.Thread(target=self.run, name="lifecycle-self-test", daemon=True).start()

    def run(self) -> None:
        path = self._application.settings.probe_paths()["livez"]
        found = obstacle(self._application.outermost, path)
        if found:
            logger.warning(
                "A probe as a kubelet sends it (GET %s to an IP address, by http, without cookies) %s;"
                " exempt the probes there, or wrap the application before init_app.",
                path, found, extra={"lifecycle_path": path},
            )  # fmt: skip


def check_setup(app: Flask, ledger: Ledger, probes: Probes, given: Mapping[str, Any]) -> None:
    """Warn of routes that probes replace and of settings that came too late; count what wraps the application.

    :param given: the keys of the configuration that the settings were read from.
    """
    if app.wsgi_app not in (ledger.innermost, ledger.outermost):
        app.wsgi_app = _count_around(app.wsgi_app, ledger)  # type: ignore[method-assign,assignment]
    routes = probes.replaced()
    if routes:
        logger.warning(
            "A probe answers GET at %s in place of the application's route; move the probe by 'LIFECYCLE_PATHS' or"
            " 'LIFECYCLE_URL_PREFIX', or remove the route.",
            " ".join(routes), extra={"lifecycle_routes": routes},
        )  # fmt: skip
    late = [key for key, value in given_keys(app.config).items() if key not in given or given[key] != value]
    if late:
        logger.warning(
            "%s was set after init_app, which reads the settings once, and has no effect; set it before.",
            " ".join(map(repr, late)), extra={"lifecycle_settings": late},
        )  # fmt: skip


def _count_around(around: WSGIApplication, ledger: Ledger) -> WSGIApplication:
    """Count the requests that something put around the application after ``init_app`` answers; warn of the first."""
    warned = threading.Lock()

    def warn() -> None:
        if warned.acquire(blocking=False):  # once
            names = " around ".join(layers(around))
            logger.warning(
                "%s answers requests by itself, around the application, and a shutdown waits for them;"
                " end them in an on_drain function, and call init_app after it.",
                names, extra={"lifecycle_around": names},
            )  # fmt: skip

    return count_around(around, ledger, warn)
