"""What every server guarantees, in few processes. ``tests/catalogue`` asks for each promise alone."""

from __future__ import annotations

import contextlib
import os

import pytest

from ._client import Connection, get, refuses, storm
from ._process import UNTIL_ASKED, Starter
from ._traffic import Kind, Traffic

# Of the others, ``tests/catalogue`` shows it kind by kind of request.
TRAFFIC = {
    "waitress": Kind(slots=4),
    "flask-run": Kind(keeps=False, pipelines=False),
    "uvicorn-native": Kind(pipelines=False, chunks=False),
    "hypercorn": Kind(slots=4, pipelines=False, chunks=False),
}
# Long enough for a client that a busy machine holds up.
LINGER = {"LIFECYCLE_KEEPALIVE_LINGER": 7.0}
# As in a container that gives none.
WITHOUT_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all") if os.geteuid() == 0 else ()


@pytest.mark.parametrize("server", TRAFFIC)
def test_every_accepted_request_is_answered(live: Starter, stack: contextlib.ExitStack, server: str) -> None:
    """A stop answers what runs, is queued, half received or in the kernel's queue; then the hooks run; exit 0."""
    running = live.serve(server, threads=4, settings=LINGER)
    traffic = Traffic(running, stack, TRAFFIC[server], address=running.address)
    traffic.hold()
    traffic.queue_in_kernel(4)
    running.wait_log("listener closed")
    assert refuses(traffic.address)
    assert running.hooks() == []
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    traffic.check_kernel()
    traffic.check_hooks()
    assert "clean, exit 0" in running.log


@pytest.mark.parametrize(
    "server",
    ["waitress", "waitress-serve", "werkzeug", "flask-run", "cheroot", "cheroot-alone", "gevent", "gevent-alone",
     "uvicorn", "hypercorn", "granian"],
)  # fmt: skip
def test_the_delay(live: Starter, server: str) -> None:
    """In the delay readiness fails, liveness does not, all else is served, and each answer closes its connection."""
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": 0.3, "LIFECYCLE_GRACE_PERIOD": 30.0}
    running = live.serve(server, settings=settings, plan=UNTIL_ASKED)
    running.begin_stop()
    running.wait_log("delay continues because an on_drain function keeps the listener open")
    with Connection(running.address) as connection:
        connection.ask("/gate/a")
        running.wait_event("begin live a")
        answers = [get(running.address, path) for path in ("/readyz", "/livez", "/fast")]
        assert [answer.status for answer in answers] == [503, 200, 200]
        assert all(answer.says_close for answer in answers)
        running.open_gate("asked")
        running.wait_log("listener closed|'stop accepting' ended")
        running.wait_for(lambda: refuses(running.address), "the closed port")
        running.open_gate("a")
        assert connection.answer().body == b"passed a"
    assert running.wait_gone() == 0
    assert running.lasted > 0.3
    assert running.hooks() == ["last", "first"]


@pytest.mark.parametrize("keep_alive", [False, True])
def test_a_storm_without_capabilities(live: Starter, keep_alive: bool) -> None:
    """Clients that ask without a pause lose no request over a stop, also in a process without capabilities."""
    settings = {**LINGER, "LIFECYCLE_SHUTDOWN_DELAY": 0.3 if keep_alive else 0.0}
    running = live.serve("waitress", settings=settings, prefix=WITHOUT_CAPABILITIES)
    with storm(running.address, running.gone, clients=6, keep_alive=keep_alive) as clients:
        assert running.stop() == 0, running.log_tail
    assert clients.lost == []
    running.wait_log(r"listener closed \(device binding\)")


@pytest.mark.parametrize("server", ["waitress", "werkzeug", "cheroot", "gevent"])
def test_a_storm_where_the_listener_goes_on_accepting(live: Starter, server: str) -> None:
    """Where the kernel cannot refuse clients, those that never pause neither keep the listener open nor the process."""
    running = live.serve(server, settings={"LIFECYCLE_GRACE_PERIOD": 60.0}, plan={"fallback": True})
    with storm(running.address, running.gone, clients=16, keep_alive=False) as clients:
        assert running.stop() == 0, running.log_tail
    assert clients.answered > 0
    assert "listener closed (quiet period)" in running.log
