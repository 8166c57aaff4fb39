"""Sockets to listen on that somebody else has opened: by systemd's variables and by their descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._servers import bind
from tests._fakes import make_app


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A listener that children inherit, as systemd opens it; the descriptors that are passed on begin with it."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.set_inheritable(True)
        monkeypatch.setattr(bind, "FIRST_DESCRIPTOR", sock.fileno())
        yield sock


def variables(count: object = 1, pid: object = None) -> dict[str, str]:
    pid = os.getpid() if pid is None else pid
    return {"LISTEN_FDS": str(count), "LISTEN_PID": str(pid), "LISTEN_FDNAMES": "web", "LISTEN_PIDFDID": "7", "A": "b"}


def test_what_systemd_passes_on_is_served(given: socket.socket) -> None:
    """The listeners become the server's sockets; no child inherits them, nor the variables."""
    environ = variables()
    options = bind.with_passed_on(None, None, {"threads": 2}, environ)
    (sock,) = options.pop("sockets")
    try:
        assert options == {"threads": 2}
        assert sock.fileno() == given.fileno()
        assert not sock.get_inheritable()
        assert environ == {"A": "b"}
    finally:
        sock.detach()
    # Who names descriptors, as other servers want it of a service with a socket unit, means those of systemd.
    environ = variables()
    assert bind.with_passed_on(None, None, {"sockets": [given]}, environ) == {"sockets": [given]}
    assert environ == {"A": "b"}


def test_what_is_meant_for_another_process_is_not_served(caplog: pytest.LogCaptureFixture) -> None:
    """Variables that speak to another process change nothing but the environment, and are told of; none, nothing."""
    environ = variables(pid=1)
    assert bind.with_passed_on(None, 80, {}, environ) == {}
    assert environ == {"A": "b"}
    assert bind.with_passed_on("::1", 80, {"threads": 2}, environ) == {"threads": 2}
    assert caplog.messages == [
        f"LISTEN_FDS is meant for process 1, and this is {os.getpid()}: its sockets are not used;"
        " let systemd start this process itself, or a shell by 'exec'."
    ]


@pytest.mark.parametrize("where", [("::1", None, {}), (None, 0, {}), (None, None, {"listen": ":80"})])
def test_an_address_beside_it(where: tuple[str | None, int | None, dict[str, str]]) -> None:
    """An address beside listeners that were passed on is an error: nobody would accept from these."""
    message = (
        r"^LISTEN_FDS is 1, so there are listening sockets already, and an address is given as well;"
        r" leave the address out, or the socket unit\.$"
    )
    with pytest.raises(ValueError, match=message):
        bind.with_passed_on(*where, variables())


@pytest.mark.parametrize("count", ["many", "-1", "99999"])
def test_a_number_that_is_none(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no number of sockets is an error, of run() as well."""
    message = rf"^LISTEN_FDS is '{count}', which is not a number of sockets; let systemd set it\.$"
    with pytest.raises(ValueError, match=message):
        bind.with_passed_on(None, None, {}, variables(count))
    for name, value in variables(count).items():
        monkeypatch.setenv(name, value)
    lifecycle = Lifecycle(app := make_app())
    with pytest.raises(ValueError, match=message):
        lifecycle.run(app)
    assert "LISTEN_FDS" not in os.environ


def test_bad_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no listener is one sentence that says what it is, and stays open."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as deaf,
        socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM) as netlink,
        socket.create_connection(listener.getsockname()) as connection,
        (tmp_path / "file").open("w") as file,
    ):
        monkeypatch.setattr(bind, "FIRST_DESCRIPTOR", deaf.fileno())
        with pytest.raises(ValueError, match=rf"^The descriptor {deaf.fileno()} \('web'\) does not listen"):
            bind.with_passed_on(None, None, {}, variables())  # where systemd names it
        closed = os.dup(0)
        os.close(closed)
        for number, what in [
            (closed, "is not open"),
            (file.fileno(), "is not a socket"),
            (datagram.fileno(), r"is no stream socket \(ListenStream= in a socket unit\)"),
            (netlink.fileno(), "is neither an Internet nor a Unix socket"),
            (deaf.fileno(), r"does not listen \(a connection itself: Accept=no in a socket unit\)"),
            (connection.fileno(), r"does not listen \(a connection itself: Accept=no in a socket unit\)"),
        ]:
            with pytest.raises(ValueError, match=f"^The descriptor {number} {what}; pass on a listening socket.$"):
                bind.listeners([number])
            assert number == closed or os.fstat(number)
    with pytest.raises(ValueError, match=r"^The descriptor 7 is named twice; name each once\.$"):
        bind.listeners([7, 8, 7])
