"""What a probe is answered, the blueprint that names the probes, and the guard that refuses work.

Probes are answered by :class:`Probes`, which is plain WSGI: the middleware calls it ahead of the application, and the
probe listener serves the same. Neither pushes a request context, so nothing that an application does to requests
can break a probe: trusted hosts (a kubelet's ``Host`` is an IP address), HTTPS redirects, login guards, a session
store that is down. The blueprint gives the probes their URLs (``url_for("lifecycle.livez")``) and answers them alike
where a request comes to Flask by another way.

The guard is a ``before_request`` function that is put ahead of the application's own at the moment when new work is to
be refused, and not before: until then it would cost every request a call to find out that it has nothing to do.
"""

from __future__ import annotations

import functools
import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Blueprint, Flask, Response, request
from werkzeug import Response as BaseResponse
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from ._config import Settings
from ._state import ENDING, State, StateMachine
from .checks import CheckReport, overall

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HEALTH_JSON = "application/health+json"
JSON = "application/json"
TEXT = "text/plain"
_OFFERS = (HEALTH_JSON, JSON, TEXT)

_STATUS_LINES = {200: "200 OK", 404: "404 NOT FOUND", 405: "405 METHOD NOT ALLOWED", 503: "503 SERVICE UNAVAILABLE"}
_METHODS = "GET, HEAD"

# Which checks a probe asks: a group, or all of them.
_GROUPS: dict[str, str | None] = {"livez": "live", "readyz": "ready", "startupz": "startup", "healthcheck": None}


class Answer(NamedTuple):
    """A probe's answer before it is written down."""

    status: str
    state: State
    reason: str = ""
    checks: tuple[CheckReport, ...] = ()

    @property
    def code(self) -> int:
        return 503 if self.status == "fail" else 200


def answer(probe: str, machine: StateMachine, run: Callable[[str | None], tuple[CheckReport, ...]]) -> Answer:
    """What a probe says in a state: one row of the table in DESIGN, and the checks where it depends on them.

    :param run: runs the checks of a group; not called where the state alone decides.
    """
    while True:
        state, reason = machine.state, machine.reason
        alive = probe == "livez"
        started = probe == "startupz" and state is not State.STARTING
        if not alive and not started and state is not State.READY:
            return Answer("fail", state, reason)
        reports = run(_GROUPS[probe]) if not (started and machine.ending) else ()
        # A drain that began while a check was waited for makes another answer true.
        if machine.ending == (state in ENDING):
            return Answer(overall(reports), state, reason, reports)


class Probes:
    """The probes of one application as WSGI applications by path. Any thread may call them.

    :param nudge: called before each answer; begins the start-up where nothing else has.
    """

    def __init__(
        self,
        settings: Settings,
        machine: StateMachine,
        run: Callable[[str | None], tuple[CheckReport, ...]],
        nudge: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._run = run
        self._nudge = nudge
        self.by_path: dict[str, WSGIApplication] = {}
        self._names: dict[str, str] = {}  # by path as well
        for name, path in settings.probe_paths().items():
            self.by_path[path] = self.by_path[path + "/"] = functools.partial(self.serve, name)
            self._names[path] = self._names[path + "/"] = name
        self._mounts: frozenset[str] = frozenset()  # where else than at the root this application was found

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The probe listener: the probes, and 404 for all else."""
        probe = self.by_path.get(environ.get("PATH_INFO", ""))
        if probe is None:
            return _respond(environ, start_response, 404, TEXT, b"not found: only probes are answered here\n")
        return probe(environ, start_response)

    def lane(self, path: str) -> str | None:
        """The name of the probe that a request path asks for, wherever the application is mounted; else ``None``."""
        name = self._names.get(path)
        for mount in self._mounts:
            if name is None and path.startswith(mount):
                name = self._names.get(path[len(mount) :])
        return name

    def _learn_mount(self, environ: WSGIEnvironment) -> None:
        """Remember where the application is mounted.

        Only what is in the request line: a prefix that a forwarding header claims would let a client name any.
        """
        mount = environ.get("SCRIPT_NAME", "")
        if mount and mount not in self._mounts:
            target = environ.get("REQUEST_URI", "").partition("?")[0]
            if target == mount + environ["PATH_INFO"]:
                self._mounts |= {mount}

    def serve(self, probe: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one probe."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            allow = [("Allow", _METHODS)]
            return _respond(environ, start_response, 405, TEXT, b"probes answer GET and HEAD\n", allow)
        self._learn_mount(environ)
        self._nudge()
        result = answer(probe, self._machine, self._run)
        kind = negotiate(environ.get("HTTP_ACCEPT", ""))
        body = render(result, kind, self._details(environ))
        return _respond(environ, start_response, result.code, kind, body, [("Vary", "Accept, Authorization")])

    def _details(self, environ: WSGIEnvironment) -> bool:
        """Whether this caller may see more than the status."""
        policy, token = self._settings.details, self._settings.token
        if policy != "token" or token is None:
            return policy == "always"
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        # WSGI strings are latin-1; the comparison takes as long for a wrong token as for a right one.
        right = hmac.compare_digest(given.strip(" \t").encode("latin-1", "replace"), token.encode("utf-8"))
        return right and scheme.lower() == "bearer"


def negotiate(accept: str) -> str:
    """The best of what we offer, and the first of it rather than 406 if nothing suits."""
    if not accept or accept == "*/*":
        return HEALTH_JSON
    return parse_accept_header(accept, MIMEAccept).best_match(_OFFERS, HEALTH_JSON)


def render(result: Answer, kind: str, details: bool) -> bytes:
    """The body of an answer; without details it is the status alone."""
    if kind == TEXT:
        lines = [result.status]
        if details:
            lines += [f"state {result.state.value}: {result.reason}"]
            lines += [
                f"[{'-' if check.status == 'fail' else '+'}]{check.name} {check.status}" for check in result.checks
            ]
        return "".join(f"{line}\n" for line in lines).encode()
    document: dict[str, Any] = {"status": result.status}
    if details:
        document |= {"state": result.state.value, "reason": result.reason}
        document["checks"] = {check.name: [_component(check)] for check in result.checks}
    return _to_json(document) + b"\n"


def _to_json(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, default=str, allow_nan=False).encode()
    except ValueError:  # NaN or infinity was observed, for which JSON has no number
        return json.dumps(json.loads(json.dumps(document, default=str), parse_constant=str)).encode()


def _component(check: CheckReport) -> dict[str, Any]:
    component: dict[str, Any] = {"componentId": check.name, "status": check.status}
    component |= {"observedValue": round(check.duration * 1000, 1), "observedUnit": "ms"}
    if check.observed:
        component["observed"] = {str(key): value for key, value in check.observed.items()}
    if check.hanging:
        component["output"] = f"hanging since {check.duration:.1f} s"
    elif check.error is not None:
        component["output"] = type(check.error).__name__  # its text may hold hosts, users and DSNs: it is in the log
    return component


def _respond(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    code: int,
    kind: str,
    body: bytes,
    headers: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    start_response(
        _STATUS_LINES[code],
        [
            ("Content-Type", f"{kind}; charset=utf-8" if kind == TEXT else kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *headers,
        ],
    )
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


def make_blueprint(probes: Mapping[str, WSGIApplication], paths: Mapping[str, str]) -> Blueprint:
    """The probes as Flask views; ``paths`` by their names."""
    blueprint = Blueprint("lifecycle", __name__)
    for name, path in paths.items():

        def view(path: str = path) -> BaseResponse:
            return Response.from_app(probes[path], request.environ)

        blueprint.add_url_rule(path, name, view, strict_slashes=False, provide_automatic_options=False)
    return blueprint


def install_guard(app: Flask, remaining: Callable[[], float | None]) -> None:
    """Refuse every request that begins from now on, ahead of the application's own ``before_request`` functions."""

    def lifecycle_guard() -> Response:
        return refusal(remaining())

    # A new list in one assignment: a request that is iterating over the old one goes on with the old one.
    app.before_request_funcs[None] = [lifecycle_guard, *app.before_request_funcs.get(None, [])]


def refusal(remaining: float | None) -> Response:
    """503 as RFC 9457 has it. Another instance, or the next process here, can be asked again soon."""
    problem = {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": "This instance is shutting down and takes no new requests; try again.",
    }
    response = Response(json.dumps(problem), status=503, content_type="application/problem+json")
    # When this process is gone; a second where nobody knows.
    response.headers["Retry-After"] = str(max(1, round(remaining or 0)))
    response.headers["Cache-Control"] = "no-store"
    return response
