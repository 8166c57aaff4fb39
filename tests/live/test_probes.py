"""Probes while the application is too busy to answer anything, and to the end of the stop."""

from __future__ import annotations

import contextlib
import signal

from ._client import Address, Connection, get, refuses
from ._process import UNTIL_ASKED, Running, Starter, parse_address
from ._traffic import in_flight
from .conftest import each_lossless_server

PROBES = ("/livez", "/readyz", "/startupz", "/healthcheck")
PROBE_LISTENER = {"LIFECYCLE_PROBE_PORT": 0, "LIFECYCLE_PROBE_HOST": "127.0.0.1"}


def probe_address(running: Running) -> Address:
    """Return where the process says that its probe listener is."""
    return parse_address(running.wait_log(r"probe listener on (http://\S+)")[1])


def statuses(address: Address) -> list[int]:
    """Ask every probe over a connection of its own."""
    return [get(address, path).status for path in PROBES]


@each_lossless_server
def test_all_workers_busy(live: Starter, lossless_server: str) -> None:
    """With every worker busy and work queued, both listeners answer every probe, also in the delay of a stop."""
    running = live.serve(lossless_server, threads=2, settings=PROBE_LISTENER, plan=UNTIL_ASKED)
    probes = probe_address(running)
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(Connection(running.address)) for _ in range(6)]
        for number, connection in enumerate(busy):
            connection.ask("/gate/all")
            if number < 2:
                running.wait_event("begin live all", number + 1)
        # Of cheroot's workers none is kept free for probes on the main port.
        addresses = (probes,) if lossless_server == "cheroot" else (probes, running.address)
        for address in addresses:
            assert statuses(address) == [200, 200, 200, 200]
            # One connection may ask again and again.
            with Connection(address) as connection:
                answers = [connection.get("/livez")]
                if not answers[0].says_close:
                    answers.append(connection.get("/livez"))
                assert all(answer.status == 200 for answer in answers)
        running.begin_stop()
        assert [statuses(address) for address in addresses] == [[200, 503, 200, 503]] * len(addresses)
        running.open_gate("asked")
        running.wait_log("listener closed")
        assert statuses(probes) == [200, 503, 200, 503]
        running.open_gate("all")
        assert [connection.answer().body for connection in busy] == [b"passed all"] * 6
    assert running.wait_gone() == 0


def test_mounted_probes_have_their_lane(live: Starter, server: str) -> None:
    """Once probed, an application under a prefix is answered however busy; invented prefixes lead nowhere."""
    running = live.serve(server, threads=1, plan={"second": True})
    assert get(running.address, "/second/livez").status == 200
    with in_flight(running):
        assert get(running.address, "/second/livez").status == 200
        assert get(running.address, "/second/readyz/").status == 200
    assert get(running.address, "/made/up/livez").status == 404
    assert running.stop() == 0


def test_probe_listener_opens_first_and_closes_last(live: Starter) -> None:
    """The probe listener answers during start-up functions and during hooks; it does no work."""
    plan = {"hooks": {"startup": [["warm-up", "gate", None]], "shutdown": [["slow", "gate", None]]}}
    running = live.serve("werkzeug", settings=PROBE_LISTENER, plan=plan, listeners=0)
    probes = probe_address(running)
    running.wait_event("startup warm-up")
    assert statuses(probes) == [200, 503, 503, 503]
    running.open_gate("warm-up")
    running.wait_log("STARTING -> READY")
    assert statuses(probes) == [200, 200, 200, 200]
    assert get(probes, "/fast").status == 404
    running.send(signal.SIGTERM)
    running.wait_event("shutdown slow")
    assert refuses(running.address)
    assert statuses(probes) == [200, 503, 200, 503]
    running.open_gate("slow")
    assert running.wait_gone() == 0
    assert refuses(probes)


def test_waiting_clients_of_the_probe_listener(live: Starter) -> None:
    """Silent, half and kept clients of the probe listener hold neither other probes nor the exit."""
    running = live.serve("waitress", settings={**PROBE_LISTENER, "LIFECYCLE_GRACE_PERIOD": 60.0})
    probes = probe_address(running)
    with Connection(probes), Connection(probes) as half, Connection(probes) as kept:
        half.send(b"GET /liv")
        assert kept.get("/livez").status == 200
        assert [statuses(address) for address in (probes, running.address)] == [[200] * 4] * 2
        assert running.stop() == 0
    assert "queue depth" not in running.log


def test_readiness_kept_until_the_listener_closes(live: Starter) -> None:
    """With LIFECYCLE_READINESS_ON_DRAIN=keep readiness fails from the moment when the listener is closed on."""
    settings = {**PROBE_LISTENER, "LIFECYCLE_READINESS_ON_DRAIN": "keep"}
    running = live.serve("waitress", settings=settings, plan=UNTIL_ASKED)
    probes = probe_address(running)
    with in_flight(running):
        running.begin_stop()
        assert get(probes, "/readyz").status == 200
        running.open_gate("asked")
        running.wait_log("listener closed")
        running.wait_for(lambda: get(probes, "/readyz").status == 503, "readiness to fail")
    assert running.wait_gone() == 0
