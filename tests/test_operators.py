"""What operators ask for by HTTP, on the probe listener: each refusal, and that nothing is changed by it."""

from __future__ import annotations

import io
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import Client, TestResponse, create_environ

from flask_lifecycle import Lifecycle, State
from flask_lifecycle import _operators as operators
from flask_lifecycle._operators import Keys, Operators
from flask_lifecycle._views import bears
from flask_lifecycle.checks._engine import renewed_in_children
from tests._fakes import make_app, state_of

TOKEN = "0123456789abcdef"
NOT_FOUND = b"not found: only probes are answered here\n"
_serial = itertools.count(10_000_000)


def key(age: float = 0) -> str:
    """A key that nobody has used."""
    return f"{int(time.time() - age)}-{next(_serial)}"


def serve(**config: Any) -> Flask:
    """An application whose operators may ask for something, started, but for its listener."""
    app = make_app(**{"LIFECYCLE_TOKEN": TOKEN, "LIFECYCLE_PROBE_PORT": 0, **config})
    Lifecycle(app)
    state = state_of(app)
    state.open_probe_listener = lambda: None  # type: ignore[method-assign]  # the tests call what it serves
    state.start()
    assert state.machine.state is State.READY
    return app


def ask(app: Flask, path: str, method: str = "POST", token: str | None = TOKEN, **more: Any) -> TestResponse:
    """One request to the probe listener."""
    headers = {"Idempotency-Key": key()} | more.pop("headers", {})
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    more.setdefault("environ_base", {"REMOTE_ADDR": "127.0.0.1"})
    return Client(state_of(app).probes).open(path, method=method, headers=headers, **more)


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
    return state.machine.state is State.READY and not state.process.coordinator.begun


ACTIONS = ["/lifecycle/drain?by=alice", "/lifecycle/cordon?by=alice&for=10m", "/lifecycle/uncordon?by=alice"]


# -- what is done -------------------------------------------------------------------------------------------------


def test_cordon_and_uncordon(caplog: pytest.LogCaptureFixture) -> None:
    """A cordon says what it is, readiness fails for it until it is taken back, and each use is logged once."""
    app = serve()
    assert told(ask(app, "/lifecycle/cordon?for=10m&by=alice")) == (200, "cordoned by alice for 10m")
    assert ask(app, "/readyz", "GET").status_code == 503
    assert ask(app, "/livez", "GET").status_code == 200
    assert told(ask(app, "/lifecycle/uncordon?by=bob")) == (200, "uncordoned")
    assert ask(app, "/readyz", "GET").status_code == 200
    assert told(ask(app, "/lifecycle/uncordon", environ_base={"REMOTE_ADDR": "10.0.0.7"})) == (200, "not cordoned")
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert logged == [
        "cordon for 10m asked for by alice (HTTP from 127.0.0.1)",
        "uncordon asked for by bob (HTTP from 127.0.0.1)",
        "uncordon asked for by 10.0.0.7 (HTTP from 10.0.0.7)",
    ]


def test_drain() -> None:
    """A drain begins the whole shutdown of the process, does not wait for it, and says if it has begun already."""
    app = serve()
    assert told(ask(app, "/lifecycle/drain?by=alice")) == (202, "drain begun")
    assert state_of(app).process.coordinator.wait().reason == "drain asked for by alice"
    assert told(ask(app, "/lifecycle/drain")) == (202, "draining already")


@pytest.mark.parametrize("read", [True, False])
def test_a_drain_begins_when_its_answer_is_written(read: bool) -> None:
    """A process that is gone at once has answered; and one whose answer nobody wants is drained all the same."""
    app = serve()
    environ = create_environ("/lifecycle/drain", method="POST", headers={"Idempotency-Key": key()})
    environ["HTTP_AUTHORIZATION"] = f"Bearer {TOKEN}"
    answer = iter(state_of(app).probes(environ, lambda *_: lambda _data: None))
    assert next(answer) == b"drain begun\n"
    assert unchanged(app)
    assert next(answer, None) is None if read else answer.close() is None  # type: ignore[attr-defined]
    assert state_of(app).process.coordinator.wait().reason == "drain asked for by -"


def test_a_cordon_is_refused_in_a_drain() -> None:
    """A cordon and its end come too late once the shutdown has begun."""
    app = serve()
    assert ask(app, "/lifecycle/drain").text == "drain begun\n"
    state_of(app).process.coordinator.wait()
    sentence = (
        "'cordon' cannot happen in state STOPPED; a drain is one-way and already answers readiness probes with 503."
    )
    assert told(ask(app, "/lifecycle/cordon?for=10m&by=alice")) == (409, sentence)
    assert ask(app, "/lifecycle/uncordon").status_code == 409


def test_prefix_and_case() -> None:
    """The paths are below the prefix of the probes, and their case matters as little as that of a probe."""
    app = serve(LIFECYCLE_URL_PREFIX="/Ops", LIFECYCLE_CASE_INSENSITIVE=True)
    assert told(ask(app, "/ops/LIFECYCLE/uncordon")) == (200, "not cordoned")
    assert ask(app, "/lifecycle/uncordon").status_code == 404
    app = serve()
    assert ask(app, "/lifecycle/UNCORDON").status_code == 404


def test_headers_of_the_settings_are_sent() -> None:
    """An answer carries the headers of every probe."""
    app = serve(LIFECYCLE_HEADERS={"X-Node": "7"})
    assert ask(app, "/lifecycle/uncordon").headers["X-Node"] == "7"


@pytest.mark.parametrize("body", [b"x", b"x" * 100_000])
def test_a_body_is_ignored(body: bytes) -> None:
    """A body is read, within reason, and means nothing."""
    app = serve()
    assert told(ask(app, "/lifecycle/uncordon", data=body)) == (200, "not cordoned")


class Silent(io.RawIOBase):
    """The body of a client that has announced one and does not send it."""

    def readable(self) -> bool:
        return True

    def readinto(self, _buffer: Any) -> int:
        raise TimeoutError


@pytest.mark.parametrize("length", ["5", "-5", "five", "²", ""])
def test_a_body_that_does_not_come(length: str) -> None:
    """A body that was announced and does not come, or is announced by what is no length, hinders nothing."""
    app = serve()
    body = {"CONTENT_LENGTH": length, "wsgi.input": Silent()}
    assert told(ask(app, "/lifecycle/uncordon", environ_overrides=body)) == (200, "not cordoned")


# -- who may ------------------------------------------------------------------------------------------------------


def not_found(response: TestResponse) -> bool:
    """Whether an answer is the one of any path that does not exist."""
    assert "Allow" not in response.headers
    return (response.status_code, response.data) == (404, NOT_FOUND)


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_no_token_set(path: str, method: str) -> None:
    """Where no token is set there is nothing, whatever is sent along, the empty token included."""
    app = serve(LIFECYCLE_TOKEN=None)
    assert all(not_found(ask(app, path, method, token)) for token in (None, "", "None", TOKEN))
    assert unchanged(app)


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
def test_no_token_given(path: str, method: str) -> None:
    """Without a token an action looks like any path that does not exist, whatever the method."""
    app = serve()
    assert not_found(ask(app, path, method, None))
    assert unchanged(app)


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("token", ["", "0", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "ü" * 16])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_wrong_token(path: str, token: str, method: str) -> None:
    """With a wrong token neither."""
    app = serve()
    response = ask(app, path, method, None, headers={"Authorization": f"Bearer {token}".encode().decode("latin-1")})
    assert not_found(response)
    assert not_found(ask(app, path, method, None, headers={"Authorization": f"Basic {TOKEN}"}))
    assert not_found(ask(app, f"{path}&token={TOKEN}", method, None))
    assert unchanged(app)


def test_ten_thousand_wrong_tokens(caplog: pytest.LogCaptureFixture) -> None:
    """However many wrong tokens come, nothing is kept of them, nothing is logged, and the right one still is right."""
    app = serve()
    client = Client(state_of(app).probes)
    for number in range(10_000):
        headers = {"Authorization": f"Bearer {number:016}", "Idempotency-Key": f"{int(time.time())}-{number:08}"}
        assert client.post("/lifecycle/drain", headers=headers).status_code == 404
    assert unchanged(app)
    assert caplog.records == []
    assert ask(app, "/lifecycle/uncordon").status_code == 200


@pytest.mark.parametrize("path", ACTIONS)
def test_the_main_port_knows_nothing_of_it(path: str) -> None:
    """On the main port there is no such path, for nobody."""
    app = serve()
    headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": key()}
    assert app.test_client().post(path, headers=headers, buffered=True).status_code == 404
    assert unchanged(app)


def test_no_probe_listener() -> None:
    """Without a probe listener nothing of it is there."""
    app = serve(LIFECYCLE_PROBE_PORT=None)
    assert state_of(app).control is None
    assert not_found(ask(app, ACTIONS[0]))


def test_the_path_of_something_else() -> None:
    """With the token, a path that does not exist is what it is."""
    app = serve()
    assert not_found(ask(app, "/lifecycle"))
    assert not_found(ask(app, "/lifecycle/drain/"))


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
def test_another_method_with_the_token(path: str, method: str) -> None:
    """With the token and another method the answer says which one does it."""
    app = serve()
    response = ask(app, path, method)
    assert told(response) == (405, "This is done by POST alone; nothing was done.")
    assert response.headers["Allow"] == "POST"
    assert unchanged(app)


def test_head_with_the_token() -> None:
    """An answer to HEAD has no body."""
    app = serve()
    response = ask(app, ACTIONS[0], "HEAD")
    assert (response.status_code, response.data, response.headers["Allow"]) == (405, b"", "POST")
    assert unchanged(app)


DURATION = "'for' must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d, not {}."
NAME = "'by' must be a name of up to 64 visible characters without blanks, such as 'alice', not {}."


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("cordon?by=alice", DURATION.format("''")),
        ("cordon?by=alice&for=", DURATION.format("''")),
        ("cordon?by=alice&for=10x", DURATION.format("'10x'")),
        ("cordon?by=alice&for=-5m", DURATION.format("'-5m'")),
        ("cordon?by=alice&for=nan", DURATION.format("'nan'")),
        ("cordon?by=alice&for=%D9%A5m", DURATION.format(r"'\u0665m'")),
        ("cordon?by=alice&for=" + "9" * 5000, DURATION.format("'" + "9" * 56 + "...")),
        ("cordon?by=alice&for=0", "'for' must be longer than zero, such as '10m', not '0'."),
        ("cordon?by=alice&for=8d", "'for' must be at most '7d', not '8d'; renew it then."),
        ("cordon?for=10m", NAME.format("''")),
        ("cordon?for=10m&by=", NAME.format("''")),
        ("cordon?for=10m&by=a%0d%0astate+READY", NAME.format(r"'a\r\nstate READY'")),
        ("drain?by=a+b", NAME.format("'a b'")),
        ("drain?by=%1b%5b2J", NAME.format(r"'\x1b[2J'")),
        ("uncordon?by=" + "x" * 65, NAME.format("'" + "x" * 56 + "...")),
        ("drain?by=a&by=b", "The parameter 'by' is given twice; give it once."),
        ("drain?for=10m", "There is no parameter 'for' here; there is 'by'."),
        ("cordon?by=a&for=1m&x%0a=1", r"There is no parameter 'x\n' here; there is 'by' and 'for'."),
    ],
)  # fmt: skip
def test_bad_parameters(path: str, sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    """A bad duration, an unknown unit, a missing name and the like are one sentence, and use up no key."""
    app = serve()
    used = key()
    assert told(ask(app, f"/lifecycle/{path}", headers={"Idempotency-Key": used})) == (400, sentence)
    assert unchanged(app)
    assert caplog.records == []
    assert ask(app, "/lifecycle/uncordon", headers={"Idempotency-Key": used}).status_code == 200


@pytest.mark.parametrize(
    "given", ["", "x", "1735689600", "1735689600-short", "-12345678", "١٧-12345678", "1.5-12345678"]
)
def test_no_key(given: str) -> None:
    """Without a key, and with what is none, nothing is done."""
    app = serve()
    headers = {"Idempotency-Key": given.encode().decode("latin-1")}
    status, sentence = told(ask(app, ACTIONS[0], headers=headers))
    assert status == 400
    assert sentence.startswith("The header 'Idempotency-Key' must be the time in seconds since the epoch, a '-' and at")
    assert unchanged(app)


def test_a_replay(caplog: pytest.LogCaptureFixture) -> None:
    """A key is good once: what comes a second time is refused, and the log says so."""
    app = serve()
    headers = {"Idempotency-Key": key()}
    assert ask(app, "/lifecycle/uncordon", headers=headers).status_code == 200
    caplog.clear()
    sentence = "The 'Idempotency-Key' was used before; nothing was done a second time."
    assert told(ask(app, ACTIONS[0], headers=headers)) == (409, sentence)
    assert unchanged(app)
    [record] = caplog.records
    assert record.getMessage() == f"refused to do what was asked for by HTTP from 127.0.0.1: {sentence}"


class Overtaken:
    """In place of the lock: whoever comes to it first is overtaken by another."""

    def __init__(self, other: Callable[[], object]) -> None:
        self.others = [other]

    def __enter__(self) -> None:
        if self.others:
            self.others.pop()()

    def __exit__(self, *exc_info: object) -> None: ...


def test_two_with_one_key_at_once() -> None:
    """Of two that come with one key at the same moment one is let in."""
    # The first has found nothing wrong with its key and comes to the lock; the second is quicker there.
    keys, given, answers = Keys(), key(), []
    keys._lock = Overtaken(lambda: answers.append(keys.use(given)))  # type: ignore[assignment]
    answers.append(keys.use(given))
    assert answers == [None, (409, "The 'Idempotency-Key' was used before; nothing was done a second time.")]


def test_no_token_is_borne_by_nobody() -> None:
    """Where there is no token, the empty one is none."""
    assert not bears({"HTTP_AUTHORIZATION": "Bearer "}, None)
    assert not bears({"HTTP_AUTHORIZATION": "Bearer "}, "")
    assert bears({"HTTP_AUTHORIZATION": "bearer x"}, "x")


class Wall:
    """A clock on the wall."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.5

    def __call__(self) -> float:
        return self.now


STALE = (
    "The time of the 'Idempotency-Key' is more than 60 s from the time here; send the request again with a new one,"
    " or set the clocks."
)


@pytest.mark.parametrize(("off", "good"), [(-60.5, True), (-61, False), (59.5, True), (60, True), (61, False)])
def test_the_age_of_a_key(off: float, good: bool) -> None:
    """A key is good for a minute to either side, and not older than the process."""
    wall = Wall()
    keys = Keys(wall)
    wall.now += 1000
    assert keys.use(f"{int(wall.now + off)}-12345678") == (None if good else (409, STALE))


def test_a_key_that_is_older_than_the_process() -> None:
    """What was asked of the process before is not done by its successor; within the second of the start it may be."""
    wall = Wall()
    keys = Keys(wall)
    sentence = "The 'Idempotency-Key' is older than this process; send the request again with a new one."
    assert keys.use(f"{int(wall.now) - 1}-12345678") == (409, sentence)
    assert keys.use(f"{int(wall.now)}-12345678") is None


def test_a_forked_child_is_a_successor() -> None:
    """A child that takes the place of a drained worker takes no key from before its own beginning."""
    wall = Wall()
    keys = Keys(wall)
    wall.now += 10
    given = f"{int(wall.now)}-12345678"
    assert keys.use(given) is None
    wall.now += 10
    keys._lock.acquire()  # by a thread that the child does not have
    keys.after_fork()
    assert keys.use(given) == (
        409,
        "The 'Idempotency-Key' is older than this process; send the request again with a new one.",
    )
    assert keys.use(f"{int(wall.now)}-12345678") is None
    assert keys in renewed_in_children


def test_keys_are_forgotten_when_they_are_stale() -> None:
    """A key is remembered for as long as it would be good, and no longer; not even if the clock goes back."""
    wall = Wall()
    keys = Keys(wall)
    wall.now += 1000
    given = f"{int(wall.now) + 60}-12345678"
    assert keys.use(given) is None
    wall.now += 120
    assert keys.use(given) == (409, "The 'Idempotency-Key' was used before; nothing was done a second time.")
    wall.now -= 500
    assert keys.use(f"{int(wall.now)}-87654321") is None
    assert len(keys._used) == 2
    wall.now += 1000
    assert keys.use(f"{int(wall.now)}-87654321") is None
    assert len(keys._used) == 1


def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more keys are remembered than so many: what comes beyond is refused, because none may be forgotten."""
    monkeypatch.setattr(operators, "_KEYS", 3)
    keys = Keys()
    given = [key() for _ in range(4)]
    assert [keys.use(each) for each in given[:3]] == [None, None, None]
    assert keys.use(given[3]) == (429, "More than 3 requests came within two minutes; wait for one.")
    assert keys.use(given[0]) == (409, "The 'Idempotency-Key' was used before; nothing was done a second time.")


def test_no_peer() -> None:
    """Where the server does not tell the peer there is a dash in its place."""
    app = serve()
    assert ask(app, "/lifecycle/uncordon", environ_overrides={"REMOTE_ADDR": ""}).status_code == 200
    assert Operators is type(state_of(app).probes.operators)
