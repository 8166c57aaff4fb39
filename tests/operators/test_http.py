"""What operators ask for by HTTP, on the probe listener: each refusal, and that nothing is changed by it."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse, create_environ

from flask_lifecycle import Lifecycle, State
from tests._fakes import listener_of, make_app, state_of

TOKEN = "0123456789abcdef"


def serve(**config: Any) -> Flask:
    """An application whose operators may ask for something, started, but for its listener."""
    app = make_app(**{"LIFECYCLE_TOKEN": TOKEN, "LIFECYCLE_PROBE_PORT": 0, **config})
    Lifecycle(app)
    state = state_of(app)
    state.open = lambda: None  # type: ignore[method-assign]  # the tests call what it serves
    state.startup.run()
    assert state.machine.state is State.READY
    return app


def ask(app: Flask, path: str, method: str = "POST", token: str | None = TOKEN, **more: Any) -> TestResponse:
    """One request to the probe listener."""
    headers = dict(more.pop("headers", {}))
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    more.setdefault("environ_base", {"REMOTE_ADDR": "127.0.0.1"})
    return Client(listener_of(app)).open(path, method=method, headers=headers, buffered=True, **more)


def told(response: TestResponse) -> tuple[int, str]:
    """The status and the sentence of an answer, which has no other shape."""
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.text.endswith("\n")
    assert response.text.count("\n") == 1
    return response.status_code, response.text[:-1]


def unchanged(app: Flask) -> bool:
    """Whether nothing has happened to an application."""
    state = state_of(app)
    return state.machine.state is State.READY and not state.process.shutdown.begun


ACTIONS = ["/lifecycle/drain?by=alice", "/lifecycle/cordon?by=alice&for=10m", "/lifecycle/uncordon?by=alice"]


def test_cordon_and_uncordon(caplog: pytest.LogCaptureFixture) -> None:
    """A cordon says what it is, readiness fails for it until it is taken back, and each use is logged once."""
    # A request that is sent twice leads to the same state with the same answer.
    app = serve()
    for _ in range(2):
        assert told(ask(app, "/lifecycle/cordon?for=10m&by=alice")) == (200, "cordoned by alice for 10m")
        assert ask(app, "/readyz", "GET").status_code == 503
    assert ask(app, "/livez", "GET").status_code == 200
    assert told(ask(app, "/lifecycle/uncordon?by=bob")) == (200, "uncordoned")
    assert ask(app, "/readyz", "GET").status_code == 200
    assert told(ask(app, "/lifecycle/uncordon", environ_base={"REMOTE_ADDR": "10.0.0.7"})) == (200, "uncordoned")
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert logged == [
        *["cordon for 10m requested by alice (HTTP from 127.0.0.1)"] * 2,
        "uncordon requested by bob (HTTP from 127.0.0.1)",
        "uncordon requested by 10.0.0.7 (HTTP from 10.0.0.7)",
    ]


def test_a_drain_begins_when_its_answer_is_written() -> None:
    """The drain begins when the response is closed, so that an idle process answers before it is gone."""
    apps = serve(), serve()
    environ = create_environ("/lifecycle/drain", method="POST")
    environ["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    answer = listener_of(*apps)(environ, lambda *_: lambda _data: None)
    assert next(iter(answer)) == b"draining\n"
    assert all(map(unchanged, apps))
    answer.close()  # type: ignore[attr-defined]
    assert [state_of(app).process.shutdown.wait().reason for app in apps] == ["drain requested by -"] * 2


def not_found(response: TestResponse) -> bool:
    """Whether an answer is the one of any path that does not exist."""
    assert "Allow" not in response.headers
    return (response.status_code, response.data) == (404, b"not found: only probes are answered here\n")


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "OPTIONS", "DELETE"])
def test_who_may_and_how(path: str, method: str) -> None:
    """Without the token an action looks like any path that does not exist; if none is set, always."""
    # With the token and another method than POST the answer says which one does it.
    app = serve()
    assert not_found(ask(app, path, method, None))
    for token in ("", "0", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "ü" * 16):
        headers = {"Authorization": f"Bearer {token}".encode().decode("latin-1")}
        assert not_found(ask(app, path, method, None, headers=headers))
    assert not_found(ask(app, path, method, None, headers={"Authorization": f"Basic {TOKEN}"}))
    assert not_found(ask(app, f"{path}&token={TOKEN}", method, None))
    if method != "POST":
        response = ask(app, path, method)
        assert told(response) == (405, "This needs a POST request; nothing was done.")
        assert response.headers["Allow"] == "POST"
    assert unchanged(app)
    app = serve(LIFECYCLE_TOKEN=None)
    assert all(not_found(ask(app, path, method, token)) for token in (None, "", "None", TOKEN))
    assert unchanged(app)


def test_where_it_is() -> None:
    """Only the probe listener has these paths, below the prefix of the probes; case matters as little as theirs."""
    app = serve(LIFECYCLE_URL_PREFIX="/Ops", LIFECYCLE_CASE_INSENSITIVE=True)
    assert told(ask(app, "/ops/LIFECYCLE/uncordon")) == (200, "uncordoned")
    assert ask(app, "/lifecycle/uncordon").status_code == 404
    app = serve()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert ask(app, "/lifecycle/UNCORDON").status_code == 404
    for path in ACTIONS:
        assert app.test_client().post(path, headers=headers, buffered=True).status_code == 404
    assert unchanged(app)
    app = serve(LIFECYCLE_PROBE_PORT=None)
    assert state_of(app).control is None
    assert not_found(ask(app, ACTIONS[0]))


@pytest.mark.parametrize(
    ("name", "given", "written"),
    [
        *(("alice", each, each) for each in ("10m", "1h30m", "1d12h", "1d2h3m4s", "0.5s", "7d")),
        *(("alice", "90s", "1m30s"), ("alice", "1.5h", "1h30m"), ("alice", "5", "5s"), ("alice", "2.5", "2.5s")),
        *(("alice", "61.25s", "1m1.25s"), ("alice", " 5s\n", "5s")),
        *((name, "1d", "1d") for name in ("alice@host.example", "Zoë", "x" * 64, "a=b", "10.0.0.1", "::1")),
    ],
)
def test_names_and_durations(name: str, given: str, written: str) -> None:
    """A duration is a number of seconds, or numbers with units, longer ones first; a name has visible characters."""
    app = serve()
    for each in (given, written):
        path = f"/lifecycle/cordon?by={quote(name)}&for={quote(each)}"
        assert told(ask(app, path)) == (200, f"cordoned by {name} for {written}")
    state_of(app).end()


DURATION = "'for' must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d, not {}."
NAME = "'by' must be a name of up to 64 visible characters without blanks, such as 'alice', not {}."


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("cordon?by=alice", DURATION.format("''")),
        ("cordon?by=alice&for=" + "9" * 2000, DURATION.format("'" + "9" * 56 + "...")),
        *(
            (f"cordon?by=alice&for={quote(given)}", DURATION.format(ascii(given)))
            for given in (
                *("", " ", "s", "m10", "10x", "10M", "10 m", "5m5m", "30m1h", "1h30", "-5m", "+5m", "1e3", "0x10"),
                *("1_0", ".5s", "5.s", "5m,", "nan", "inf", "٥m", "５m", "²s", "5ｍ", "5\u2028m", "5m\0"),
            )
        ),
        *(
            (f"cordon?by=alice&for={given}", f"'for' must be longer than zero, such as '10m', not '{given}'.")
            for given in ("0", "0s", "0h0m", "0.0")
        ),
        *(
            (f"cordon?by=alice&for={given}", f"'for' must be at most '7d', not '{given}'; renew it then.")
            for given in ("8d", "7d1s", "9" * 33, "99999999999999999999d")
        ),
        ("cordon?for=10m", NAME.format("''")),
        *(
            (f"cordon?for=10m&by={quote(given)}", NAME.format(ascii(given)))
            for given in ("", " ", "a\rb", "a\0", "\x1b[31m", "a\u2028b", "a\u202eb", "a\u00a0b", "a\r\nstate READY")
        ),
        ("drain?by=a+b", NAME.format("'a b'")),
        ("drain?by=%1b%5b2J", NAME.format(r"'\x1b[2J'")),
        ("uncordon?by=" + "x" * 65, NAME.format("'" + "x" * 56 + "...")),
        ("drain?by=a&by=b", "The parameter 'by' is given twice; give it once."),
        ("drain?" + "by=a&" * 500, "The query string has more than 2048 characters; give each parameter once."),
        ("drain?for=10m", "The parameter 'for' is unknown; the parameters are 'by'."),
        ("cordon?by=a&for=1m&x%0a=1", r"The parameter 'x\n' is unknown; the parameters are 'by' and 'for'."),
    ],
)  # fmt: skip
def test_bad_parameters(path: str, sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bad duration, an unknown unit, a missing name and the like are one sentence, and change nothing."""
    app = serve()
    assert told(ask(app, f"/lifecycle/{path}")) == (400, sentence)
    assert unchanged(app)
    assert caplog.records == []
    assert ask(app, "/lifecycle/uncordon").status_code == 200
