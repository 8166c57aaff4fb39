"""The probes of an application: which paths they have, and what they answer.

The middleware answers probes ahead of the application, and the probe listener beside it. Neither pushes a request
context, so nothing that an application does to requests can break a probe: trusted hosts (a kubelet's ``Host`` is an IP
address), HTTPS redirects, login guards, a session store that is down.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from blinker import Namespace
from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from .._config import METRICS_PATH, TOGETHER, Settings
from .._core.fork import renew_in_children
from .._core.log import logger
from .._core.state import send
from ..checks import Group, HealthCheckError, HealthReport
from ..checks._check import is_status_code
from ..checks._health import ALL, LIVE, READY, STARTUP, Health, Registry
from .auth import CHALLENGE, has_bearer_token, has_password
from .clients import Probers
from .render import HEALTH_JSON, HTML, JSON, TEXT, negotiate, render, to_body, to_json
from .self_test import MARK

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_METHODS = ("GET", "HEAD", "OPTIONS")
_ALLOW = {"Allow": ", ".join(_METHODS)}
_VARY = {"Vary": "Accept, Authorization"}

# At most this many places are remembered at which the application is mounted. If the first part of a path is a tenant,
# or anything else that a client chooses, each would be one more, and every request is compared with all of them.
_MOUNTS = 16

# Longer headers and queries are not parsed, so that none costs a probe more than a millisecond. In characters:
_LONGEST_QUERY = 2048
_MOST_PARAMETERS = 128
_LONGEST_PATH = 1024

# What is below the status page, at "/-/".
PARTS = ("feed", "status.css", "status.js")

# Which group a probe of LIFECYCLE_PATHS asks.
_GROUPS = {"livez": LIVE, "readyz": READY, "startupz": STARTUP, "healthcheck": ALL}

STATUS_CODES = {"pass": 200, "warn": 200, "fail": 503}

# Answers a request, or returns ``None`` if there is nothing at its path for this caller: then the application answers.
# A 403, and even a 404 of our own, would reveal that there is a check of that name.
Handler: TypeAlias = "Callable[[Request], Response | None]"

probe_refused = Namespace().signal(
    "lifecycle-probe-refused",
    doc="""Sent for each probe that fails because of the drain. The sender is the application, ``group`` the name of the
    group that was asked.""",
)


@dataclasses.dataclass(eq=False, repr=False)
class Endpoint:
    """What is served at one path, as the middleware calls it."""

    probes: Probes
    group: str
    component: str | None = None  # the name of a check, if only that one is asked
    part: str | None = None  # a file of the status page, or its feed
    worker: str | None = None  # the dedicated worker that answers it, on servers that have some

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes] | None:
        response = self.probes.answer(self, Request(environ))
        return None if response is None else response(environ, start_response)


class Probes:
    """The probes of one application. Any thread may call them.

    :param application: the ``Application``, which is in a layer above this one.
    """

    def __init__(self, application: Any) -> None:
        self._application = application
        self._settings: Settings = application.settings
        self._registry: Registry = application.registered.checks
        self._health: Health = application.health
        self.timeout = self._settings.probe_timeout  # seconds for an answer
        self.probers = Probers()
        self._unrendered: set[str] = set()  # the groups whose own body failed
        self.by_path: dict[str, Endpoint] = {}
        self.listener_only: dict[str, Handler] = {}  # what the probe listener alone serves, by path
        self.operators: dict[str, Handler] = {}  # likewise, for requests with the token
        self._mounts: frozenset[str] = frozenset()  # where else than at the root the application has been reached
        self.after_fork()
        renew_in_children(self.after_fork)
        self.update()

    def after_fork(self) -> None:
        """The child has answered no probes; another thread may have held the lock when it was forked."""
        self._counts: dict[tuple[str, int], int] = {}
        self._counting = threading.Lock()  # guards _counts

    # -- paths --------------------------------------------------------------------------------------------------

    def validate(self, groups: dict[str, Group]) -> None:
        """Raise :exc:`ValueError` for a group whose path is taken, or whose details need a token that is not set."""
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
        """Add the paths of the groups and checks that were registered; no path is ever removed."""
        groups = self._registry.groups()
        paths = {_GROUPS[name]: path for name, path in self._settings.probe_paths().items()}
        paths |= {name: self._settings.url_prefix + group.path for name, group in groups.items() if group.path}
        found = {self.fold(path): Endpoint(self, name, worker=name) for name, path in paths.items()}
        for part in PARTS:
            found.setdefault(self.fold(f"{paths[ALL]}/-/{part}"), Endpoint(self, ALL, part=part, worker="page"))
        for name, path in paths.items():
            # If a caller may not see the checks, the speed of a dedicated worker would reveal which ones exist.
            worker = "component" if self._policy(groups[name]) == "always" else None
            for check in self._registry.checks():
                if name == ALL or name in check.groups:
                    at = f"{path}/{check.name}".encode("utf-8", "replace").decode("latin-1")  # as PATH_INFO has it
                    found.setdefault(self.fold(at), Endpoint(self, name, check.name, worker=worker))
        for path, endpoint in found.items():
            self.by_path[path] = self.by_path[f"{path}/"] = endpoint

    def fold(self, path: str) -> str:
        """A path as a key of ``by_path``."""
        return path.lower() if self._settings.case_insensitive and len(path) <= _LONGEST_PATH else path

    def find(self, path: str) -> Endpoint | None:
        """The probe at a path, if there is one."""
        return self.by_path.get(self.fold(path))

    def worker(self, path: str) -> str | None:
        """The dedicated worker for a request path, wherever the application is mounted; ``None`` if it has none."""
        endpoint = self.by_path.get(path)
        if endpoint is None and (self._mounts or self._settings.case_insensitive):  # else two calls fewer per request
            endpoint = self._find_mounted(path)
        return None if endpoint is None else endpoint.worker

    def is_probe(self, path: str) -> bool:
        """Whether a request path is a probe's, wherever the application is mounted."""
        if self._mounts or self._settings.case_insensitive:  # else an access log has two calls fewer per request
            return self._find_mounted(path) is not None
        return path in self.by_path

    def _find_mounted(self, path: str) -> Endpoint | None:
        path = self.fold(path)
        found = self.by_path.get(path)
        for mount in () if found else self._mounts:
            if path.startswith(mount) and (found := self.by_path.get(path[len(mount) :])):
                break
        return found

    def _learn_mount(self, environ: WSGIEnvironment) -> None:
        """Remember where the application is mounted.

        Only what is in the request line: a prefix from a forwarding header would let a client choose any.
        """
        mount = environ.get("SCRIPT_NAME", "")
        if not mount or len(mount) > _LONGEST_PATH or len(self._mounts) >= _MOUNTS:
            return
        if self.fold(mount) not in self._mounts:
            path = mount + environ["PATH_INFO"]
            target = environ.get("REQUEST_URI", "").partition("?")[0]
            if len(target) <= 3 * len(path) and unquote(target, "latin-1") == path:  # "%41" for an "A"
                self._mounts |= {self.fold(mount)}

    def replaced(self) -> list[str]:
        """The routes of the application that probes answer in its place."""
        return [
            rule.rule
            for rule in self._application.flask.url_map.iter_rules()
            if not rule.endpoint.startswith("lifecycle.")
            and (rule.methods is None or "GET" in rule.methods)
            # Callers who may not see a check get the application's route.
            and (probe := self.find(rule.rule)) is not None
            and probe.worker is not None
        ]

    def _is_routed(self, environ: WSGIEnvironment) -> bool:
        """Whether the application has a route of its own for this method and path."""
        path = environ.get("PATH_INFO", "").encode("latin-1", "replace").decode("utf-8", "replace")
        try:
            routes = self._application.flask.url_map.bind("localhost")
            rule, _values = routes.match(path, method=environ["REQUEST_METHOD"], return_rule=True)
        except RequestRedirect:
            return True
        except HTTPException:
            return False
        return not str(rule.endpoint).startswith("lifecycle.")

    # -- the probe listener ---------------------------------------------------------------------------------------

    def handler(self, path: str) -> Handler | None:
        """What the probe listener serves at a path: a probe, what it alone serves, or what operators may request."""
        endpoint = self.find(path)
        if endpoint is not None:
            return lambda request: self.answer(endpoint, request, routed=True)
        handler = self.listener_only.get(path)
        if handler is not None:
            return handler
        action = self.operators.get(self.fold(path))
        return None if action is None else lambda request: self._operate(action, request)

    def _operate(self, action: Handler, request: Request) -> Response | None:
        token = self._settings.token
        if token is None or not has_bearer_token(request.environ.get("HTTP_AUTHORIZATION", ""), token):
            return None
        response = action(request)
        return None if response is None else self._complete(response, self._registry.groups()[ALL])

    def not_found(self) -> Response:
        """The probe listener's answer to all other paths."""
        return self._complete(
            text_response(404, "not found: only probes are answered here"), self._registry.groups()[ALL]
        )

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, endpoint: Endpoint, request: Request, *, routed: bool = False) -> Response | None:
        """Answer a probe; ``None`` for what this caller may not see.

        :param routed: the request will not reach a route of the application if this returns ``None``.
        """
        how = self._registry.groups()[endpoint.group]
        if endpoint.part is not None:
            response = self._answer_part(endpoint.part, how, request)
        else:
            response = self._answer_probe(endpoint, how, request, routed)
        return None if response is None else self._complete(response, how)

    def _answer_probe(self, endpoint: Endpoint, how: Group, request: Request, routed: bool) -> Response | None:
        environ = request.environ
        details = self._sees_details(how, environ)
        if endpoint.component is not None and not details:
            return None
        if environ["REQUEST_METHOD"] not in _METHODS and not routed and self._is_routed(environ):
            return None
        tests = environ.get(MARK)
        if tests is not None:
            tests.append(how.name)
        response = _answer_method(environ) or self._report(endpoint, how, request, details)
        if tests is None:
            with self._counting:
                key = (how.name, response.status_code)
                self._counts[key] = self._counts.get(key, 0) + 1
        return response

    def _answer_part(self, part: str, how: Group, request: Request) -> Response | None:
        """A file or the feed of the status page; ``None`` where no caller may see the page."""
        environ = request.environ
        if self._policy(how) == "never":
            return None
        refused = _answer_method(environ)
        if refused is not None:
            return refused
        self._learn_mount(environ)
        if part != "feed":
            asset: Response = self._application.asset(part, environ.get("QUERY_STRING", ""))
            return asset
        self._application.startup.ensure()
        report = self._health.report(ALL)
        if not self._sees_details(how, environ):
            return Response(render(report, HTML), 200, _VARY, mimetype=HTML)
        page: Response = self._application.page(report._replace(details=True), environ["PATH_INFO"])
        page.headers.update(_VARY)
        return page

    def _report(self, endpoint: Endpoint, how: Group, request: Request, details: bool) -> Response:
        environ = request.environ
        self._learn_mount(environ)
        self._application.startup.ensure()
        query = environ.get("QUERY_STRING", "")
        if len(query) > _LONGEST_QUERY or query.count("&") >= _MOST_PARAMETERS:
            return text_response(414, "the query string is too long")
        parameters: Mapping[str, Any] = request.args if query else {}
        if "login" in parameters and not details and self._may_sign_in(how, environ):
            headers = {"WWW-Authenticate": CHALLENGE, **_VARY}
            return text_response(401, "Sign in with any user name, and the token as the password.", headers)
        # Otherwise callers who may not see the checks could find out their names and which one fails.
        exclude = frozenset(request.args.getlist("exclude") if details and query else ())
        unknown = sorted(exclude - self._names(environ)) if exclude else ()
        if unknown:
            return text_response(404, f"there is no check {unknown[0]!r} to exclude")
        report = self._health.report(how.name, endpoint.component, exclude)
        if report.draining:
            send(probe_refused, self._application.flask, group=how.name)
        if details:
            report = report._replace(details=True)
        response = self._body(report, how, environ, "verbose" in parameters)
        response.status_code = self._status_code(report, how)
        response.headers.update(_VARY)
        if MARK not in environ:
            asked = how.name if endpoint.component is None else f"{how.name}/{endpoint.component}"
            self.probers.note(asked, environ, report.status, response.status_code >= 400)
        return response

    def _names(self, environ: WSGIEnvironment) -> set[str]:
        """The checks of this application, and of those that answer the same request of the probe listener."""
        return {name for probes in environ.get(TOGETHER, (self,)) for name in probes.visible_names(environ)}

    def visible_names(self, environ: WSGIEnvironment) -> set[str]:
        """The names of the checks, if this caller may see them."""
        visible = self._sees_details(self._registry.groups()[ALL], environ)
        return {check.name for check in self._registry.checks()} if visible else set()

    def _sees_details(self, how: Group, environ: WSGIEnvironment) -> bool:
        """Whether this caller may see more than the status."""
        policy, token = self._policy(how), self._settings.token
        if policy != "token" or token is None:
            return policy == "always"
        header = environ.get("HTTP_AUTHORIZATION", "")
        return has_bearer_token(header, token) or has_password(header, token)

    def _policy(self, how: Group) -> str:
        return how.details or self._settings.details

    def _may_sign_in(self, how: Group, environ: WSGIEnvironment) -> bool:
        """Whether to offer a sign-in: to a browser that asks for the status page, never to a prober."""
        page = how.name == ALL and negotiate(environ.get("HTTP_ACCEPT", "")) == HTML
        return page and environ["REQUEST_METHOD"] == "GET" and self._policy(how) == "token"

    def _status_code(self, report: HealthReport, how: Group) -> int:
        for error in _decisive(report):
            code = error.status_code
            if code is not None and is_status_code(code):  # of a subclass it may be anything
                return code
        return (STATUS_CODES | dict(self._settings.status_codes) | dict(how.status_codes or {}))[report.status]

    def _body(self, report: HealthReport, how: Group, environ: WSGIEnvironment, verbose: bool) -> Response:
        """A response with the body of a report: the application's own, or the default."""
        try:
            made = self._replacement(report, how)
            if made is not None:
                kind, body = to_body(made)
                return Response(body, content_type=kind)
        except Exception:
            self._log_unrendered(how.name)
        kind = negotiate(environ.get("HTTP_ACCEPT", ""), verbose)
        if report.details and report.group == ALL and report.component is None:
            if verbose and kind in (JSON, HEALTH_JSON):
                return Response(to_json(self._application.document(report)), content_type=kind)
            if kind == HTML:
                try:
                    page: Response = self._application.page(report, environ["PATH_INFO"])
                    return page
                except Exception:  # a probe is answered all the same
                    self._log_unrendered("the status page")
        sign_in = "?login" if not report.details and self._may_sign_in(how, environ) else ""
        transitions = self._health.transitions() if verbose and report.details else ()
        return Response(render(report, kind, verbose, transitions, sign_in), mimetype=kind)

    def _replacement(self, report: HealthReport, how: Group) -> Any:
        """The body that the application itself wants; ``None`` for the default."""
        given = [error.response for error in _decisive(report) if error.response is not None]
        renderer = how.renderer or self._registry.renderer
        return given[0] if given else renderer(report) if renderer is not None else None

    def _log_unrendered(self, name: str) -> None:
        if name not in self._unrendered:  # a probe is never logged, so this is once
            self._unrendered.add(name)
            logger.exception(
                "the body of '%s' could not be made; the default one is sent in its place", name,
                extra={"lifecycle_group": name},
            )  # fmt: skip

    def _complete(self, response: Response, how: Group) -> Response:
        """Add the headers that every answer has; configured ones replace ours."""
        headers, code = response.headers, response.status_code
        headers.setdefault("Cache-Control", "no-store")
        headers["X-Content-Type-Options"] = "nosniff"
        if code in (204, 304):  # Werkzeug sends these without a body, and with the type of one
            del headers["Content-Type"]
        elif code == 205:  # RFC 9110, 15.3.6: a body would be read as the beginning of the next answer
            response.set_data(b"")
        headers.update(self._settings.headers)
        headers.update(how.headers or {})
        return response

    def counts(self) -> dict[tuple[str, int], int]:
        """How many probes were answered in this process, by their group and status code."""
        with self._counting:
            return self._counts.copy()


def text_response(code: int, text: str, headers: Mapping[str, str] = {}) -> Response:
    return Response(f"{text}\n", code, headers, mimetype=TEXT)


def _answer_method(environ: WSGIEnvironment) -> Response | None:
    """The answer to OPTIONS, and to a method that probes do not have; ``None`` for GET and HEAD."""
    method = environ["REQUEST_METHOD"]
    if method in ("GET", "HEAD"):
        return None
    return (
        Response("", 204, _ALLOW) if method == "OPTIONS" else text_response(405, "probes answer GET and HEAD", _ALLOW)
    )


def _decisive(report: HealthReport) -> list[HealthCheckError]:
    """The failures that make this probe fail and may choose its status code and body."""
    if report.draining:
        return []
    errors = [check.error for check in report.checks if check.status == "fail"]
    return [error for error in errors if isinstance(error, HealthCheckError)]
