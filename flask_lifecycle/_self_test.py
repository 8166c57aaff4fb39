"""One probe as a kubelet sends it, through the whole application: does anything stand in its way?

A kubelet asks by IP address, over plain HTTP, without cookies. A redirect to HTTPS, a check of hosts or a login that is
wrapped around the application after ``init_app`` answers in the probe's place, and what that looks like in production
is a pod that is restarted for no reason. So the process asks itself first, once, and says what it found.
"""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

# In the environ of the test's request: a list, into which the probe that answers puts its name.
MARK = "flask_lifecycle.self_test"


def kubelet_request(path: str) -> WSGIEnvironment:
    """The environ of a kubelet's probe."""
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "REQUEST_URI": path,
        "SERVER_NAME": "10.0.0.1",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "flask_lifecycle",
        "REMOTE_ADDR": "10.0.0.2",
        "HTTP_HOST": "10.0.0.1:8080",
        "HTTP_USER_AGENT": "kube-probe/1.30",
        "HTTP_ACCEPT": "*/*",
        "HTTP_CONNECTION": "close",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        MARK: [],
    }


def obstacle(app: WSGIApplication, path: str) -> str:
    """What answers a probe in its place, in words; empty if the probe does."""
    environ = kubelet_request(path)
    reached: list[str] = environ[MARK]  # whatever becomes of the environ
    seen: list[str] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        location = next((f" to {value}" for name, value in headers if name.lower() == "location"), "")
        seen.append(f"is answered {status}{location}")
        return lambda data: None

    try:
        result = app(environ, start_response)
        try:
            for _chunk in result:
                break  # some applications call start_response only then
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
    except Exception as error:
        seen.append(f"fails with {type(error).__name__}")
    if reached:
        return ""
    return f"{seen[-1] if seen else 'is not answered at all'} by {' around '.join(_layers(app))}"


def _layers(app: Any) -> list[str]:
    """The WSGI applications around each other, from the outside in, as far as they can be seen."""
    layers: list[str] = []
    while app is not None and getattr(app, "__module__", "").partition(".")[0] != "flask_lifecycle":
        layers.append(getattr(app, "__qualname__", None) or type(app).__qualname__)
        inner = getattr(app, "__dict__", {})
        app = next((inner[name] for name in ("app", "wsgi_app", "application") if name in inner), None)
        if len(layers) == 10:  # or it goes round in circles
            break
    return layers
