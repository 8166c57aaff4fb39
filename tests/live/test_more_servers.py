"""The tests of waitress and Werkzeug that tell the most, on the other servers that ``run`` can start."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import test_bounds, test_connections, test_hostile_clients, test_probes, test_stop, test_storms
from ._client import Connection, get, storm
from ._process import Starter

TERM = signal.SIGTERM
part = functools.partial
SCENARIOS: dict[str, Callable[..., Any]] = {
    "in flight": part(test_stop.test_request_in_flight, number=signal.SIGINT),
    "queued": test_stop.test_more_requests_than_threads,
    "slow reader": part(test_stop.test_slow_reader, path="/big"),
    "pipelined": test_connections.test_pipelined,
    "delay": test_stop.test_new_connections_during_and_after_the_delay,
    "half a body": part(test_connections.test_half_a_body, number=TERM, framing="chunked"),
    "half a head": test_connections.test_half_a_head,
    "idle and silent": test_connections.test_idle_and_silent_connections,
    "sends on": test_connections.test_answer_is_not_cut_by_what_the_client_sends_on,
    "half closed": test_hostile_clients.test_half_closed_slow_reader,
    "probes": test_probes.test_all_workers_busy,
    "deadline": test_bounds.test_request_longer_than_the_grace_period,
    "second signal": part(test_bounds.test_second_signal, first=TERM, second=TERM),
}


@pytest.mark.parametrize("server", ["cheroot", "gevent"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_full_promise(live: Starter, server: str, scenario: str) -> None:
    """The server keeps the promise of that test as waitress and Werkzeug do."""
    SCENARIOS[scenario](live, server)


@pytest.mark.parametrize("server", ["cheroot", "gevent"])
def test_accept_queues_of_three_listeners(live: Starter, server: str, tmp_path: Path) -> None:
    """One stop drains the accept queue of each listener, v4, v6 and Unix."""
    test_connections.test_three_listeners(live, server, tmp_path)


@pytest.mark.parametrize("server", ["cheroot", "gevent"])
@pytest.mark.parametrize("keep_alive", [False, True], ids=["new", "kept"])
def test_storm_on_more_servers(live: Starter, server: str, keep_alive: bool) -> None:
    """Of clients that ask in a loop, on new connections or on kept ones, not one loses a request over two stops."""
    # A client that gets no processor for a while must still find its connection open.
    settings = {"LIFECYCLE_KEEPALIVE_LINGER": 2.0 if keep_alive else 0.25}
    prefix = test_storms.WITHOUT_CAPABILITIES
    more: dict[str, Any] = {"keep_alive": keep_alive, "stops": 2, "settings": settings, "prefix": prefix}
    answered, lost = test_storms.stop_in_storm(live, server, "no device", **more)
    assert answered > 2
    assert lost == []


@pytest.mark.parametrize("server", ["cheroot", "gevent"])
def test_storm_on_a_listener_that_hears_on_more_servers(live: Starter, server: str) -> None:
    """Where the listener cannot be made deaf, clients that never pause do not keep a listener open."""
    settings, plan = {"LIFECYCLE_GRACE_PERIOD": 3.0}, {"fallback": True}
    running = live.serve(server, settings=settings, plan=plan)
    with storm(running.address, running.gone, clients=8, keep_alive=False) as tallies:
        assert running.stop() == 0, running.log_tail
    assert running.shutdown_took <= 2.5
    assert sum(tally.answered for tally in tallies) > 0


def test_gevent_that_is_not_patched(live: Starter) -> None:
    """Without patching our threads are real: while a request holds up all greenlets the probe listener answers, and the
    grace period is kept.
    """
    command = (
        sys.executable,
        "-m",
        "flask",
        "--app",
        "live_app.py",
        "lifecycle",
        "run",
        "--server",
        "gevent",
        "-p",
        "0",
    )
    settings = {**test_probes.PROBE_LISTENER, "LIFECYCLE_GRACE_PERIOD": 2.0}
    running = live.start(*command, settings=settings)
    running.wait_log("STARTING -> READY")
    (address,) = (address for address in running.addresses if address != test_probes.probe_address(running))
    with Connection(address) as connection:
        connection.ask("/gate/never")
        running.wait_event("begin live never")
        assert get(test_probes.probe_address(running), "/livez").status == 200
        running.begin_stop()
        assert get(test_probes.probe_address(running), "/readyz").status == 503
        assert running.wait_gone() == 1
    assert running.hooks() == ["last", "first"]
    assert "abandoned GET /gate/never" in running.log
    assert running.lasted < 7.0
