"""The delay that ends when it may, with a real HAProxy that asks and sends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from tests.live._client import get
from tests.live._process import Running, Starter

from ._haproxy import Clients, start_haproxy

AUTO = {"LIFECYCLE_SHUTDOWN_DELAY": "auto", "LIFECYCLE_GRACE_PERIOD": 60.0}


@contextlib.contextmanager
def bound() -> Iterator[socket.socket]:
    """A socket on a free port, for HAProxy to listen on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


def wait_until_known(running: Running) -> None:
    """Wait until the process has been asked by HAProxy often enough to know it."""
    running.wait_for(lambda: int(get(running.address, "/visits").body) >= 3, "three visits of each prober")


def test_a_stop_behind_haproxy(live: Starter, server: str) -> None:
    """One of two instances stops: HAProxy is told three times and then sends nothing more to it, so no request is
    lost without a second try, and the delay is over long before its maximum.
    """
    instances = [live.serve(server, settings=AUTO) for _ in range(2)]
    with bound() as listener:
        start_haproxy(live, listener, [instance.address for instance in instances], "500ms")
        for instance in instances:
            wait_until_known(instance)
        with Clients(listener.getsockname(), 4) as clients:
            assert instances[0].stop() == 0
    assert clients.lost == []
    assert clients.answered > 0
    log = instances[0].log
    assert "delay auto, at most 15.0 s" in log
    ended = instances[0].wait_log(r"delay ended after ([\d.]+) s: 1 prober refused 3 times, no new work for 1\.\d s")
    assert float(ended[1]) < 15.0
    assert instances[1].stop() == 0


def test_a_prober_that_is_gone_holds_up_nobody(live: Starter, server: str) -> None:
    """HAProxy ends just before the instance does: the delay waits until it would have come three times, and ends."""
    instance = live.serve(server, settings=AUTO)
    with bound() as listener:
        haproxy = start_haproxy(live, listener, [instance.address], "500ms")
        wait_until_known(instance)
        haproxy.stop()
        assert instance.stop() == 0
    assert instance.wait_log(r"delay ended after [\d.]+ s: (.*), no new work for")[1] in (
        "1 prober silent",
        "no prober to wait for",
    )
