"""``lifecycle_app``: an application that starts and stops in the process of the test."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response

from flask_lifecycle import Lifecycle, State
from flask_lifecycle.testing import AppFactory
from tests._fakes import BOUND, make_app, raiser, run_python, whole

VARIABLE = "LIFECYCLE_TEST_SETTINGS"


class Shop:
    """A factory as users have it, which sets no ``TESTING``, and what its functions did."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken = False
        self.lifecycle = Lifecycle()
        self.lifecycle.on_startup(name="open")(lambda: self.ran.append("open"))
        self.lifecycle.on_drain(name="leave")(lambda: self.ran.append("leave"))
        self.lifecycle.on_shutdown(name="close")(lambda: self.ran.append("close"))
        self.lifecycle.check("database")(self.database)

    def database(self) -> None:
        if self.broken:
            raise ConnectionError("refused")

    def create_app(self, name: str = "shop", **config: Any) -> Flask:
        app = Flask(name)
        app.config.update(config)
        self.lifecycle.init_app(app)

        @app.get("/ticks")
        def ticks() -> Response:
            def stream() -> Iterator[str]:
                while not self.lifecycle.draining.wait(0.001):
                    yield "tick\n"
                yield "bye\n"

            return Response(stream())

        return app


@pytest.fixture
def shop() -> Shop:
    """A shop of this test alone."""
    return Shop()


def test_it_starts_and_stops_when_the_test_asks(lifecycle_app: AppFactory, shop: Shop) -> None:
    """The on_startup functions have run when the factory returns; stop() runs the others and returns the report."""
    app = lifecycle_app(shop.create_app, "mine", SECRET_KEY="x")
    assert (app.app.name, app.app.config["SECRET_KEY"], shop.ran) == ("mine", "x", ["open"])
    assert app.client.get("/readyz").status_code == 200
    report = app.stop()
    assert (report.clean, shop.ran) == (True, ["open", "leave", "close"])
    assert app.stop() is report
    assert app.client.get("/readyz").status_code == 503


def test_what_was_started_is_stopped_at_the_end_of_the_test(shop: Shop) -> None:
    """on_shutdown functions of a started application run after the test; with start=False a request starts it."""
    factory = AppFactory()
    factory(shop.create_app, start=False)
    factory.close()
    assert shop.ran == []
    app = factory(shop.create_app, start=False)
    app.client.get("/nothing")
    assert shop.ran == ["open"]
    app.start()
    factory.close()
    assert shop.ran == ["open", "leave", "close"]


def test_the_next_application_is_the_only_one(shop: Shop) -> None:
    """An application of an earlier test does not make it ambiguous which one a Lifecycle is asked about."""
    kept = []
    for _ in range(2):
        factory = AppFactory()
        kept.append(factory(shop.create_app))
        assert shop.lifecycle.state is State.READY  # outside of a context
        factory.close()
    assert len(kept) == 2


def test_a_failed_start_fails_the_test(lifecycle_app: AppFactory, shop: Shop) -> None:
    """The error names the function, and what it raised or that the bounded wait for it is over."""
    go_on = threading.Event()
    hanging = Shop()
    hanging.lifecycle.on_startup(name="hangs")(lambda: go_on.wait(BOUND))
    with pytest.raises(AssertionError, match=r"^on_startup 'hangs' has not returned within 0\.1 s\.$"):
        lifecycle_app(hanging.create_app, timeout=0.1)
    go_on.set()
    shop.lifecycle.on_startup(name="connect")(raiser(ConnectionError("no database")))
    with pytest.raises(AssertionError, match=r"^on_startup 'connect' failed: ConnectionError: no database$"):
        lifecycle_app(shop.create_app)
    app = lifecycle_app(shop.create_app, start=False)
    assert app.client.get("/readyz").status_code == 503
    outcomes = {hook.name: hook.outcome for hook in app.stop().hooks}
    assert outcomes == {"open": "ok", "connect": "failed", "leave": "ok", "close": "ok"}


def test_drain_holds_the_shutdown(lifecycle_app: AppFactory, shop: Shop) -> None:
    """Between drain() and stop() readiness fails, draining is set, requests are answered, and nothing is closed."""
    drained = threading.Event()
    shop.lifecycle.on_drain(name="noted")(drained.set)
    app = lifecycle_app(shop.create_app)
    stream = app.client.get("/ticks")
    parts = stream.iter_encoded()
    assert next(parts) == b"tick\n"
    app.drain()
    app.drain()
    assert drained.wait(BOUND)
    assert shop.lifecycle.state is State.DRAINING
    assert app.client.get("/readyz").status_code == 503
    assert app.client.get("/livez").status_code == 200
    assert app.client.get("/ticks").text == "bye\n"
    assert list(parts)[-1] == b"bye\n"
    stream.close()
    assert "close" not in shop.ran
    report = app.stop()
    assert (report.clean, shop.ran[-1]) == (True, "close")
    app.drain()  # it has stopped, so there is nothing to begin


def test_a_response_that_is_left_open_does_not_keep_the_test(lifecycle_app: AppFactory, shop: Shop) -> None:
    """stop() refuses to wait for a response of its own thread; the end of the test does not wait for it."""
    factory = AppFactory()
    app = factory(shop.create_app)
    stream = app.client.get("/ticks")
    message = r"^shutdown\(\) was called in a thread that the shutdown itself waits for"
    with pytest.raises(RuntimeError, match=message):
        app.stop()
    factory.close()
    assert shop.ran == ["open", "leave", "close"]
    stream.close()


def test_a_check_fails_where_the_test_wants_it(lifecycle_app: AppFactory, shop: Shop) -> None:
    """failing() turns readiness at once and back, and leaves other checks and liveness alone."""
    shop.lifecycle.check("cache", critical=False)(lambda: None)
    app = lifecycle_app(shop.create_app, LIFECYCLE_DETAILS="always")
    assert app.client.get("/readyz").status_code == 200
    with app.failing("database", "no answer"):
        response = app.client.get("/readyz", headers={"Accept": "application/json"})
        assert response.status_code == 503
        assert response.json is not None
        assert response.json["checks"]["database"][0]["output"] == "no answer"
        assert app.client.get("/livez").status_code == 200
    assert app.client.get("/readyz").status_code == 200
    with app.failing("cache"):
        assert app.client.get("/readyz").status_code == 200


def test_results_are_not_cached(lifecycle_app: AppFactory, shop: Shop) -> None:
    """A check with a cache, and one that runs in the background, are run by each probe."""
    runs: list[str] = []
    shop.lifecycle.check("cached", ttl=3600, fail_ttl=3600)(lambda: runs.append("cached"))
    shop.lifecycle.check("background", interval=3600, fail_interval=60)(lambda: runs.append("background"))
    app = lifecycle_app(shop.create_app)
    for _ in range(3):
        app.client.get("/readyz")
    assert (runs.count("cached"), runs.count("background")) == (3, 3)
    shop.broken = True
    assert app.client.get("/readyz").status_code == 503


def test_checks_of_every_sort_can_be_made_to_fail(lifecycle_app: AppFactory, shop: Shop) -> None:
    """check() runs one check of any kind, and reports what a probe would after this many runs."""

    class Ping:
        name = "object"

        def __call__(self, context: Any) -> dict[str, Any]:
            return {"state": context.state.value}

    @shop.lifecycle.check
    async def coroutine() -> dict[str, Any]:
        return {"a": 1}

    shop.lifecycle.add_check(Ping())
    shop.lifecycle.check("flaky", fail_after=3)(lambda: None)
    app = lifecycle_app(shop.create_app)
    assert app.check("object").result.observed == {"state": "READY"}
    assert app.check("coroutine").result.observed == {"a": 1}
    for name, statuses in {"object": ["fail"], "coroutine": ["fail"], "flaky": ["pass", "pass", "fail"]}.items():
        assert app.check(name).status == "pass"
        with app.failing(name):
            assert [app.check(name).status for _ in statuses] == statuses
        assert app.check(name).status == "pass"
    shop.broken = True
    report = app.check("database")
    assert (report.status, type(report.error)) == ("fail", ConnectionError)


def test_an_unknown_check_is_named(lifecycle_app: AppFactory, shop: Shop) -> None:
    """A misspelled name is an error that lists the checks, not a check that never fails."""
    app = lifecycle_app(shop.create_app)
    message = whole("There is no check 'databse'; there are 'database'.")
    with pytest.raises(ValueError, match=message), app.failing("databse"):
        pass
    with pytest.raises(ValueError, match=message):
        app.check("databse")


def test_settings_override_those_of_the_factory(lifecycle_app: AppFactory, shop: Shop, tmp_path: Path) -> None:
    """TESTING is set, the delay is 0, and settings of the test win; no port and no directory is used."""
    app = lifecycle_app(
        shop.create_app,
        LIFECYCLE_SHUTDOWN_DELAY=20,
        LIFECYCLE_PROBE_PORT=1,  # only root may bind it
        LIFECYCLE_CONTROL_DIR=str(tmp_path / "nowhere"),
        settings={"LIFECYCLE_GRACE_PERIOD": 3, "LIFECYCLE_URL_PREFIX": "/health"},
    )
    assert app.app.testing
    assert app.app.config["LIFECYCLE_SHUTDOWN_DELAY"] == 0
    assert app.client.get("/health/readyz").status_code == 200
    assert shop.lifecycle.probe_address is None
    app.drain()
    remaining = shop.lifecycle.remaining()
    assert remaining is not None
    assert remaining <= 3
    assert list(tmp_path.iterdir()) == []


def test_settings_are_those_of_one_factory(
    lifecycle_app: AppFactory, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later application has its own settings; a variable that this package has not set is an error."""

    def create_app() -> Flask:
        raise LookupError("no configuration")

    with pytest.raises(LookupError, match=r"^'?no configuration'?$"):
        lifecycle_app(create_app)
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, json.dumps({"LIFECYCLE_GRACE_PERIOD": 3}))
    lifecycle_app(shop.create_app, settings={"LIFECYCLE_GRACE_PERIOD": 4})
    assert json.loads(os.environ[VARIABLE]) == {"LIFECYCLE_GRACE_PERIOD": 3}
    for text in ("yes", "3"):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(
            ValueError, match=whole(f"{VARIABLE} is set, but not by flask_lifecycle.testing; unset it.")
        ):
            shop.create_app()


SERVED = """
from flask_lifecycle.testing import AppFactory
from tests.testing.test_app import Shop
try:
    AppFactory()(Shop().create_app())
except ValueError as error:
    print(error)
"""


def test_what_it_takes(lifecycle_app: AppFactory) -> None:
    """An application made in testing mode is taken as it is; of others, the error says what is needed."""
    made = make_app()
    Lifecycle(made)
    app = lifecycle_app(made)
    assert app.app is made
    assert app.stop().clean
    sentence = "Settings and arguments are for a factory, but lifecycle_app was given an application."
    with pytest.raises(ValueError, match=whole(sentence)):
        lifecycle_app(made, settings={"LIFECYCLE_GRACE_PERIOD": 3})
    sentence = "lifecycle_app needs a Flask application or a function that makes one, not None."
    with pytest.raises(ValueError, match=whole(sentence)):
        lifecycle_app(lambda: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(
        ValueError, match=whole("The application 'bare' has no Lifecycle; give it one with Lifecycle(app).")
    ):
        lifecycle_app(Flask("bare"))
    assert run_python(SERVED).stdout == (
        "The application 'shop' was not in testing mode when it got its Lifecycle, so a shutdown would end the tests;"
        " give lifecycle_app the function that makes it, or test it by lifecycle_server.\n"
    )


MANY = """
import functools, gc, os, signal, sys, threading, time, weakref
from flask_lifecycle.testing import AppFactory
from tests.testing.test_app import Shop

shop = Shop()
shop.lifecycle.check("background", interval=1)(lambda: None)
create_app = functools.partial(shop.create_app, LIFECYCLE_SHUTDOWN_DELAY="auto", LIFECYCLE_STUCK_AFTER=60)

def left():
    end = time.monotonic() + 10
    while threading.active_count() > most and time.monotonic() < end:  # the last start-up may be ending
        time.sleep(0.001)
    gc.collect()
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    return [thread.name for thread in threading.enumerate()], len(os.listdir("/proc/self/fd")), handlers

def fixture():
    factory = AppFactory()
    app = factory(create_app, LIFECYCLE_PROBE_PORT=0)
    assert app.client.get("/readyz").status_code == 200
    factory.close()
    return app.app

def made():
    return create_app(TESTING=True, LIFECYCLE_PROBE_PORT=0)

def used():
    app = create_app(TESTING=True)
    assert app.test_client().get("/livez").status_code == 200
    return app

make, most = globals()[sys.argv[1]], int(sys.argv[2])
make()
(_, descriptors, handlers), references = left(), []
for _ in range(250):
    references.append(weakref.ref(make()))
threads, *others = left()
assert len(threads) == len(set(threads)) <= most, threads
assert others[0] <= descriptors + most - 1, (others, descriptors)  # each other thread may have one
assert others[1] == handlers, (others, handlers)
alive = sum(reference() is not None for reference in references)
assert alive == 0, alive
"""


@pytest.mark.parametrize(("how", "most"), [("fixture", 1), ("made", 1), ("used", 1), ("create_app", 4)])
def test_many_applications_leave_nothing_behind(how: str, most: int) -> None:
    """Many applications, of the fixture or in testing mode, leave no thread, descriptor, handler or warning."""
    done = run_python(MANY, how, str(most), python=["-W", "error"], timeout=100.0)
    assert (done.returncode, done.stderr) == (0, "")
