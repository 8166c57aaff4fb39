"""What the kernel knows of sockets, and closing a listener."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from flask_lifecycle._servers import listener as closing
from flask_lifecycle._servers import sockets
from tests._fakes import BOUND, running, until


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP listener that does not block."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


@pytest.mark.parametrize(("kind", "reset"), [("tcp", False), ("unix", False), ("tcp", True)])
def test_what_a_connection_has(kind: str, reset: bool) -> None:
    """Bytes differ from an end of file; what the peer has not taken is counted until it has, or until a reset."""
    with contextlib.ExitStack() as stack:
        if kind == "unix":
            one, two = map(stack.enter_context, socket.socketpair())
        else:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            one = stack.enter_context(socket.create_connection(server.getsockname()))
            two = stack.enter_context(server.accept()[0])
        assert (sockets.has_input(two), sockets.has_bytes(two), sockets.unsent(one)) == (False, False, 0)
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(b"x" * 65536)
        assert sockets.unsent(one) > 0
        until(lambda: sockets.has_bytes(two))
        assert sockets.has_input(two)
        if reset:
            two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            two.close()

        def arrives() -> bool:
            while not reset and sockets.has_bytes(two):
                two.recv(1 << 20)
            return sockets.unsent(one) == 0

        until(arrives)
        if not reset:
            one.close()
            until(lambda: sockets.has_input(two))
            assert not sockets.has_bytes(two)
    assert (sockets.unsent(one), sockets.half_close(one)) == (0, False)  # it has gone


def test_unlink_only_what_was_bound(tmp_path: Path) -> None:
    """A Unix socket's path is removed only if it still is the one that was bound."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as mine:
        mine.bind(path)
        identity = sockets.socket_identity(path)
        assert identity is not None
        os.rename(path, f"{path}.old")
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(path)
            sockets.unlink(path, identity)
            assert os.path.exists(path)
        sockets.unlink(f"{path}.old", identity)
        assert not os.path.exists(f"{path}.old")
    (tmp_path / "file").write_text("no socket")
    assert [sockets.socket_identity(str(tmp_path / name)) for name in ("file", "nothing")] == [None, None]


@pytest.mark.parametrize(
    ("error", "cause", "cure"),
    [
        (OSError(errno.EADDRINUSE, "x"), "it is in use by another program", "stop that program or choose another port"),
        (OSError(errno.EACCES, "x"), "permission is denied", "choose a port above 1023 or a path that may be written"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "Cannot assign requested address", "choose another address"),
        (OSError("told"), "told", "choose another address"),
        (socket.gaierror(socket.EAI_NONAME, "no name"), "no name", "choose another address"),
    ],
)
def test_bind_errors(error: OSError, cause: str, cure: str) -> None:
    """Each way in which an address cannot be listened on is one sentence with a cure."""
    made = sockets.bind_error(error, "here")
    assert (made.errno, made.strerror) == (error.errno, f"Cannot listen on here: {cause}; {cure}.")


def test_all_that_waits_is_accepted(listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """A listener is closed when the server's loop has accepted its queue; whoever connects meanwhile is refused."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        accepted: list[socket.socket] = []

        def close(closed: closing.Listener) -> None:
            assert (closed.socket, len(accepted)) == (listener, 5)
            listener.close()

        with running(lambda: closing.close_listeners([closing.Listener(listener)], close, BOUND)), socket.socket() as s:
            until(lambda: listener.getsockopt(socket.SOL_SOCKET, closing._SO_BINDTOIFINDEX) != 0)
            assert s.connect_ex(listener.getsockname()) == errno.ECONNREFUSED
            accepted.extend(stack.enter_context(listener.accept()[0]) for _ in range(5))
    assert caplog.messages == ["listener closed (device binding)"]


def test_room_is_made_while_nothing_can_be_accepted(listener: socket.socket) -> None:
    """While connections wait, idle ones are hung up; the listener is closed when the time is over."""
    made: list[float] = []
    subject = closing.Listener(listener)
    with socket.create_connection(listener.getsockname()):
        until(lambda: sockets.has_input(listener))
        began = time.monotonic()
        closing.close_listeners([subject], lambda _: listener.close(), 0.2, lambda: made.append(0.0))
        assert time.monotonic() - began >= 0.2
    assert made
    assert listener.fileno() < 0


@pytest.mark.parametrize("listed", [True, False])
def test_listeners_that_share_an_address_keep_their_devices(monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    """The kernel chooses among listeners of one address without regard to devices, so only the socket filter helps."""
    monkeypatch.setattr(closing, "attach_syn_filter", lambda sock: False)
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", one.getsockname()[1] if sock is two else 0))
            sock.listen()
        with contextlib.nullcontext() if listed else netlink_answers(b""):
            assert closing.refuse_connections(one) is None
        assert one.getsockopt(socket.SOL_SOCKET, closing._SO_BINDTOIFINDEX) == 0
        two.close()
        assert closing.refuse_connections(one) == "device binding"


@pytest.mark.parametrize(
    ("forbidden", "method"), [((), "device binding"), ((62,), "socket filter"), ((62, 26), "quiet period")]
)
def test_the_best_way_that_is_permitted(forbidden: tuple[int, ...], method: str) -> None:
    """No device before the socket filter, which lets clients wait for a second; else a quiet period."""
    # The filter is five instructions: load byte 13, keep SYN and ACK, drop what is SYN alone.
    given: list[tuple[int, bytes]] = []

    def set_option(level: int, option: int, value: Any) -> None:
        assert level == socket.SOL_SOCKET
        if option in forbidden:
            raise PermissionError(errno.EPERM, "no")
        given.append((option, value))

    sock = types.SimpleNamespace(family=socket.AF_INET6, getsockopt=lambda *_: 0, setsockopt=set_option)
    listener: Any = types.SimpleNamespace(socket=sock, path=None)
    assert closing.ClosingListener(listener, time.monotonic()).method == method
    if method == "socket filter":
        [(option, program)] = given
        assert option == 26
        assert (len(program), struct.unpack_from("@H", program)) == (struct.calcsize("@HP"), (5,))
        assert [struct.pack("=HBBI", *instruction).hex() for instruction in closing._SYN_FILTER] == [
            "300000000d000000", "5400000012000000", "1500000102000000", "0600000000000000", "06000000ffffffff",
        ]  # fmt: skip


def test_the_filter_lets_nobody_begin(listener: socket.socket) -> None:
    """Behind the filter a new connection does not come about."""
    if not closing.attach_syn_filter(listener):
        pytest.skip("the filter needs CAP_NET_ADMIN here")
    with socket.socket() as late:
        late.setblocking(False)
        assert late.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        poll = select.poll()
        poll.register(late, select.POLLOUT)
        assert poll.poll(50) == []


@pytest.mark.parametrize(
    ("method", "looks", "ages", "done"),
    [
        # While the kernel lists a handshake, and until the second look is clear.
        ("device binding", [True, False, True, False, False], [0.5] * 5, [False, False, False, False, True]),
        ("device binding", [True] * 2, [0.0, closing.CLOSING_BOUND], [False, True]),
        ("device binding", [None] * 2, [0.0, 0.06], [False, True]),
        (None, [], [0.0, 1.5 * closing.QUIET_PERIOD], [False, True]),
    ],
    ids=["handshakes", "a handshake that never ends", "handshakes are not listed", "quiet period"],
)
def test_when_nothing_more_can_come(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch,
    method: str | None, looks: list[bool | None], ages: list[float], done: list[bool],
) -> None:  # fmt: skip
    """A listener with an empty queue is closed when no handshake is under way, or after a bound."""
    left = iter(looks)
    monkeypatch.setattr(closing, "refuse_connections", lambda sock: method)
    monkeypatch.setattr(closing, "handshakes", lambda sock: next(left))
    subject = closing.ClosingListener(closing.Listener(listener), 1000.0)
    assert [subject.done(1000.0 + age) for age in ages] == done


def test_a_queue_that_is_never_empty_is_bounded(listener: socket.socket) -> None:
    """A listener that still accepts is closed after two seconds, however many clients come; another one waits."""
    with socket.create_connection(listener.getsockname()):
        until(lambda: sockets.has_input(listener))
        subject = closing.Listener(listener)
        assert not closing.ClosingListener(subject, 0.0).done(10.0)
        assert [closing.ClosingListener(subject, 0.0, refuse=False).done(now) for now in (1.0, 2.0)] == [False, True]


def test_a_unix_listener_is_closed_at_once(tmp_path: Path) -> None:
    """A Unix listener refuses at once whoever connects, accepts what waits, and has neither devices nor handshakes."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as waits:
        sock.bind(path)
        sock.listen()
        waits.connect(path)
        assert closing.refuse_connections(sock) is None
        subject = closing.ClosingListener(closing.Listener(sock), 0.0)
        assert not os.path.exists(path)
        assert subject.method == "unix"
        assert not subject.done(10.0)
        sock.accept()[0].close()
        assert [subject.done(0.0), subject.done(0.0)] == [False, True]


@contextlib.contextmanager
def netlink_answers(answer: bytes | OSError) -> Iterator[MagicMock]:
    """The kernel's answer about its sockets."""
    netlink = MagicMock(**{"recv.side_effect": [answer]})
    netlink.__enter__.return_value = netlink
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", lambda *arguments: netlink)
        yield netlink


@pytest.mark.parametrize(
    ("answer", "under_way"),
    [
        (struct.pack("=IH", 20, 3), False),  # NLMSG_DONE
        (struct.pack("=IH", 112, 20), True),  # SOCK_DIAG_BY_FAMILY
        (struct.pack("=IH", 36, 2), None),  # NLMSG_ERROR
        (b"", None),
        (TimeoutError("timed out"), None),
    ],
)
def test_what_the_kernel_lists(listener: socket.socket, answer: bytes | OSError, under_way: bool | None) -> None:
    """Somebody is connecting if the kernel lists a socket, nobody if its list is empty; all else tells nothing."""
    assert not closing.handshakes(listener)  # asked in earnest
    with netlink_answers(answer) as netlink:
        assert closing.handshakes(listener) is under_way
    assert netlink.settimeout.call_args.args[0] <= 0.1
    assert len(netlink.send.call_args.args[0]) == 72
