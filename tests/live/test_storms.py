"""Stops in the middle of a storm of clients: not one request may be lost."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

import pytest

from ._client import Tally, storm
from ._process import Starter

STOPS = 10


def socket_filter_is_allowed() -> bool:
    """Say whether the kernel lets this process attach a filter (which lets all pass) to a TCP
    listener.
    """
    accept_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFFFFFF))
    program = struct.pack("HL", 1, ctypes.addressof(accept_all))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        try:
            sock.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
        except PermissionError:
            return False
    return True


needs_socket_filter = pytest.mark.skipif(
    not socket_filter_is_allowed(), reason="EPERM: SO_ATTACH_FILTER needs CAP_NET_ADMIN here"
)


def stop_in_storm(
    live: Starter,
    server: str,
    expected: str,
    *,
    keep_alive: bool,
    stops: int = STOPS,
    clients: int = 6,
    within: float = 25.0,
    **more: Any,
) -> tuple[int, list[str]]:
    """Stop processes while clients ask without pause; return the answers and the losses.

    :param expected: how the log must say that the listener was closed.
    :param within: seconds that each shutdown may take, as the process itself tells it.
    """
    seen: list[Tally] = []
    for _ in range(stops):
        running = live.serve(server, **more)
        with storm(running.address, running.gone, clients=clients, keep_alive=keep_alive) as tallies:
            assert running.stop() == 0, running.log_tail
        assert running.shutdown_took <= within
        assert running.wait_log(r"listener closed \((.+)\)")[1] == expected
        assert running.hooks() == ["last", "first"]
        seen += tallies
    return sum(tally.answered for tally in seen), [loss for tally in seen for loss in tally.lost]


@needs_socket_filter
def test_new_connections_in_a_loop(live: Starter, full_server: str) -> None:
    """Of clients that connect in a loop not one loses a request over ten stops without delay,
    thanks to the socket filter.
    """
    answered, lost = stop_in_storm(live, full_server, "socket filter", keep_alive=False)
    assert answered > STOPS
    assert lost == []


def test_new_connections_in_a_loop_without_the_filter(
    live: Starter, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the socket filter each of ten stops is clean; what the race at the close still costs
    is printed.
    """
    plan = {"fallback": True}
    answered, lost = stop_in_storm(live, server, "quiet period", keep_alive=False, plan=plan)
    with capsys.disabled():
        print(f"\n{server}, no socket filter: {len(lost)} lost, {answered} answered, {STOPS} stops")
    assert answered > STOPS


def test_storm_does_not_hold_the_listener_open(live: Starter, server: str) -> None:
    """Without the socket filter clients that never pause do not keep a listener open, nor eat up a
    short grace period.
    """
    settings, plan = {"LIFECYCLE_GRACE_PERIOD": 3.0}, {"fallback": True}
    stop_in_storm(
        live,
        server,
        "quiet period",
        keep_alive=False,
        stops=3,
        clients=16,
        within=2.5,
        settings=settings,
        plan=plan,
    )


@needs_socket_filter
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_keep_alive_in_a_loop(live: Starter, server: str, delay: float) -> None:
    """Of clients that ask in a loop on kept connections not one loses a request over ten stops,
    with and without delay.
    """
    # A client that gets no processor for a while must still find its connection open.
    settings = {"LIFECYCLE_SHUTDOWN_DELAY": delay, "LIFECYCLE_KEEPALIVE_LINGER": 2.0}
    answered, lost = stop_in_storm(live, server, "socket filter", keep_alive=True, settings=settings)
    assert answered > STOPS
    assert lost == []
