"""Liveness of real servers whose workers hang, have died, or have only much to do."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ._client import Address, Connection, LostError, get
from ._process import Running, Starter, wait_until
from .test_probes import PROBE_LISTENER, probe_address

AFTER = 0.5  # seconds: less than a test takes, and far more than a worker that gets on
WATCHED = {**PROBE_LISTENER, "LIFECYCLE_STUCK_AFTER": AFTER, "LIFECYCLE_SHUTDOWN_DELAY": 0}
FAILS = "liveness fails: "


def alive(address: Address, path: str = "/livez") -> bool:
    """Whether liveness passes."""
    status = get(address, path).status
    assert status in (200, 503)
    return status == 200


def stays_alive(*addresses: Address, look: Callable[[], object] = lambda: None) -> None:
    """Look until a pool that is stuck would have failed long ago; it never does."""
    # After a pause of the machine each worker has been busy for all of it, so such a look counts for nothing.
    last = time.monotonic()
    end = last + 4 * AFTER
    while last < end:
        lives = all(alive(address) for address in addresses)
        last, before = time.monotonic(), last
        assert lives or last - before > AFTER / 2
        look()
        time.sleep(AFTER / 10)


@contextlib.contextmanager
def hanging(running: Running, *paths: str) -> Iterator[list[Connection]]:
    """Have a worker hang in each of these requests."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(running.address)) for _ in paths]
        for connection, path in zip(connections, paths, strict=True):
            connection.ask(path)
        running.wait_for(
            lambda: sum(event.text.startswith("begin") for event in running.events) >= len(paths), "busy workers"
        )
        yield connections


def answered(connections: list[Connection]) -> list[int]:
    return [connection.answer().status for connection in connections]


def said(address: Address) -> dict[str, Any]:
    """What liveness says of the pool to those who may see it."""
    with Connection(address) as connection:
        connection.ask("/livez", Accept="application/json")
        entry: dict[str, Any] = json.loads(connection.answer().body)["checks"]["stuck-workers"][0]
    return entry


def test_all_workers_hang(live: Starter) -> None:
    """Liveness fails once all workers have hung for long enough, their stacks are logged once; then it recovers."""
    settings = {**WATCHED, "LIFECYCLE_DETAILS": "always"}
    running = live.serve("waitress", threads=2, settings=settings)
    ports = (running.address, probe_address(running))
    assert [said(port)["status"] for port in ports] == ["pass", "pass"]
    with hanging(running, "/gate/one", "/gate/two") as busy:
        for port in ports:
            wait_until(lambda port=port: not alive(port), "a failing liveness")  # type: ignore[misc]
            assert said(port)["output"].startswith("all 2 workers have been busy with the same requests for ")
            assert [get(port, path).status for path in ("/readyz", "/startupz", "/healthcheck")] == [200, 200, 503]
        running.wait_for(lambda: running.log.count("a worker is busy with") >= 2, "the stacks")
        running.open_gate("one")
        assert busy[0].answer().body == b"passed one"
        for port in ports:
            wait_until(lambda port=port: alive(port), "a liveness that passes")  # type: ignore[misc]
        stays_alive(*ports, look=lambda: get(running.address, "/fast"))
        running.wait_log("liveness passes again")
        running.open_gate("two")
        assert busy[1].answer().body == b"passed two"
    assert running.stop() == 0
    assert running.log.count(FAILS) == 1
    for gate in ("one", "two"):
        assert running.log.count(f"a worker is busy with GET /gate/{gate} [/gate/<gate>]") == 1
    assert running.log.count("in pass_gate") >= 2


def test_a_pool_that_has_much_to_do(live: Starter) -> None:
    """A pool that is never idle is busy and not stuck; slow clients, more of them than workers, hold none."""
    running = live.serve("waitress", threads=2, settings={**WATCHED, "LIFECYCLE_GRACE_PERIOD": 1})
    enough = threading.Event()

    def ask() -> None:
        with Connection(running.address) as connection:
            while not enough.is_set():
                assert connection.get("/sleep/0.05").status == 200

    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Connection(running.address, slow=True)) for _ in range(6)]
        for connection in slow[:2]:
            connection.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        for connection, path in zip(slow[2:], ("/file", "/file", "/big", "/big"), strict=True):
            connection.ask(path)
            assert connection.head()[0] == 200
        clients = [threading.Thread(target=ask, daemon=True) for _ in range(12)]
        for client in clients:
            client.start()
        running.wait_for(lambda: len(running.events) > 30, "a queue")
        stays_alive(running.address, probe_address(running))
        enough.set()
        for client in clients:
            client.join(20)
    running.stop()


def test_workers_that_have_died(live: Starter) -> None:
    """Liveness fails when no worker is left, although nothing is in flight and the process answers."""
    running = live.serve(
        "waitress", threads=2, app="stuck_app.py", settings=WATCHED, excuse=r"Traceback \(most recent call last\)"
    )
    ports = (running.address, probe_address(running))
    stays_alive(*ports)
    for _ in range(2):
        with contextlib.suppress(LostError), Connection(running.address) as connection:
            connection.ask("/raise-in-body")
            connection.head()
    for port in ports:
        wait_until(lambda port=port: not alive(port), "a failing liveness")  # type: ignore[misc]
    running.wait_log(r"liveness fails: waitress has not started a task that was queued \d+ s ago")
    assert get(running.address, "/livez").body == b'{"status": "fail"}\n'


@pytest.mark.parametrize(
    ("server", "path"), [("waitress", "/hang-loop"), ("werkzeug", "/hang-loop"), ("waitress", "/hold-lock")]
)
def test_a_server_that_stands_still(live: Starter, server: str, path: str) -> None:
    """The probe listener does not say "fine" while the loop does not turn, or a lock of the pool is not given back."""
    running = live.serve(server, threads=2, app="stuck_app.py", settings=WATCHED)
    probes = probe_address(running)
    stays_alive(probes)
    with Connection(running.address) as connection:
        connection.ask(path)
        wait_until(lambda: not alive(probes), "a failing liveness")
        running.wait_log(rf"liveness fails: {server} has not started a task that was queued \d+ s ago")
        running.open_gate("all")
        wait_until(lambda: alive(probes), "a liveness that passes")
    assert running.stop() == 0
    assert running.log.count(FAILS) == 1


def test_a_drain(live: Starter) -> None:
    """Liveness passes again as soon as a stop has begun, whose own deadline ends what hangs."""
    running = live.serve("waitress", threads=2, settings=WATCHED)
    probes = probe_address(running)
    with hanging(running, "/gate/all", "/gate/all") as busy:
        wait_until(lambda: not alive(probes), "a failing liveness")
        running.begin_stop()
        stays_alive(probes)
        running.open_gate("all")
        assert answered(busy) == [200, 200]
    assert running.wait_gone() == 0
    assert running.log.count(FAILS) == 1
