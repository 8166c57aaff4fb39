"""The servers: create(), what is known of sockets, closing a listener, servers that somebody else started."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import socket
import stat
import struct
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from werkzeug.serving import BaseWSGIServer, make_server

from flask_lifecycle import _servers
from flask_lifecycle._servers import discovery, sockets
from flask_lifecycle._servers import listener as listener_module
from tests._fakes import BOUND, run_python, running, served, until

RUNNERS = ("waitress", "werkzeug", "cheroot", "gevent")


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def made(server: str, **options: Any) -> Any:
    made = _servers.create(server, wsgi, options.pop("host", None), options.pop("port", None), options)
    made.use_probe_workers({"/livez": "livez"}.get)
    return made


@contextlib.contextmanager
def pair(kind: str = "tcp") -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one connection."""
    if kind == "unix":
        one, two = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = socket.create_connection(listener.getsockname())
            two, _address = listener.accept()
    with one, two:
        yield one, two


@pytest.fixture(autouse=True)
def without_the_servers_of_other_tests() -> None:
    """A server that a test has left to the collector would be found by the next."""
    gc.collect()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP listener that does not block."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


# -- create -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", RUNNERS)
def test_a_server_is_bound_when_it_is_made(server: str) -> None:
    """A server listens from the moment it is made, says where, and lets go of it without having served."""
    runner = made(server, port=0)
    [address] = runner.addresses()
    assert (runner.name, runner.ours) == (server, True)
    port = int(address.removeprefix("http://127.0.0.1:"))
    socket.create_connection(("127.0.0.1", port)).close()
    runner.close()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("server", RUNNERS)
def test_an_address_is_free_again(server: str) -> None:
    """The next process may listen there at once, although connections that were closed here linger in the kernel."""
    runner = made(server, port=0)
    (listener,) = runner.listeners()
    listener.setblocking(True)
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        listener.accept()[0].close()
        assert client.recv(1) == b""
    runner.close()
    made(server, port=port).close()


@pytest.mark.parametrize("server", RUNNERS)
@pytest.mark.parametrize("listen", ["", "127.0.0.1:0 127.0.0.1:0"])
def test_several_listeners(server: str, listen: str, tmp_path: Path) -> None:
    """A Unix socket stands alone or beside TCP listeners, also where a killed process left one; its path is removed."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    runner = made(server, unix_socket=str(path), **({"listen": listen} if listen else {}))
    *tcp, unix = runner.addresses()
    assert len(set(tcp)) == len(listen.split())
    assert {address.rpartition(":")[0] for address in tcp} <= {"http://127.0.0.1"}
    assert unix == f"unix:{path}"
    assert stat.S_ISSOCK(path.stat().st_mode)
    runner.close()
    assert not path.exists()


def test_held_back_listeners_are_let_go_of(tmp_path: Path) -> None:
    """Who holds waitress back and closes it keeps the duplicates of its listeners, and the path of a Unix socket."""
    path = tmp_path / "s"
    runner = made("waitress", listen="127.0.0.1:0", unix_socket=str(path))
    copies = [sock.dup() for sock in runner.listeners()]
    runner.hold_back()
    runner.close()
    for copy in copies:
        with copy, socket.socket(copy.family) as client:
            client.connect(copy.getsockname())
            copy.accept()[0].close()
    assert path.exists()


def test_a_hand_over_that_comes_too_late() -> None:
    """What is closed already cannot be handed over, and that changes nothing."""
    with served("waitress", wsgi) as subject:
        subject.begin_drain()
        subject.runner.hand_over()


@pytest.mark.parametrize("server", RUNNERS)
def test_an_error_lets_the_others_go(server: str, listener: socket.socket) -> None:
    """When one of several addresses is taken, none of them stays bound."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    taken = listener.getsockname()[1]
    with pytest.raises(OSError, match="it is in use by another program"):
        made(server, listen=f"127.0.0.1:{port} 127.0.0.1:{taken}")
    socket.create_server(("127.0.0.1", port)).close()


FORKED = """
import os, socket, sys, threading
from flask_lifecycle._servers import create
from tests._fakes import until

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

runner = create(sys.argv[1], app, "127.0.0.1", 0, {})
port = int(runner.addresses()[0].rpartition(":")[2])
threading.Thread(target=runner.serve, daemon=True).start()
client = socket.create_connection(("127.0.0.1", port), timeout=10)
sockets = []
def look():
    # Werkzeug's are on the stacks of its threads.
    getattr(runner, "before_fork", lambda: None)()
    sockets[:] = runner.sockets()
    return len(sockets) == 2
until(look)
kept = list(sockets)
child = os.fork()
if child == 0:
    os._exit(sum(sock.fileno() >= 0 for sock in kept))
_, status = os.waitpid(child, 0)
print("open in the child:", os.waitstatus_to_exitcode(status))
client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print("answered by the parent:", client.recv(1000).split()[1].decode(), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("server", RUNNERS)
def test_a_forked_child_keeps_nothing_open(server: str) -> None:
    """A child that may outlive us keeps neither the listener nor a connection open; the parent goes on serving."""
    done = run_python(FORKED, server, python=["-W", "ignore"])
    assert done.stdout.splitlines() == ["open in the child: 0", "answered by the parent: 200"], done.stderr
    assert done.returncode == 0


STOPPING = """
import os, socket
from flask_lifecycle._servers import sockets
closed, open_ = pair = socket.socketpair()
closed.close()
class Owner:
    def sockets(self):
        return pair
owner = Owner()
descriptor = open_.fileno()
sockets.close_in_children(owner)
if os.fork() == 0:
    os.fstat(descriptor)
os.wait()
"""


def test_a_child_of_a_process_that_stops() -> None:
    """A child that is forked when some sockets are closed already closes the others all the same."""
    assert "Bad file descriptor" in run_python(STOPPING).stderr


# -- what the kernel knows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_input_and_bytes(kind: str) -> None:
    """Bytes are input and bytes; an end of file is input and no bytes; looking takes nothing away."""
    with pair(kind) as (one, two):
        assert (sockets.has_input(one), sockets.has_bytes(one)) == (False, False)
        two.sendall(b"xy")
        until(lambda: sockets.has_input(one))
        assert sockets.has_bytes(one)
        assert one.recv(10) == b"xy"
        two.close()
        until(lambda: sockets.has_input(one))
        assert not sockets.has_bytes(one)


@pytest.mark.parametrize(("kind", "reset"), [("tcp", False), ("unix", False), ("tcp", True)])
def test_unsent(kind: str, reset: bool) -> None:
    """What the peer has not taken is counted until it has, or until a reset has made it undeliverable."""
    with pair(kind) as (one, two):
        assert sockets.unsent(one) == 0
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(b"x" * 65536)
        assert sockets.unsent(one) > 0

        def read() -> bool:
            while not reset and sockets.has_bytes(two):
                two.recv(1 << 20)
            return sockets.unsent(one) == 0

        if reset:
            two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            two.close()
        until(read)
    assert sockets.unsent(one) == 0


def test_half_close() -> None:
    """After a half-close the peer reads an end of file and may still be read; a gone socket says so."""
    with pair() as (one, two):
        assert sockets.half_close(one)
        assert two.recv(1) == b""
        two.sendall(b"late")
        assert one.recv(4) == b"late"
    assert not sockets.half_close(one)


def test_describe(tmp_path: Path, listener: socket.socket) -> None:
    """An address is written as a user would type it."""
    assert sockets.describe(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        assert sockets.describe(unix) == f"unix:{tmp_path}/s"
    # Also where this machine has none of it.
    ipv6 = types.SimpleNamespace(family=socket.AF_INET6, getsockname=lambda: ("::1", 5000, 0, 0))
    assert sockets.describe(ipv6) == "http://[::1]:5000"  # type: ignore[arg-type]


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
    sockets.unlink(None, None)
    (tmp_path / "file").write_text("no socket")
    assert sockets.socket_identity(str(tmp_path / "file")) is None
    assert sockets.socket_identity(str(tmp_path / "nothing")) is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.EADDRINUSE, "x"),
            "Cannot listen on here: it is in use by another program; stop that program or choose another port.",
        ),
        (
            PermissionError(errno.EACCES, "x"),
            "Cannot listen on here: permission is denied; choose a port above 1023 or a path that may be written.",
        ),
        (
            OSError(errno.EADDRNOTAVAIL, "x"),
            "Cannot listen on here: Cannot assign requested address; choose another address.",
        ),
        (OSError("told"), "Cannot listen on here: told; choose another address."),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "Cannot listen on here: Name or service not known; choose another address.",
        ),
    ],
)
def test_bind_errors(error: OSError, sentence: str) -> None:
    """Each way in which an address cannot be listened on is one sentence with a cure."""
    made = sockets.bind_error(error, "here")
    assert made.strerror == sentence
    assert made.errno == error.errno


# -- closing a listener -------------------------------------------------------------------------------------------


class Closing:
    """A listener on its way to being closed, with a loop that accepts."""

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        self.sock = sock
        self.accepted: list[socket.socket] = []
        identity = sockets.socket_identity(path) if path is not None else None
        self.subject = listener_module.ClosingListener(sock, time.monotonic(), path, identity)

    def finish(self) -> float:
        """Accept until it is done; return the seconds that took."""
        began = time.monotonic()
        until(self._turn)
        for sock in self.accepted:
            sock.close()
        return time.monotonic() - began

    def _turn(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.accepted.append(self.sock.accept()[0])
        return self.subject.done(time.monotonic())


def test_all_that_waits_is_accepted(listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """A listener is closed when the server's loop has accepted what is in its queue, and the log says how."""
    caplog.set_level(logging.INFO, "flask_lifecycle")
    clients = [socket.create_connection(listener.getsockname()) for _ in range(5)]
    accepted: list[socket.socket] = []

    def close(closed: listener_module.Listener) -> None:
        assert (closed.socket, len(accepted)) == (listener, 5)
        listener.close()

    with running(lambda: listener_module.close_listeners([listener_module.Listener(listener)], close, BOUND)):
        accepted.extend(listener.accept()[0] for _ in clients)
    assert caplog.messages == ["listener closed (device binding)"]
    for sock in (*clients, *accepted):
        sock.close()


def test_room_is_made_while_nothing_can_be_accepted(listener: socket.socket) -> None:
    """While connections wait, idle ones are hung up; the listener is closed when the time is over."""
    made: list[float] = []
    subject = listener_module.Listener(listener)
    with socket.create_connection(listener.getsockname()):
        until(lambda: sockets.has_input(listener))
        began = time.monotonic()
        listener_module.close_listeners([subject], lambda _: listener.close(), 0.2, lambda: made.append(0.0))
        assert time.monotonic() - began >= 0.2
    assert made
    assert listener.fileno() < 0


def test_without_a_device_nobody_begins(listener: socket.socket) -> None:
    """Whoever connects to a listener that is bound to no device is refused; who has connected before is accepted."""
    with socket.create_connection(listener.getsockname()), socket.socket() as late:
        assert listener_module.bind_to_no_device(listener)
        assert late.connect_ex(listener.getsockname()) == errno.ECONNREFUSED
        closing = Closing(listener)
        assert closing.finish() < listener_module.CLOSING_BOUND
        assert len(closing.accepted) == 1


@pytest.mark.parametrize("told", [True, False])
def test_listeners_that_share_an_address_keep_their_devices(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """The kernel chooses among listeners of one address without regard to devices, so only the socket filter helps."""
    monkeypatch.setattr(listener_module, "attach_syn_filter", lambda sock: False)
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", one.getsockname()[1] if sock is two else 0))
            sock.listen()
        if not told:
            two.close()
            monkeypatch.setattr(listener_module, "_listeners_at", unknown)
        assert listener_module.refuse_connections(one) is None
        assert one.getsockopt(socket.SOL_SOCKET, listener_module._SO_BINDTOIFINDEX) == 0
        two.close()
        monkeypatch.undo()
        assert listener_module.refuse_connections(one) == "device binding"


def unknown(sock: socket.socket) -> int:
    raise OSError("the kernel does not tell")


@pytest.mark.parametrize(
    ("device", "filtered", "method"),
    [(True, True, "device binding"), (False, True, "socket filter"), (False, False, "quiet period")],
)
def test_the_best_way_that_is_permitted(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, device: bool, filtered: bool, method: str
) -> None:
    """No device before the socket filter, which lets clients wait for a second; else a quiet period."""
    monkeypatch.setattr(listener_module, "bind_to_no_device", lambda sock: device)
    monkeypatch.setattr(listener_module, "attach_syn_filter", lambda sock: filtered)
    assert Closing(listener).subject.method == method


def test_the_filter_lets_nobody_begin(listener: socket.socket) -> None:
    """Behind the filter a new connection does not come about, and an idle listener is closed at once."""
    if not listener_module.attach_syn_filter(listener):
        pytest.skip("the filter needs CAP_NET_ADMIN here")
    with socket.socket() as late:
        late.setblocking(False)
        assert late.connect_ex(listener.getsockname()) == errno.EINPROGRESS
        poll = select.poll()
        poll.register(late, select.POLLOUT)
        assert poll.poll(50) == []
    assert Closing(listener).finish() < listener_module.CLOSING_BOUND


@pytest.mark.parametrize(
    ("method", "looks", "ages", "done"),
    [
        # While the kernel lists a handshake, and until the second look is clear.
        ("device binding", [True, False, True, False, False], [0.5] * 5, [False, False, False, False, True]),
        ("device binding", [True] * 2, [0.0, listener_module.CLOSING_BOUND], [False, True]),
        ("device binding", [None] * 2, [0.0, 0.06], [False, True]),
        (None, [], [0.0, 1.5 * listener_module.QUIET_PERIOD], [False, True]),
    ],
    ids=["handshakes", "a handshake that never ends", "handshakes are not listed", "quiet period"],
)
def test_when_nothing_more_can_come(
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    method: str | None,
    looks: list[bool | None],
    ages: list[float],
    done: list[bool],
) -> None:
    """A listener with an empty queue is closed when no handshake is under way, or after a bound."""
    left = iter(looks)
    monkeypatch.setattr(listener_module, "refuse_connections", lambda sock: method)
    monkeypatch.setattr(listener_module, "handshakes", lambda sock: next(left))
    subject = listener_module.ClosingListener(listener, 1000.0)
    assert [subject.done(1000.0 + age) for age in ages] == done


def test_a_queue_that_is_never_empty_is_bounded(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that still accepts is closed after two seconds, however many clients come; another one waits."""
    with socket.create_connection(listener.getsockname()):
        until(lambda: sockets.has_input(listener))
        assert not listener_module.ClosingListener(listener, 0.0).done(10.0)
        monkeypatch.setattr(listener_module, "refuse_connections", lambda sock: None)
        assert [listener_module.ClosingListener(listener, 0.0).done(now) for now in (1.0, 2.0)] == [False, True]


def test_a_unix_listener_is_closed_at_once(tmp_path: Path) -> None:
    """A Unix listener refuses at once whoever connects, accepts what waits, closes, and its path is gone."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as waits:
        sock.bind(path)
        sock.listen()
        waits.connect(path)
        sock.setblocking(False)
        sock.setblocking(False)
        closing = Closing(sock, path)
        assert not os.path.exists(path)
        assert closing.subject.method == "unix"
        assert closing.finish() < listener_module.CLOSING_BOUND / 2
        assert len(closing.accepted) == 1


def test_a_kernel_that_takes_neither_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Unix socket has neither devices nor handshakes, and a kernel may forbid both ways."""
    with socket.socket(socket.AF_UNIX) as unix:
        assert listener_module.refuse_connections(unix) is None
    forbidden: Any = types.SimpleNamespace(family=socket.AF_INET, getsockopt=lambda *arguments: 0, setsockopt=refuse)
    assert listener_module.refuse_connections(forbidden) is None


def refuse(*arguments: Any) -> None:
    raise PermissionError(errno.EPERM, "no")


def test_the_filter_is_five_instructions() -> None:
    """Where the kernel allows it, it is given: load byte 13, keep SYN and ACK, drop what is SYN alone."""
    given: list[Any] = []
    allowed: Any = types.SimpleNamespace(family=socket.AF_INET6, setsockopt=lambda *arguments: given.append(arguments))
    assert listener_module.attach_syn_filter(allowed)
    [(level, option, program)] = given
    assert (level, option) == (socket.SOL_SOCKET, 26)
    assert (len(program), struct.unpack_from("@H", program)) == (struct.calcsize("@HP"), (5,))
    assert [struct.pack("=HBBI", *instruction).hex() for instruction in listener_module._SYN_FILTER] == [
        "300000000d000000", "5400000012000000", "1500000102000000", "0600000000000000", "06000000ffffffff",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (struct.pack("=IH", 20, 3), False),  # NLMSG_DONE
        (struct.pack("=IH", 112, 20), True),  # SOCK_DIAG_BY_FAMILY
        (struct.pack("=IH", 36, 2), None),  # NLMSG_ERROR
        (b"", None),
        (TimeoutError("timed out"), None),
    ],
)
def test_what_the_kernel_tells(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, answer: bytes | OSError, told: bool | None
) -> None:
    """Somebody is connecting if the kernel lists a socket, nobody if its list is empty; all else tells nothing."""
    assert not listener_module.handshakes(listener)  # asked in earnest
    netlink = MagicMock(**{"recv.side_effect": [answer]})
    netlink.__enter__.return_value = netlink
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", lambda *arguments: netlink)
        assert listener_module.handshakes(listener) is told
    assert netlink.settimeout.call_args.args[0] <= 0.1
    assert len(netlink.send.call_args.args[0]) == 72


# -- servers that somebody else started ---------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_serves() -> None:
    """A process that has imported no server has none, and looking imports none."""
    code = (
        "import sys; from flask_lifecycle._servers import discovery as found; assert found.find() is None;"
        "assert 'waitress' not in sys.modules"
    )
    assert run_python(code).returncode == 0


def test_a_server_is_found_without_a_list_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process cannot list its descriptors (no /proc) its server is found all the same."""

    def refuse(path: str) -> list[str]:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    gc.collect()  # servers of other tests: without a list of descriptors any of them is a candidate
    server = make_server("127.0.0.1", 0, wsgi, threaded=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        found = discovery.find()
    assert found is not None
    assert found.name == "werkzeug"
    server.server_close()


@pytest.mark.parametrize(
    "listens",
    [
        "import socket; listener = socket.create_server(('127.0.0.1', 0))",
        "from flask_lifecycle._probes.http_server import ProbeServer; listener = ProbeServer(None, '127.0.0.1', 0)",
    ],
)
def test_a_listener_that_is_no_server_we_know(listens: str) -> None:
    """Neither a listener of an unknown server nor our own probe listener is taken for the application's server."""
    code = f"{listens}; import os; from flask_lifecycle._servers import discovery as found; assert found.listens();"
    done = run_python(f"{code} print(found.find()); os._exit(0)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


def test_a_half_made_server_is_no_server() -> None:
    """A server whose making failed halfway has no socket, and does not break the search."""
    half = object.__new__(BaseWSGIServer)
    assert discovery.find() is None
    del half


def test_a_closed_waitress_is_no_server(listener: socket.socket) -> None:
    """One that was closed without having served is not found, while the collector has not been there yet."""
    runner = made("waitress", sockets=[listener.dup()])
    assert isinstance(discovery.find(), type(runner))
    runner.close()
    for sock in runner.listeners():
        sock.close()
    assert discovery.find() is None
