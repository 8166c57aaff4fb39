"""A connection that the application takes over: a websocket, or whatever else ``Upgrade`` may ask for.

WSGI knows of no such thing. What has become of it is that the server publishes a connection's socket in the environ,
and that the application (simple_websocket, hence Flask-Sock and Flask-SocketIO) answers 101 through it and speaks
another protocol from then on. When it has ended, the server asks for an answer all the same, and what comes (Flask's
empty 200, an error page, a ``ConnectionError`` by which some ask for silence) would stand behind the last frame.

So the application gets a socket that notes the first byte that is sent through it. Before that byte the request is one
like any other and may be answered, by 404 or by 400; from it on nothing of HTTP is written to the connection.

It has a descriptor of its own. simple_websocket reads in a thread of its own and closes the socket at its end, be that
earlier or later than ours. With one descriptor for both, whoever came second would poll a number that is somebody
else's by then, and the farewell would have nothing to shut down. The shutdown reaches both, so that it also wakes that
thread; which is a daemon, as the connection's thread is that starts it, and does not hold the interpreter.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class LentSocket(socket.socket):
    """A connection as the application gets it; ``taken`` says whether it has sent anything itself."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, os.dup(sock.fileno()))
        self.taken = False

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        self.taken = True
        return super().send(data, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self.taken = True
        super().sendall(data, flags)

    def sendmsg(self, *arguments: Any) -> int:
        self.taken = True
        return super().sendmsg(*arguments)


class Unanswered:
    """Where an answer is written to, or, once the connection is taken, is not."""

    closed = False

    def __init__(self, sink: Any, lent: LentSocket) -> None:
        self._sink = sink
        self._lent = lent

    def write(self, data: bytes) -> int:
        return len(data) if self._lent.taken else int(self._sink.write(data))

    def flush(self) -> None:
        self._sink.flush()
