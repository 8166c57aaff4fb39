"""What operators ask of an application by HTTP: ``POST /lifecycle/drain``, ``/cordon`` and ``/uncordon``.

On the probe listener alone, which is not what the world is let in by, and for whoever has the token. Anybody else is
told what is told of any path that does not exist, whatever the method, so that nobody learns what there is. A
misdirected request changes nothing: the method must be POST (a kubelet's ``preStop`` sends GET, and so does whoever
follows a link), and every request bears a key of its own, which is good once and for a minute. So neither a proxy that
tries again nor somebody who has recorded a request can have it done twice. A key that is older than the process is
refused as well: the process that takes the place of a drained one listens at the same address, and knows no keys.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias
from urllib.parse import parse_qsl

from ._control import LONGEST_CORDON, Control, check_name
from ._duration import parse_duration, shown
from ._state import logger
from .checks._engine import renewed_in_children

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# How far the clocks of two machines may differ, and a request be under way, in seconds.
_FRESH = 60.0
# More than any operator uses in the two minutes for which a key has to be remembered.
_KEYS = 1024
# So much of a body is read and thrown away, because a connection that is closed with unread input is reset.
_BODY = 65536

_KEY = re.compile(r"([0-9]{1,12})-[0-9A-Za-z_-]{8,64}")


# The status, the sentence, and what is to be done when both are on their way.
Outcome: TypeAlias = "tuple[int, str, Callable[[], object] | None]"


class Respond(Protocol):
    """Answers a request in the manner of the probe listener."""

    def __call__(self, code: int, text: str, **headers: str) -> Iterable[bytes]: ...


class Keys:
    """Which idempotency keys were used. Any thread may ask.

    :param clock: seconds since the epoch, by which the keys are made.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.after_fork()
        renewed_in_children.add(self)

    def after_fork(self) -> None:
        """A child is a process of its own: it has used no keys, and begins now."""
        self._began = int(self._clock())
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()  # guards _used, that of two with one key only one is let in

    def use(self, key: str) -> tuple[int, str] | None:
        """Use a key up; the status and the sentence if it is none, or is not good any more."""
        match = _KEY.fullmatch(key)
        if match is None:
            return 400, (
                "The header 'Idempotency-Key' must be the time in seconds since the epoch, a '-' and at least eight"
                f" random letters and digits, as in '1735689600-x7Qm2pKd', not {shown(key)}."
            )
        now, made = int(self._clock()), int(match[1])
        if made < self._began:
            return 409, "The 'Idempotency-Key' is older than this process; send the request again with a new one."
        if abs(now - made) > _FRESH:
            return 409, (
                f"The time of the 'Idempotency-Key' is more than {_FRESH:g} s from the time here; send the request"
                " again with a new one, or set the clocks."
            )
        with self._lock:
            self._used = {used: at for used, at in self._used.items() if now - at <= _FRESH}
            if key in self._used:
                return 409, "The 'Idempotency-Key' was used before; nothing was done a second time."
            if len(self._used) >= _KEYS:
                return 429, f"More than {_KEYS} requests came within two minutes; wait for one."
            self._used[key] = made
        return None


class Operators:
    """Does what operators ask, for requests that bear the right token. Any thread may call it."""

    def __init__(self, control: Control, prefix: str, keys: Keys | None = None) -> None:
        self._control = control
        self._keys = keys or Keys()
        self._actions: dict[str, tuple[frozenset[str], Callable[[Mapping[str, str], str], Outcome]]] = {
            f"{prefix}/lifecycle/drain": (frozenset({"by"}), self._drain),
            f"{prefix}/lifecycle/cordon": (frozenset({"by", "for"}), self._cordon),
            f"{prefix}/lifecycle/uncordon": (frozenset({"by"}), self._uncordon),
        }

    def __call__(self, path: str, environ: WSGIEnvironment, respond: Respond) -> Iterable[bytes] | None:
        """Answer a request, or return ``None``: there is nothing here at this path."""
        if path not in self._actions:
            return None
        _discard_body(environ)
        if environ["REQUEST_METHOD"] != "POST":
            return respond(405, "This is done by POST alone; nothing was done.", Allow="POST")
        known, action = self._actions[path]
        peer = str(environ.get("REMOTE_ADDR") or "-")
        try:
            given = _parameters(environ.get("QUERY_STRING", ""), known)
            given["by"] = check_name(given.get("by", "" if "for" in known else peer))
            if "for" in known:
                parse_duration("for", given.get("for", ""), LONGEST_CORDON)
        except ValueError as error:
            return respond(400, str(error))
        refusal = self._keys.use(environ.get("HTTP_IDEMPOTENCY_KEY", ""))
        if refusal is not None:
            if refusal[0] == 409:
                extra = {"lifecycle_peer": peer}
                logger.warning("refused to do what was asked for by HTTP from %s: %s", peer, refusal[1], extra=extra)
            return respond(*refusal)
        try:
            code, text, afterwards = action(given, f"HTTP from {peer}")
        except RuntimeError as error:  # it stops
            return respond(409, str(error))
        return _answer_first(respond(code, text), afterwards) if afterwards else respond(code, text)

    def _drain(self, given: Mapping[str, str], way: str) -> Outcome:
        text = "draining already" if self._control.draining else "drain begun"
        return 202, text, lambda: self._control.drain(given["by"], way)

    def _cordon(self, given: Mapping[str, str], way: str) -> Outcome:
        seconds = parse_duration("for", given["for"], LONGEST_CORDON)
        return 200, self._control.cordon(seconds, given["by"], way).reason, None

    def _uncordon(self, given: Mapping[str, str], way: str) -> Outcome:
        return 200, "uncordoned" if self._control.uncordon(given["by"], way) else "not cordoned", None


def _answer_first(answer: Iterable[bytes], afterwards: Callable[[], object]) -> Iterator[bytes]:
    """Do something as soon as an answer is written: a process that has nothing to complete is gone before it else.

    It is done as well if the answer cannot be written, or is thrown away.
    """
    try:
        yield from answer
    finally:
        afterwards()


def _parameters(query: str, known: frozenset[str]) -> dict[str, str]:
    """The parameters of a query.

    :raises ValueError: one of them is not known, or given twice.
    """
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            listed = " and ".join(f"'{each}'" for each in sorted(known))
            raise ValueError(f"There is no parameter {shown(name)} here; there is {listed}.")
        if name in given:
            raise ValueError(f"The parameter '{name}' is given twice; give it once.")
        given[name] = value
    return given


def _discard_body(environ: WSGIEnvironment) -> None:
    """Read what the client has sent along, within reason, so that its connection is not reset over the answer."""
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isascii() and length.isdigit():
        with contextlib.suppress(OSError):  # it has announced more than it sends
            environ["wsgi.input"].read(min(int(length), _BODY))
