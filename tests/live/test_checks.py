"""Checks in a process that serves: one that hangs, one in the background, and what the drain makes of them."""

from __future__ import annotations

import json
import signal
from typing import Any

from ._client import get
from ._process import UNTIL_ASKED, Running, Starter
from ._traffic import in_flight
from .test_probes import PROBE_LISTENER, probe_address

APP = "checks_app.py"
DETAILS = {"LIFECYCLE_DETAILS": "always"}


def tell(running: Running, conduct: str, name: str) -> None:
    """Tell a check to fail or to hang from now on."""
    (running.home / f"{conduct}-{name}").touch()


def take_back(running: Running, conduct: str, name: str) -> None:
    """Let a check be well again."""
    (running.home / f"{conduct}-{name}").unlink()


def ready(running: Running) -> tuple[int, Any]:
    """Ask the readiness probe."""
    answer = get(running.address, "/readyz")
    return answer.status, json.loads(answer.body)


def test_a_hung_check_costs_one_thread(live: Starter) -> None:
    """However often a hung check is asked, it costs one thread, its probe fails, and liveness and work go on; when it
    is back the probe is too.
    """
    plan = {"checks": {"db": {"timeout": 0.1, "ttl": 0}}}
    running = live.serve("waitress", app=APP, settings=DETAILS, plan=plan)
    assert ready(running)[0] == 200
    tell(running, "hang", "db")
    for _ in range(100):
        status, body = ready(running)
        assert status == 503
    assert body["checks"]["db"][0]["output"].startswith("hanging since ")
    assert len(running.told("check db")) == 2
    assert json.loads(get(running.address, "/threads").body)["checks"] == 1
    assert (get(running.address, "/livez").status, get(running.address, "/fast").status) == (200, 200)
    take_back(running, "hang", "db")
    running.open_gate("db")
    running.wait_for(lambda: ready(running)[0] == 200, "the check to be well again")
    assert running.stop() == 0
    assert "A probe as a kubelet" not in running.log
    assert len([line for line in running.log.splitlines() if "check 'db' fails" in line]) == 1


def test_a_hung_check_does_not_hold_the_stop(live: Starter, server: str) -> None:
    """A check that hangs when the stop comes, also an async one, delays nothing."""
    plan = {"checks": {"db": {"timeout": 0.1}}, "async_checks": ["loop"]}
    running = live.serve(server, app=APP, settings={"LIFECYCLE_GRACE_PERIOD": 60.0}, plan=plan)
    for name in ("db", "loop"):
        tell(running, "hang", name)
    assert ready(running)[0] == 503
    assert {"check db", "check loop"} <= {event.text for event in running.events}
    assert running.stop() == 0
    assert running.hooks() == ["last", "first"]


def test_background_checks(live: Starter) -> None:
    """A background check runs without being asked, probes only read, and its change is noticed by itself. When the
    hooks run none is started any more: what it needs may be torn down already.
    """
    plan = {"checks": {"db": {"interval": 0.05}}, "hooks": {"shutdown": [["slow", "gate", None]]}}
    running = live.serve("waitress", app=APP, settings=PROBE_LISTENER, plan=plan, excuse="check 'db' fails")
    running.wait_event("check db", 3)
    assert ready(running)[0] == 200
    tell(running, "fail", "db")
    running.wait_log("check 'db' fails")
    assert ready(running)[0] == 503
    take_back(running, "fail", "db")
    running.wait_log("check 'db' passes again")
    assert ready(running)[0] == 200
    running.send(signal.SIGTERM)
    running.wait_event("shutdown slow")
    assert not running.gone.wait(0.2)
    begun = running.told("shutdown slow")[0]
    running.open_gate("slow")
    assert running.wait_gone() == 0
    # One that was under way when the hooks began may have told its event a moment after.
    assert len([when for when in running.told("check db") if when > begun]) <= 1


def test_readiness_kept_until_the_listener_closes(live: Starter) -> None:
    """With LIFECYCLE_READINESS_ON_DRAIN=keep readiness stays as it is during the delay and fails from the moment when
    the listener is closed.
    """
    settings = {**PROBE_LISTENER, "LIFECYCLE_READINESS_ON_DRAIN": "keep"}
    plan = {"checks": {"db": {"ttl": 0}}, **UNTIL_ASKED}
    running = live.serve("waitress", app=APP, settings=settings, plan=plan, excuse="check 'db' fails")
    probes = probe_address(running)
    with in_flight(running):
        running.begin_stop()
        assert get(probes, "/readyz").status == 200
        tell(running, "fail", "db")
        assert get(probes, "/readyz").status == 503
        take_back(running, "fail", "db")
        assert get(probes, "/readyz").status == 200
        running.open_gate("asked")
        running.wait_log("listener closed")
        running.wait_for(lambda: get(probes, "/readyz").status == 503, "readiness to fail")
    assert running.wait_gone() == 0


def test_the_self_test_names_what_stands_in_the_way(live: Starter) -> None:
    """A middleware that answers a kubelet's probe in our place is named at the start, once."""
    running = live.serve("waitress", app=APP, plan={"redirect": True})
    found = running.wait_log(r"A probe as a kubelet sends it .*")
    assert "is answered 301 MOVED PERMANENTLY to https://example.test/ by Flask around Redirect;" in found[0]
    assert running.stop() == 0
    assert running.log.count("A probe as a kubelet") == 1
