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

import binascii
import contextlib
import functools
import hmac
import http
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import parse_qs, unquote

from blinker import Namespace
from flask import Blueprint, Flask, Response, request
from werkzeug import Response as BaseResponse

from ._config import METRICS_PATH, Settings
from ._inflight import _quoted
from ._probers import Probers
from ._render import HEALTH_JSON, HTML, JSON, TEXT, negotiate, render, to_body, to_json
from ._self_test import MARK
from ._state import logger, send
from .checks import Group, HealthCheckError, HealthReport
from .checks._check import is_status_code
from .checks._engine import renewed_in_children
from .checks._health import ALL, LIVE, READY, STARTUP, Health
from .checks._registry import Registry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ._operators import Operators
    from ._page import StatusPage

_PLAIN = f"{TEXT}; charset=utf-8"
_STATUS_LINES = {status.value: f"{status.value} {status.phrase.upper()}" for status in http.HTTPStatus}
_METHODS = "GET, HEAD, OPTIONS"
_VARY = {"Vary": "Accept, Authorization"}
_CHALLENGE = 'Basic realm="flask_lifecycle", charset="UTF-8"'
_SIGN_IN = b"Sign in with any user name, and the token as the password.\n"
# A body after one of these would be read as the beginning of the next answer. RFC 9110, 15.3.5, 15.3.6 and 15.4.5.
_BODILESS = (204, 205, 304)

# At so many places an application is remembered to be mounted. Where the first part of a path is a tenant, or anything
# a client likes, each would be one more, and every request is compared with all of them.
_MOUNTS = 16

# An answer that takes longer may be too late for its prober: a kubelet waits a second by default. In seconds.
_SLOW = 0.5
# Once may be somebody who was interrupted.
_HANG_UPS = 2

# What is below the status page, at "/-/", with the lane of each: a question that is held keeps no style sheet waiting.
_PARTS = {"feed": "watch", "status.css": "page", "status.js": "page"}

# Which group a probe of LIFECYCLE_PATHS asks.
_GROUPS = {"livez": LIVE, "readyz": READY, "startupz": STARTUP, "healthcheck": ALL}

# Answers a request, or returns ``None`` where there is nothing for this caller: whoever answers for what is not there
# does so. A 403, and even a 404 of our own, would say that there is such a check.
Probe: TypeAlias = "Callable[[WSGIEnvironment, StartResponse], Iterable[bytes] | None]"

STATUS_CODES = {"pass": 200, "warn": 200, "fail": 503}

probe_refused = Namespace().signal(
    "lifecycle-probe-refused",
    doc="""Sent for each probe that fails because of the drain. The sender is the application, ``group`` the name of the
    group that was asked.""",
)


class Probes:
    """The probes of one application as WSGI applications by path. Any thread may call them.

    :param sender: of the signal ``probe_refused``.
    :param nudge: called before each answer; begins the start-up where nothing else has.
    :param document: tells all that may be told to whoever may see details; see ``_status.py``.
    :param page: the status page.
    :param ledger: in which each visit is noted.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        health: Health,
        sender: Any,
        nudge: Callable[[], None],
        document: Callable[[HealthReport], Mapping[str, Any]],
        page: Callable[[], StatusPage],
        ledger: Probers,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._health = health
        self._sender = sender
        self._nudge = nudge
        self._document = document
        self._ledger = ledger
        self._impatience_told = False
        self._page = page
        self._unrendered: set[str] = set()  # the groups whose own body could not be made
        self._forget()
        renewed_in_children.add(self)
        self.by_path: dict[str, Probe] = {}
        self.beside: dict[str, WSGIApplication] = {}  # what the probe listener alone serves, by path
        self._lanes: dict[str, str] = {}  # by path as well
        self._mounts: frozenset[str] = frozenset()  # where else than at the root this application was found
        self.operators: Operators | None = None
        self.update()

    def _forget(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._counting = threading.Lock()  # guards _counts

    def after_fork(self) -> None:
        """The child has answered none; and another thread may have held the lock when it was forked."""
        self._forget()

    # -- where --------------------------------------------------------------------------------------------------

    def judge(self, groups: dict[str, Group]) -> None:
        """Refuse a group that cannot be served under the settings of this application.

        :raises ValueError: its path is taken by another probe, or its details ask for a token and there is none.
        """
        taken = {self.fold(path) for path in self._settings.probe_paths().values()}
        if self._settings.metrics:
            taken.add(METRICS_PATH)
        for name, group in groups.items():
            if group.details == "token" and self._settings.token is None:
                raise ValueError(
                    f"The details of the group '{name}' are for a 'token', but 'LIFECYCLE_TOKEN' is not set;"
                    " set it to a long secret."
                )
            path = group.path and self.fold(self._settings.url_prefix + group.path)
            if path in taken:
                raise ValueError(f"There is a probe at '{path}' already; give the group '{name}' another path.")
            if path is not None:
                taken.add(path)

    def update(self) -> None:
        """Take up the groups and checks that were registered; paths only ever come."""
        groups = self._registry.groups()
        paths = {_GROUPS[name]: path for name, path in self._settings.probe_paths().items()}
        paths |= {name: self._settings.url_prefix + group.path for name, group in groups.items() if group.path}
        found = {self.fold(path): (name, functools.partial(self.serve, name, None)) for name, path in paths.items()}
        for part, lane in _PARTS.items():
            at = self.fold(f"{paths[ALL]}/-/{part}")
            found.setdefault(at, (lane, functools.partial(self._serve_part, part)))
        for name, path in paths.items():
            for check in self._registry.checks():
                if name == ALL or name in check.groups:
                    at = f"{path}/{check.name}".encode("utf-8", "replace").decode("latin-1")  # as PATH_INFO has it
                    # A group's own path goes before, and what belongs to the status page.
                    found.setdefault(self.fold(at), ("component", functools.partial(self.serve, name, check.name)))
        for path, (lane, probe) in found.items():
            for each in (path, f"{path}/"):
                self.by_path[each] = probe
                self._lanes[each] = lane

    def fold(self, path: str) -> str:
        """A path as it is looked up."""
        return path.lower() if self._settings.case_insensitive else path

    def find(self, path: str) -> Probe | None:
        """The probe at a path, if there is one."""
        return self.by_path.get(self.fold(path))

    def lane(self, path: str) -> str | None:
        """The name of the probe that a request path asks for, wherever the application is mounted; else ``None``."""
        path = self.fold(path)
        lane = self._lanes.get(path)
        for mount in self._mounts:
            if lane is None and path.startswith(mount):
                lane = self._lanes.get(path[len(mount) :])
        return lane

    def is_probe(self, path: str) -> bool:
        """Whether a request path asks for a probe."""
        return self.lane(path) is not None

    def _learn_mount(self, environ: WSGIEnvironment) -> None:
        """Remember where the application is mounted.

        Only what is in the request line: a prefix that a forwarding header claims would let a client name any.
        """
        mount = environ.get("SCRIPT_NAME", "")
        if mount and len(self._mounts) < _MOUNTS and self.fold(mount) not in self._mounts:
            target = unquote(environ.get("REQUEST_URI", "").partition("?")[0], "latin-1")
            if target == mount + environ["PATH_INFO"]:
                self._mounts |= {self.fold(mount)}

    # -- what ---------------------------------------------------------------------------------------------------

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The probe listener: the probes, what is served beside them, what operators ask for, and 404 for all else."""
        path = environ.get("PATH_INFO", "")
        beside = self.beside.get(path)
        if beside is not None:
            return beside(environ, start_response)
        probe = self.find(path)
        answer = probe(environ, start_response) if probe is not None else self._operate(environ, start_response)
        return self._not_found(environ, start_response) if answer is None else answer

    def _operate(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes] | None:
        """Do what an operator asks, if there is such a thing at this path and for this caller."""
        if self.operators is None or not bears(environ, self._settings.token):
            return None
        how = self._registry.groups()[ALL]

        def respond(code: int, text: str, **headers: str) -> Iterable[bytes]:
            return self._respond(environ, start_response, how, code, _PLAIN, f"{text}\n".encode(), headers)

        return self.operators(self.fold(environ.get("PATH_INFO", "")), environ, respond)

    def serve(
        self, group: str, component: str | None, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes] | None:
        """Answer one probe; ``None`` for a component that the caller may not see."""
        how = self._registry.groups()[group]
        details = self._details(how, environ)
        if component is not None and not details:
            return None
        began = self._ledger.clock()
        if MARK in environ:
            environ[MARK].append(group)
        respond = functools.partial(self._respond, environ, start_response, how, counted=MARK not in environ)
        refused = _refused(environ["REQUEST_METHOD"], respond)
        if refused is not None:
            return refused
        self._learn_mount(environ)
        self._nudge()
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        if "login" in query and not details and self._lets_in(how, environ):
            return respond(401, _PLAIN, _SIGN_IN, {"WWW-Authenticate": _CHALLENGE, **_VARY})
        # For others it would be a way to find out by trial which checks there are, and which of them fails.
        exclude = query.get("exclude", ()) if details else ()
        known = {check.name for check in self._registry.checks()}
        for name in exclude:
            if name not in known:
                return respond(404, _PLAIN, f"there is no check {name!r} to exclude\n".encode())
        report = self._health.report(group, component, exclude)
        if report.draining:
            send(probe_refused, self._sender, group=group)
        if details:
            report = report._replace(details=True)
        kind, body, headers = self._body(report, how, environ, "verbose" in query)
        code = self._code(report, how)
        if MARK not in environ:
            self._note(group if component is None else f"{group}/{component}", environ, report.status, code, began)
        return respond(code, kind, body, _VARY | headers)

    def _note(self, asked: str, environ: WSGIEnvironment, status: str, code: int, began: float) -> None:
        """Note who has come, and whether he had the patience to wait for the answer."""
        prober = self._ledger.note(asked, environ, status, code >= 400)
        took = self._ledger.clock() - began
        if took < _SLOW or prober is None or prober.is_browser or self._impatience_told:
            return
        from ._hangup import hang_up, impatience  # few answers are slow

        found = hang_up(environ, took)
        if found is None or found.waited > self._settings.probe_timeout:
            return
        prober.left += 1
        if prober.left < _HANG_UPS:
            return
        self._impatience_told = True
        # In a thread of its own: a handler of the log that blocks would hold the lane of the probe.
        told = impatience(prober, _quoted(environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]), found, took)
        with contextlib.suppress(RuntimeError):  # no thread to be had: it is the next one's turn
            threading.Thread(target=logger.warning, args=("%s", told), name="lifecycle-advice", daemon=True).start()

    def _serve_part(self, part: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes] | None:
        """Answer for what belongs to the status page; where nobody may see that, there is nothing."""
        how = self._registry.groups()[ALL]
        if self._policy(how) == "never":
            return None
        respond = functools.partial(self._respond, environ, start_response, how)
        refused = _refused(environ["REQUEST_METHOD"], respond)
        if refused is not None:
            return refused
        self._learn_mount(environ)
        if part != "feed":
            kind, data, headers = self._page().part(part, environ)
            return respond(200, kind, data, headers)
        self._nudge()
        if not self._details(how, environ):
            return respond(200, f"{HTML}; charset=utf-8", render(self._health.report(ALL), HTML), _VARY)
        return self._page().feed(environ, lambda kind, body, headers: respond(200, kind, body, _VARY | headers))

    def _details(self, how: Group, environ: WSGIEnvironment) -> bool:
        """Whether this caller may see more than the status."""
        policy, token = self._policy(how), self._settings.token
        if policy != "token" or token is None:
            return policy == "always"
        return bears(environ, token) or signed_in(environ, token)

    def _policy(self, how: Group) -> str:
        return how.details or self._settings.details

    def _lets_in(self, how: Group, environ: WSGIEnvironment) -> bool:
        """Whether a caller may be asked to sign in: somebody with a browser, and never a prober."""
        page = how.name == ALL and negotiate(environ.get("HTTP_ACCEPT", "")) == HTML
        return page and environ["REQUEST_METHOD"] == "GET" and self._policy(how) == "token"

    def _code(self, report: HealthReport, how: Group) -> int:
        for error in _decisive(report):
            code = error.status_code
            if code is not None and is_status_code(code):  # of a subclass it may be anything
                return code
        return (STATUS_CODES | dict(self._settings.status_codes) | dict(how.status_codes or {}))[report.status]

    def _body(
        self, report: HealthReport, how: Group, environ: WSGIEnvironment, verbose: bool
    ) -> tuple[str, bytes, dict[str, str]]:
        """The body of a probe's answer with its content type, and the headers that it wants."""
        try:
            made = self._replacement(report, how)
            if made is not None:
                return *to_body(made), {}
        except Exception:
            self._log_unrendered(how.name)
        kind = negotiate(environ.get("HTTP_ACCEPT", ""), verbose)
        if report.details and report.group == ALL and report.component is None:
            if verbose and kind in (JSON, HEALTH_JSON):
                return kind, to_json(self._document(report)), {}
            if kind == HTML:
                try:
                    return self._page().answer(report, environ)
                except Exception:  # a probe is answered all the same
                    self._log_unrendered("the status page")
        sign_in = "?login" if not report.details and self._lets_in(how, environ) else ""
        body = render(report, kind, verbose, self._health.transitions() if verbose and report.details else (), sign_in)
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind, body, {}

    def _log_unrendered(self, name: str) -> None:
        if name not in self._unrendered:  # a probe is never logged, so this is once
            self._unrendered.add(name)
            logger.exception(
                "the body of '%s' could not be made; the default one is sent in its place", name,
                extra={"lifecycle_group": name},
            )  # fmt: skip

    def _replacement(self, report: HealthReport, how: Group) -> Any:
        """What the application itself wants to be sent; ``None`` for the default."""
        given = [error.response for error in _decisive(report) if error.response is not None]
        renderer = how.renderer or self._registry.renderer
        return given[0] if given else renderer(report) if renderer is not None else None

    def _count(self, group: str, code: int) -> None:
        with self._counting:
            self._counts[group, code] = self._counts.get((group, code), 0) + 1

    def counts(self) -> dict[tuple[str, int], int]:
        """How many probes were answered in this process, by the group that they asked and the status."""
        with self._counting:
            return self._counts.copy()

    def _not_found(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        how = self._registry.groups()[ALL]
        return self._respond(environ, start_response, how, 404, _PLAIN, b"not found: only probes are answered here\n")

    def _respond(
        self,
        environ: WSGIEnvironment,
        start_response: StartResponse,
        how: Group,
        code: int,
        kind: str,
        body: bytes,
        more: Mapping[str, str] = {},
        counted: bool = False,
    ) -> Iterable[bytes]:
        if counted:
            self._count(how.name, code)
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **more}
        if code in _BODILESS:
            body = b""
        if code not in (204, 304):  # which end with their headers; the third has a body of no length
            headers |= {"Content-Type": kind, "Content-Length": str(len(body))}
        for given in (self._settings.headers, how.headers or {}):
            # Replaced whatever the case it is written in.
            lower = {name.lower() for name in given}
            headers = {name: value for name, value in headers.items() if name.lower() not in lower} | dict(given)
        start_response(_STATUS_LINES.get(code, f"{code} UNKNOWN"), list(headers.items()))
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


def bears(environ: WSGIEnvironment, token: str | None) -> bool:
    """Whether a request bears this token; without a token none does."""
    scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    # WSGI strings are latin-1; the comparison takes as long for a wrong token as for a right one.
    right = hmac.compare_digest(given.strip(" \t").encode("latin-1", "replace"), (token or "").encode("utf-8"))
    return right and scheme.lower() == "bearer" and bool(token)


def signed_in(environ: WSGIEnvironment, token: str) -> bool:
    """Whether a browser sends this token, as the password of anybody.

    Good for looking, and for nothing else: a browser sends it along with whatever another site makes it send.
    """
    scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    try:
        _user, _, password = binascii.a2b_base64(given.strip(" \t").encode("ascii")).partition(b":")
    except ValueError:  # neither ASCII nor base64
        password = b""
    return hmac.compare_digest(password, token.encode("utf-8")) and scheme.lower() == "basic"


def _refused(method: str, respond: Callable[..., Iterable[bytes]]) -> Iterable[bytes] | None:
    """The answer to a method that is none of a probe's, or that only asks for them."""
    if method == "OPTIONS":
        return respond(204, _PLAIN, b"", {"Allow": _METHODS})
    if method not in ("GET", "HEAD"):
        return respond(405, _PLAIN, b"probes answer GET and HEAD\n", {"Allow": _METHODS})
    return None


def _decisive(report: HealthReport) -> list[HealthCheckError]:
    """The failures that make this probe fail and may say themselves how it is answered."""
    if report.draining:
        return []
    errors = [check.error for check in report.checks if check.status == "fail"]
    return [error for error in errors if isinstance(error, HealthCheckError)]


def make_blueprint(probes: WSGIApplication, paths: Mapping[str, str]) -> Blueprint:
    """The probes as Flask views; ``paths`` by their names."""
    blueprint = Blueprint("lifecycle", __name__)
    for name, path in paths.items():

        def view(path: str = path) -> BaseResponse:
            return Response.from_app(probes, {**request.environ, "PATH_INFO": path})

        blueprint.add_url_rule(path, name, view, strict_slashes=False, provide_automatic_options=False)
    return blueprint


def install_guard(app: Flask, remaining: Callable[[], float | None], count: Callable[[], None]) -> None:
    """Refuse every request that begins from now on, ahead of the application's own ``before_request`` functions."""

    def lifecycle_guard() -> Response:
        count()
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
