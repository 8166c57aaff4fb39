"""A check that Celery workers answer, through the application's own broker connections."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .._config import shown
from ._check import CheckResult, HealthCheckError, check_seconds
from ._validation import needs

if TYPE_CHECKING:
    from celery import Celery  # type: ignore[import-untyped]  # it has no types

# Seconds that a run may take beyond waiting for replies: connecting, and kombu's Redis transport, which looks at the
# time only once a second.
MARGIN = 2.0


class CeleryCheck:
    """At least ``minimum`` Celery workers answer a ping in time.

    Missing answers do not prove missing workers. A worker of the ``solo`` pool answers only between two tasks; workers
    of the other pools answer while they work. Brokers without broadcasts, such as Amazon SQS, do not deliver pings.
    Missing answers take the whole ``reply_timeout``, so run this check in the background or rarely.

    A ping takes two connections of Celery's pool: one for the replies, and the producer's. With a ``broker_pool_limit``
    of 1 it would deadlock, so the check fails instead. A broker that hangs blocks the check, and a connection of
    Celery's pool, until the ``socket_timeout`` in ``broker_transport_options``, if there is one.

    :param app: the Celery application.
    :param minimum: how many workers must answer; the check ends with these and counts no more.
    :param reply_timeout: seconds that they have; one is Celery's own default. The check's own timeout is two seconds
        longer unless it is set.
    """

    scope = "shared"

    def __init__(
        self, app: Celery, *, minimum: int = 1, reply_timeout: float = 1.0, name: str = "celery workers"
    ) -> None:
        with needs("Celery", "celery"):
            from celery import Celery
        if not isinstance(app, Celery):
            raise TypeError(f"'app' must be a Celery application, not {type(app).__name__!r}.")
        if isinstance(minimum, bool) or not isinstance(minimum, int) or minimum < 1:
            raise ValueError(f"'minimum' must be a whole number of workers, at least 1, not {shown(minimum)}.")
        check_seconds("'reply_timeout'", reply_timeout)
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
        except Exception as error:  # each transport has its own errors, and kombu does not wrap all of them
            raise HealthCheckError("The broker of Celery did not answer; the log has the reason.") from error
        observed = {"answered": answered, "minimum": self._minimum}
        if answered >= self._minimum:
            return CheckResult("pass", observed=observed, value=answered)
        output = f"{answered} of at least {self._minimum} Celery workers answered within {self._reply_timeout:g} s."
        return CheckResult("fail", output, observed, answered)

    def _ping(self, connection: Any) -> int:
        """The number of answers; a stale connection, as after a restart of the broker, is replaced once."""
        try:
            return self._count(connection)
        except connection.recoverable_connection_errors:
            connection.collect()
            return self._count(connection)

    def _count(self, connection: Any) -> int:
        # By default kombu tries to connect until the broker_connection_timeout, 4 s unless set.
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=self._reply_timeout)
        end = time.monotonic() + self._reply_timeout
        answered = 0
        # A worker that was busy may answer an earlier ping now. kombu counts that answer but does not return it, so a
        # ping that returns too early with too few answers is repeated.
        while answered < self._minimum and (left := end - time.monotonic()) > 0:
            answers = self._app.control.ping(connection=connection, timeout=left, limit=self._minimum)
            answered = max(answered, len(answers or ()))  # None if there are none
        return answered
