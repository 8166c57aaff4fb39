"""Whether a prober has hung up before its answer, and how long it had waited.

A prober that waits less long than a probe takes hears nothing, and takes that for a failure: what was meant as patience
with a slow check restarts the process. Nobody tells us its timeout, but a connection on which the client has gone shows
it, when its answer was slow.

The kernel is asked about the connection, and nothing is read from it: a request that is pipelined behind the probe is
no sign of anything, and stays where it is.

- An orderly end (``POLLRDHUP``). A client that shuts down its side after the request and waits for the answer sends the
  same, but it does so at once. The end is the last that came from the client, and Linux keeps the time of that
  (``tcpi_last_ack_recv``): so it is known how long the client had waited. What came within the first 0.3 s is not taken
  for impatience.
- A reset (``POLLERR``, ``POLLHUP``), as of HAProxy. Nobody waits for an answer after it, but when it came is not kept.

Elsewhere than on Linux, over Unix sockets, and on servers that do not let the application see the connection, nothing
is found. The connection is looked at after a slow answer alone.
"""

from __future__ import annotations

import math
import select
import socket
import struct
from typing import TYPE_CHECKING, Any

from ._record import NamedTuple

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ._probers import Prober

_AT_ONCE = 0.3
# In struct tcp_info, linux/tcp.h: after eight bytes and twelve numbers of 32 bits.
_LAST_ACK_RECV = 8 + 12 * 4
_RDHUP: int = getattr(select, "POLLRDHUP", 0)  # Linux alone has it


class HangUp(NamedTuple):
    """A prober has gone without its answer.

    :param waited: for so many seconds; at most, if it is not ``known``.
    """

    waited: float
    known: bool


def hang_up(environ: WSGIEnvironment, took: float) -> HangUp | None:
    """How the client of a request has hung up, if it has.

    :param took: how long the answer took, in seconds.
    """
    sock = _connection(environ)
    try:
        poll = select.poll()
        poll.register(sock, _RDHUP)
        ((_, found),) = poll.poll(0) or ((0, 0),)
        if found & (select.POLLERR | select.POLLHUP):
            return HangUp(took, known=False)
        waited = took - _silence(sock) if found & _RDHUP else 0.0
    except (OSError, ValueError, TypeError, AttributeError):  # closed meanwhile, or no TCP
        return None
    return HangUp(waited, known=True) if waited > _AT_ONCE else None


def _connection(environ: WSGIEnvironment) -> Any:
    """The socket of a request, where the server lets it be seen; of waitress, by the method of its channel."""
    channel = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    return environ.get("werkzeug.socket") or environ.get("gunicorn.socket") or getattr(channel, "socket", None)


def _silence(sock: socket.socket) -> float:
    """For how many seconds nothing has come from the client."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_RECV + 4)
    (milliseconds,) = struct.unpack_from("=I", info, _LAST_ACK_RECV)
    return float(milliseconds) / 1000


def impatience(prober: Prober, path: str, found: HangUp, took: float) -> str:
    """What to say of it: who it is, how long it waits, and what to set."""
    waited = f"{found.waited:.1f} s" if found.known else f"less than {found.waited:.1f} s"
    # Room for the way; where only a bound is known, half of it is a guess on the safe side.
    wanted = max(0.1, math.floor(found.waited * (0.8 if found.known else 0.5) * 10) / 10)
    return (
        f"The prober {prober} waited {waited} for '{path}' and hung up before its answer, which took {took:.1f} s; set"
        f" 'LIFECYCLE_PROBE_TIMEOUT' to {wanted:g}, or give the prober a longer timeout."
    )
