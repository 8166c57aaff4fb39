"""A check that Celery workers answer, through the application's own broker connections."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from ._check import CheckResult, HealthCheckError

if TYPE_CHECKING:
    from celery import Celery  # type: ignore[import-untyped]  # it has no types

__all__ = ["CeleryCheck"]

# What a run may take beyond waiting for replies, in seconds: connecting, and kombu's Redis transport, which
# notices only once a second that it has waited long enough.
MARGIN = 2.0


class CeleryCheck:
    """At least so many Celery workers answer a ping within the time that they have for it.

    Too few answers are not proof of too few workers. A worker of the ``solo`` pool answers only between two
    tasks, so it is silent while it is busy; those of the other pools answer while they work. Brokers
    without broadcasts, such as Amazon SQS, pass no ping on. As the answers of missing workers are waited for, run it in
    the background or rarely.

    A ping takes two connections of Celery's pool: one for the replies, and the producer's. With a ``broker_pool_limit``
    of 1 it would wait for itself for ever, so the check fails instead.

    A broker that hangs holds the check, and a connection of Celery's pool, until the ``socket_timeout`` in
    ``broker_transport_options``, if there is one.

    :param app: the Celery application.
    :param minimum: how many workers have to answer; with these the check is over, so more are not counted.
    :param reply_timeout: seconds that they have; one is Celery's own default. The check's own timeout is two
        seconds longer unless it is set.
    """

    scope = "shared"

    def __init__(
        self, app: Celery, *, minimum: int = 1, reply_timeout: float = 1.0, name: str = "celery workers"
    ) -> None:
        _accept(app, minimum, reply_timeout)
        self.name = name
        self.timeout = reply_timeout + MARGIN
        self._app = app
        self._minimum = minimum
        self._reply_timeout = reply_timeout

    def __call__(self) -> CheckResult:
        from kombu.exceptions import LimitExceeded

        if self._app.conf.broker_pool_limit == 1:
            raise HealthCheckError(
                "A ping takes two connections to the broker, and 'broker_pool_limit' is 1; set it to 2 or more."
            )
        try:
            with self._app.pool.acquire(block=True, timeout=self._reply_timeout) as connection:
                answered = self._ping(connection)
        except LimitExceeded as error:
            raise HealthCheckError(
                "No connection of Celery's pool became free in time; raise 'broker_pool_limit'."
            ) from error
        except Exception as error:  # each transport has its own errors, and not all are wrapped by kombu
            raise HealthCheckError("The broker of Celery did not answer; the log says why.") from error
        observed = {"answered": answered, "minimum": self._minimum}
        if answered >= self._minimum:
            return CheckResult("pass", observed=observed, value=answered)
        output = f"{answered} of at least {self._minimum} Celery workers answered within {self._reply_timeout:g} s."
        return CheckResult("fail", output, observed, answered)

    def _ping(self, connection: Any) -> int:
        """How many answered; a stale connection, as after a restart of the broker, is replaced once."""
        try:
            return self._count(connection)
        except connection.recoverable_connection_errors:
            connection.collect()
            return self._count(connection)

    def _count(self, connection: Any) -> int:
        # Left to itself, kombu tries to connect until after the broker_connection_timeout, 4 s unless set.
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=self._reply_timeout)
        end = time.monotonic() + self._reply_timeout
        answered = 0
        # A worker that was busy answers an earlier ping now, and kombu counts that as one of the answers that it waits
        # for but does not return it. So what comes back too early with too few answers is asked for again.
        while answered < self._minimum and (left := end - time.monotonic()) > 0:
            answers = self._app.control.ping(connection=connection, timeout=left, limit=self._minimum)
            answered = max(answered, len(answers or ()))  # none at all may be None
        return answered


def _accept(app: Any, minimum: Any, reply_timeout: Any) -> None:
    try:
        from celery import Celery
    except ImportError:
        raise RuntimeError("Celery is not installed; install it with: pip install 'flask-lifecycle[celery]'") from None
    if not isinstance(app, Celery):
        raise TypeError(f"'app' must be a Celery application, not {type(app).__name__!r}.")
    if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 1:
        raise ValueError(f"'minimum' must be a whole number of workers, at least 1, not {minimum!r}.")
    number = isinstance(reply_timeout, (int, float)) and not isinstance(reply_timeout, bool)
    if not number or not math.isfinite(reply_timeout) or reply_timeout <= 0:
        raise ValueError(f"'reply_timeout' must be a number of seconds greater than zero, not {reply_timeout!r}.")
