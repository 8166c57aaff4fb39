"""The status page: what it shows, to whom, and what a browser is let do with it."""

from __future__ import annotations

import base64
import functools
import logging
import re
import socket
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse

from flask_lifecycle import CheckResult, HealthCheckError, Lifecycle
from tests import _fakes
from tests._fakes import ROOT, LastReport, enter, listener_of, raiser, state_of

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ASSETS = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8"}
NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"


serve = functools.partial(_fakes.serve, LIFECYCLE_DETAILS="always")


def get(app: Flask, path: str = "/healthcheck", method: str = "GET", **headers: str) -> TestResponse:
    """Ask as a browser does."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return _fakes.get(app, path, method=method, headers=HTML | more)


class Page(HTMLParser):
    """A page taken apart: its elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def one(self, tag: str, **wanted: str) -> dict[str, str | None]:
        [found] = [each for each in self.all(tag) if wanted.items() <= each.items()]
        return found

    @property
    def document(self) -> dict[str, str | None]:
        """What the script reads."""
        return self.one("div", id="document")


def page_of(app: Any, *arguments: Any, **options: Any) -> Page:
    response = get(app, *arguments, **options)
    assert response.content_type == "text/html; charset=utf-8"
    return Page(response.text)


def full() -> tuple[Flask, Lifecycle]:
    """An application about which there is everything to see, and all of it hostile."""
    app, lifecycle = serve()
    error = HealthCheckError(NASTY, {NASTY: NASTY})
    lifecycle.check(NASTY, critical=False, affects=(NASTY,))(raiser(error))
    lifecycle.check("-")(lambda: CheckResult("warn", NASTY, {NASTY: [NASTY]}, float("nan"), NASTY))
    answers = iter([{"a": 1}])
    lifecycle.check("-/feed", ttl=0, fail_after=1000)(lambda: next(answers, False))
    get(app, "/work")
    state = state_of(app)
    enter(state.ledger, f"/{NASTY}?{NASTY}")
    lifecycle.work(NASTY, file=NASTY)
    lifecycle.set_not_ready(NASTY)
    lifecycle.set_ready()
    report: dict[str, Any] = {"summary": NASTY, "reason": NASTY, "began": NASTY, "duration": NASTY, "served": NASTY}
    report |= {"phases": [{"name": NASTY, "seconds": NASTY}], "work": [{"name": NASTY}], "abandoned": [{"path": NASTY}]}
    report |= {"hooks": [{"name": NASTY, "kind": NASTY, "outcome": NASTY, "error": NASTY}]}
    LastReport(app, report)
    get(app, "/readyz", User_Agent=NASTY)
    get(app)
    return app, lifecycle


def test_the_page_of_an_idle_application() -> None:
    """The page says what the application is and how it is, and that there is nothing else to see."""
    page = page_of(serve()[0])
    assert page.text.startswith("✓ READY · testing testing on ")
    assert ", served by unknown (a shutdown answers started requests)" in page.text
    assert "✓ pass READY Reason: started" in page.text
    assert "None has run yet." in page.text
    assert page.text.count("None.") == 1
    assert not any(word in page.text for word in ("Shutdown", "Probers", "Work items, oldest"))


def test_everything_there_is() -> None:
    """Checks, requests, work items, changes, probers and the last stop are shown, a status as a word and a sign."""
    # Nothing that a check, a request, a work item, an operator, a prober or a file says becomes markup. The page loads
    # two files, both its own and by relative URLs; what it shows is in it without them.
    app, _lifecycle = full()
    page = page_of(app)
    for words in (
        "1 pass, 2 warn Up",
        "affects <script>",
        " contrary in a row",
        "GET /%3Cscript%3Ealert('x')%3C/script%3E",
        "file=<script>",
        "not_ready",
        "Requests that were abandoned",
        "Work that was abandoned",
        "Hooks that failed",
        "ready",
    ):
        assert words.lower() in page.text.lower(), words
    assert (page.text.count("! warn"), page.text.count("✓ pass")) == (3, 1)
    assert sum((each.get("class") or "").startswith("badge") for each in page.all("span")) == 4
    assert page.all("img") == []
    assert [list(script) for script in page.all("script")] == [["src", "defer"]]
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
    assert page.text.count("<script>alert('x')</script><img") > 15
    loaded = [each["href"] for each in page.all("link") if each["rel"] == "stylesheet"]
    loaded += [each["src"] for each in page.all("script")]
    assert [re.sub(r"\?[0-9a-f]{12}$", "?", str(url)) for url in loaded] == [
        "./healthcheck/-/status.css?",
        "./healthcheck/-/status.js?",
    ]
    assert page.all("style") == []
    assert str(page.one("link", rel="icon")["href"]).startswith("data:image/svg+xml,")
    assert page.one("button")["hidden"] is None  # without the script there is nothing to pause
    # The script tells rows apart by keys that do not change while they are there.
    keys, again = ([row["data-key"] for row in each.all("tr") if "data-key" in row] for each in (page, page_of(app)))
    assert keys == again
    assert len([key for key in keys if key and "running|GET" in key]) == 1


def test_a_stop() -> None:
    """During a stop the page shows its phase, the time left, and checks as they were last; after it its report."""
    app, lifecycle = serve()
    lifecycle.check("db")(lambda: None)
    pages: list[Page] = []
    lifecycle.on_shutdown(lambda: pages.append(page_of(app)), name="asks")  # type: ignore[call-overload]
    get(app)
    report = lifecycle.shutdown("for the test")
    [page] = pages
    steps = [each["data-key"] for each in page.all("li")]
    assert steps[:6] == [*(phase.name for phase in report.phases), "exit"]
    assert re.search(r"Time left [\d.]+ s of 10 s", page.text)
    progress = page.one("progress")
    assert 0 < float(progress["value"] or 0) <= float(progress["max"] or 0) == 10
    assert page.one("li", **{"aria-current": "step"})["data-key"] == "hooks"
    assert "! STOPPING Shutting down: running on_shutdown functions. Reason: for the test" in page.text
    assert "db" in [row.get("data-key") for row in page.all("tr")]
    over = page_of(app)
    assert "Outcome clean, exit 0 Reason for the test" in over.text
    assert all("data-stopping" in each.document for each in (page, over))


def test_what_the_start_up_waits_for_and_what_has_changed() -> None:
    """Pending tasks are shown, and the last changes; those before them can be opened."""
    app, lifecycle = serve()
    with lifecycle.startup_task("warm the cache"):
        page = page_of(app)
        assert "Start-up waits for" in page.text
        assert "warm the cache" in page.text
    get(app, "/work")
    for _ in range(10):
        lifecycle.set_not_ready("again")
        lifecycle.set_ready()
    page = page_of(app)
    assert page.one("details") == {"id": "earlier"}
    assert re.search(r"\d+ earlier", page.text)


@pytest.mark.parametrize("make", [serve, full])
def test_structure(make: Callable[[], tuple[Flask, Lifecycle]]) -> None:
    """Landmarks, headings in order, captions, headers with a scope, one live region for the state, unique ids."""
    page = page_of(make()[0])
    assert page.one("html") == {"lang": "en"}
    assert [len(page.all(tag)) for tag in ("header", "main", "footer", "h1")] == [1] * 4
    headings = [tag for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1"] + ["h2"] * (len(headings) - 1)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(each.get("scope") in ("col", "row") for each in page.all("th"))
    assert [each for _, each in page.elements if "aria-live" in each] == [{"id": "state", "aria-live": "polite"}]
    assert page.one("p", role="status") == {"id": "live", "role": "status"}
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    for bars in page.all("svg"):
        assert (bars["role"], bool(bars["aria-label"])) == ("img", True)
    assert len(page.all("title")) == 1 + len(page.all("svg"))


def test_headers() -> None:
    """The page has a policy that forbids all but its own two files, is not kept, and depends on who asks."""
    # LIFECYCLE_HEADERS can replace the policy, as any other header of a probe, whatever the case.
    headers = dict(get(serve()[0]).headers)
    assert (headers.pop("Content-Type"), int(headers.pop("Content-Length")) > 1000) == (
        "text/html; charset=utf-8",
        True,
    )
    assert headers == {
        "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
        " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Vary": "Accept, Authorization",
    }
    app, _lifecycle = serve(LIFECYCLE_HEADERS={"content-security-policy": "default-src 'self'"})
    for path in ("/healthcheck", "/healthcheck/-/feed"):
        assert get(app, path).headers.getlist("Content-Security-Policy") == ["default-src 'self'"]


@pytest.mark.parametrize("failing", [True, False])
def test_status_codes(failing: bool) -> None:
    """The page has the status of the health check, the feed is always 200; HEAD is answered without a body."""
    # Other groups, and single checks, have the small page.
    app, lifecycle = serve()
    lifecycle.group("own", path="/own")
    lifecycle.check("db", groups=("ready", "own"))(lambda: CheckResult("fail" if failing else "pass"))
    status, code = ("fail", 503) if failing else ("pass", 200)
    for path, expected in (("/healthcheck", code), ("/healthcheck/-/feed", 200), ("/healthcheck/-/status.js", 200)):
        response = get(app, path, method="HEAD")
        assert (response.status_code, response.data) == (expected, b"")
        assert int(response.headers["Content-Length"]) > 1000
    assert state_of(app).probes.counts() == {("healthcheck", code): 1}
    for path in ("/readyz", "/healthcheck/db", "/own"):
        response = get(app, path)
        assert f"<h1>{status}</h1>" in response.text
        assert "Content-Security-Policy" not in response.headers


def test_a_page_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """If the page cannot be made the small one is sent in its place, and the log says so once."""
    app, _lifecycle = serve()
    monkeypatch.setattr(socket, "gethostname", lambda: 1 / 0)
    with caplog.at_level(logging.ERROR, "flask_lifecycle"):
        assert [get(app).status_code for _ in range(3)] == [200] * 3
        assert "<h1>pass</h1>" in get(app).text
    assert caplog.messages == ["the body of 'the status page' could not be made; the default one is sent in its place"]


@pytest.mark.parametrize("name", ASSETS)
def test_files(name: str) -> None:
    """A file that is asked for as the page does may be kept for ever, and otherwise has to be asked for again."""
    app, _lifecycle = serve()
    page = get(app).text
    [version] = re.findall(rf"{re.escape(name)}\?([0-9a-f]+)", page)
    known = get(app, f"/healthcheck/-/{name}?{version}")
    assert (known.status_code, known.content_type) == (200, ASSETS[name])
    assert known.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert known.data == (ROOT / "flask_lifecycle" / "_status" / "static" / name).read_bytes()
    for query in ("", "?", "?0123456789ab", f"?{version}&x"):
        assert get(app, f"/healthcheck/-/{name}{query}").headers["Cache-Control"] == "no-cache"


def test_nothing_else_is_beside_it() -> None:
    """Only the page's own files are beside it, none beside other probes; and none where nobody may see details."""
    for path in ("/healthcheck/-", "/healthcheck/-/", "/healthcheck/-/other", "/readyz/-/status.css"):
        assert get(serve()[0], path).status_code == 404
    app, _lifecycle = serve(LIFECYCLE_DETAILS="never")
    for name in (*ASSETS, "feed"):
        assert get(app, f"/healthcheck/-/{name}").status_code == 404
    assert get(app, "/healthcheck?login").status_code == 200
    assert "login" not in get(app).text


def test_a_check_of_that_name() -> None:
    """A check that is called as the place of the files is asked as any other; the files go before their namesakes."""
    app, lifecycle = serve()
    for name in ("-", "-/feed", "-/status.css"):
        lifecycle.check(name)(lambda: None)
    accept = {"Accept": "application/json"}
    assert Client(app.wsgi_app).get("/healthcheck/-", headers=accept).status_code == 200
    assert get(app, "/healthcheck/-/status.css").content_type == ASSETS["status.css"]
    assert Client(app.wsgi_app).get("/readyz/-/feed", headers=accept).status_code == 200


@pytest.mark.parametrize(
    ("config", "path", "beside"),
    [
        ({}, "/healthcheck", "./healthcheck/-/"),
        ({}, "/healthcheck/", "./-/"),
        ({"LIFECYCLE_URL_PREFIX": "/ops"}, "/ops/healthcheck", "./healthcheck/-/"),
        ({"LIFECYCLE_PATHS": {"healthcheck": "/a:b"}}, "/a:b", "./a:b/-/"),
        ({"LIFECYCLE_PATHS": {"healthcheck": "/a&b'c"}}, "/a&b'c/", "./-/"),
        ({"LIFECYCLE_PATHS": {"healthcheck": "/a&b'c"}}, "/a&b'c", "./a&b'c/-/"),
        ({"LIFECYCLE_CASE_INSENSITIVE": True}, "/HealthCheck", "./HealthCheck/-/"),
    ],
)
def test_where_its_files_are(config: dict[str, Any], path: str, beside: str) -> None:
    """The page names its files from where it was asked, whatever the prefix, and they are there."""
    app, _lifecycle = serve(**config)
    page = page_of(app, path)
    assert page.one("body")["data-feed"] == f"{beside}feed"
    at = path.rpartition("/")[0] + beside.removeprefix(".")
    assert [get(app, f"{at}{part}").status_code for part in ("feed", *ASSETS)] == [200] * 3


def basic(password: str, user: str = "anybody") -> str:
    """What a browser sends."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


KEYED = {"LIFECYCLE_DETAILS": "token", "LIFECYCLE_TOKEN": "hush-hüsh:hush"}
RIGHT = basic("hush-hüsh:hush")


@pytest.mark.parametrize("authorization", [RIGHT, basic("hush-hüsh:hush", ""), RIGHT.replace("Basic", "bAsIc")])
@pytest.mark.parametrize("path", ["/healthcheck", "/healthcheck?login", "/healthcheck/-/feed"])
def test_signed_in(authorization: str, path: str) -> None:
    """The token as the password of any user shows the page, also under the URL at which one signs in."""
    app, _lifecycle = serve(**KEYED)
    assert "READY" in page_of(app, path, Authorization=authorization).text


WRONG = [
    None,
    basic("wrong"),
    basic(""),
    basic("hush-hüsh:hush "),
    "Basic",
    "Basic ",
    "Basic hush-hüsh:hush".encode().decode("latin-1"),
    "Basic ?",
    "Basic " + base64.b64encode("hush-hüsh:hush".encode()).decode(),  # a user, and no password
    "Basic \udc80".encode("utf-8", "surrogateescape").decode("latin-1"),
    RIGHT.replace("Basic", "Digest"),
    "Bearer " + RIGHT.removeprefix("Basic "),
]


@pytest.mark.parametrize("authorization", WRONG)
def test_not_signed_in(authorization: str | None) -> None:
    """Without the right token there is the status and the way in, which asks for one and runs no check."""
    app, lifecycle = serve(**KEYED)
    asked: list[str] = []
    lifecycle.check("secret", ttl=0)(lambda: asked.append("secret"))
    headers = {} if authorization is None else {"Authorization": authorization}
    for path in ("/healthcheck?login", "/healthcheck/?x&login=1"):
        response = get(app, path, **headers)
        message = "Sign in with any user name, and the token as the password.\n"
        assert (response.status_code, response.text) == (401, message)
        assert response.headers["WWW-Authenticate"] == 'Basic realm="flask_lifecycle", charset="UTF-8"'
        assert (response.headers["Vary"], response.headers["Cache-Control"]) == ("Accept, Authorization", "no-store")
    assert asked == []
    for path in ("/healthcheck", "/healthcheck/-/feed"):
        response = get(app, path, **headers)
        hidden = not any(word in response.text for word in ("secret", "READY"))
        assert (response.status_code, hidden) == (200, True)
    page = page_of(app, **headers)
    assert page.text.endswith("pass Sign in to see details.")
    assert page.all("a") == [{"href": "?login"}]


@pytest.mark.parametrize(
    ("config", "path", "method", "accept"),
    [
        *((KEYED, "/healthcheck?login", "GET", accept) for accept in ("*/*", "", "application/json")),  # as a kubelet
        (KEYED, "/healthcheck?login", "HEAD", HTML["Accept"]),
        *((KEYED, f"{path}?login", "GET", HTML["Accept"]) for path in ("/readyz", "/livez", "/healthcheck/-/feed")),
        ({"LIFECYCLE_DETAILS": "never", "LIFECYCLE_TOKEN": "hush"}, "/healthcheck?login", "GET", HTML["Accept"]),
        *(({"LIFECYCLE_DETAILS": who}, "/healthcheck?login", "GET", HTML["Accept"]) for who in ("never", "always")),
    ],
)
def test_no_prober_is_asked_to_sign_in(config: dict[str, Any], path: str, method: str, accept: str) -> None:
    """Only a browser that asks for the page is asked to sign in, and only where a token would help."""
    assert get(serve(**config)[0], path, method=method, Accept=accept).status_code in (200, 404)


def test_signing_in_is_for_looking() -> None:
    """What a browser sends along by itself lets nobody operate the process: another site could make it do so."""
    token = "0123456789abcdef"
    app, _lifecycle = serve(LIFECYCLE_DETAILS="token", LIFECYCLE_TOKEN=token, LIFECYCLE_PROBE_PORT=0)
    state_of(app).open = lambda: None  # type: ignore[method-assign]  # the probe listener is called here
    for authorization, code in ((basic(token), 404), (f"Bearer {token}", 400)):
        response = Client(listener_of(app)).post("/lifecycle/cordon", headers={"Authorization": authorization})
        assert response.status_code == code
