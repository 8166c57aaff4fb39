"""Metrics for Prometheus (``[prometheus]``) and OpenTelemetry (``[opentelemetry]``).

``LIFECYCLE_METRICS = True`` serves them on the probe listener at ``/metrics``, together with the default registry. If
you serve metrics already, register :class:`LifecycleCollector` there; for OpenTelemetry call :func:`instrument`. The
table of metrics is in ``metrics/_table.py``.

Several processes
-----------------

In prometheus_client's multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``) a scrape reaches one worker, which adds up what
all workers have written to files. Custom collectors are not part of that. So each process there has a thread, the
:class:`_Writer`, that writes our metrics as ordinary gauges and counters: every second, and when the state changes.
Gauges end with their process if the server's configuration calls ``mark_process_dead``, and one that no longer exists
before that is written as 0. Counters are written as differences: a process that gets the number of a dead one continues
its file.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from werkzeug import Request, Response

from .._config import METRICS_PATH, MULTIPROC_DIR
from .._core.feature import Feature
from .._core.log import logger
from .._core.scheduler import Scheduler
from .._core.state import State
from ..checks._validation import needs
from ._table import METRICS as METRICS
from ._table import PREFIX, App, Metric, Sample, read

if TYPE_CHECKING:
    from .._core.process import Process

__all__ = ["LifecycleCollector", "instrument"]

MOST_SCRAPES = 4  # Two Prometheus servers and an operator; more at a time hang, in a collector of the application
# How often and at which pauses a half-made file of another worker is read again; making it takes microseconds.
_ATTEMPTS = 5
_PAUSE = 0.01
_WRITE_EACH = 1.0  # how old the metrics of another worker may be; Prometheus scrapes every 15 s to a minute
# A longer Accept header counts as absent: prometheus_client parses each version number in it. Prometheus' own has about
# 400 characters.
_LONGEST_ACCEPT = 1024


def _applications_of(subjects: Sequence[Any]) -> Callable[[], list[App]]:
    """A function for the applications of each ``Lifecycle``, also later ones, and of each Flask application.

    :raises TypeError: one is neither.
    """

    def applications(subject: Any) -> Sequence[App]:
        if "lifecycle" in getattr(subject, "extensions", ()):
            return [subject.extensions["lifecycle"]]
        if not hasattr(subject, "_states"):
            raise TypeError(
                f"Metrics need a lifecycle, which {subject!r} does not have; give a Lifecycle, or an application after"
                " init_app."
            )
        return list(subject._states())

    def found() -> list[App]:
        return list({id(app): app for subject in subjects for app in applications(subject)}.values())

    found()  # a subject without a lifecycle is an error now
    return found


# -- Prometheus ---------------------------------------------------------------------------------------------------


class LifecycleCollector:
    """A collector for a registry of prometheus_client: ``REGISTRY.register(LifecycleCollector(lifecycle))``.

    It costs nothing between scrapes, and a scrape runs no check and waits for none. Do not register it in multiprocess
    mode; with ``LIFECYCLE_METRICS`` each worker writes its metrics there.

    :param subjects: a ``Lifecycle``, or applications after ``init_app``. With several applications the metrics of each
        have its name as the label ``app``; pass all of them to one collector then.
    :raises TypeError: one of them has no lifecycle.
    :raises RuntimeError: prometheus_client is not installed.
    """

    def __init__(self, *subjects: Any) -> None:
        require_prometheus()
        self._apps = _applications_of(subjects)

    def describe(self) -> Iterator[Any]:
        """The names, for the registry that looks for duplicates."""
        return (_family(metric, ()) for metric in METRICS)

    def collect(self) -> Iterator[Any]:
        """The current metrics."""
        return families(self._apps())


def families(apps: Sequence[App]) -> Iterator[Any]:
    for metric, labels, samples in read(apps):
        family = _family(metric, labels)
        for values, value in samples:
            family.add_metric(values, value)
        yield family


def _family(metric: Metric, labels: Sequence[str]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.full_name, metric.help, labels=labels, unit="seconds" if metric.unit == "s" else "")


def require_prometheus() -> None:
    with needs("prometheus_client", "prometheus"):
        import prometheus_client  # noqa: F401


class Metrics(Feature):
    """``LIFECYCLE_METRICS``: ``/metrics`` of the probe listener, and the writer of multiprocess mode.

    :raises RuntimeError: prometheus_client is not installed.
    :raises ValueError: the directory of multiprocess mode does not exist.
    """

    def __init__(self, process: Process) -> None:
        self._members: Callable[[], Sequence[Any]] = process.applications
        self.after_fork()
        require_prometheus()
        self._directory = os.environ.get(MULTIPROC_DIR)
        if self._directory is not None and not os.path.isdir(self._directory):
            raise ValueError(
                f"'{MULTIPROC_DIR}' is {self._directory!r}, which is not a directory; create an empty one before the"
                " workers start."
            )
        self._complained = False

    @classmethod
    def of(cls, application: Any) -> Metrics:
        metrics: Metrics = application.process.share(cls)
        application.probes.listener_only |= {METRICS_PATH: metrics.respond, f"{METRICS_PATH}/": metrics.respond}
        return metrics

    def after_fork(self) -> None:
        self._room = threading.Semaphore(MOST_SCRAPES)  # a child has none of its parent's scrapes
        self._writer = _Writer(self._members)
        self._writes = False  # whether this process has begun to serve, and needs the writer

    def begin(self) -> None:
        if self._directory is not None:
            self._writes = True
            self._writer.scheduler.wake()

    def state_changed(self, new: State, reason: str) -> None:
        if self._writes:
            self._writer.scheduler.wake()

    def stop(self) -> None:
        if self._writes:
            self._writes = False
            self._writer.scheduler.stop()
            self._writer.write()
            self._writer.renew()

    # -- a scrape -------------------------------------------------------------------------------------------------

    def respond(self, request: Request) -> Response:
        """Answer a scrape of any client that reaches the probe listener."""
        from prometheus_client.exposition import choose_encoder

        if request.method not in ("GET", "HEAD"):
            return _response("metrics answer GET and HEAD\n", 405, Allow="GET, HEAD")
        room = self._room
        if not room.acquire(blocking=False):
            return _response("other scrapes have not ended\n", 503)
        try:
            accept, registry = request.environ.get("HTTP_ACCEPT", ""), cast(Any, self)
            encode, kind = choose_encoder(accept if len(accept) <= _LONGEST_ACCEPT else "")
            body = encode(registry)
        finally:
            room.release()
        return _response(body, 200, kind, Vary="Accept")

    def collect(self) -> Iterator[Any]:
        """The application's own metrics, and ours unless they are among them."""
        from prometheus_client import REGISTRY, CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        if self._directory is not None:
            if self._writes:
                self._writer.write()
            workers: Any = MultiProcessCollector(CollectorRegistry(), self._directory)  # type: ignore[no-untyped-call]
            yield from _collect_files(workers)
            return
        own = []
        try:
            own = list(REGISTRY.collect())
        except Exception:
            if not self._complained:  # once, and not at every scrape
                self._complained = True
                logger.exception(
                    "a collector of the application failed; /metrics shows only the lifecycle's metrics",
                    extra={"lifecycle_path": METRICS_PATH},
                )
        yield from own
        names = {family.name for family in own}
        yield from (family for family in families(self._members()) if family.name not in names)


def _collect_files(workers: Any) -> list[Any]:
    """The metrics in the files of all workers. A file that a worker has just created may still be empty."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(struct.error):
            return list(workers.collect())
        threading.Event().wait(_PAUSE)
    return list(workers.collect())


def _response(body: str | bytes, status: int, kind: str = "text/plain; charset=utf-8", **more: str) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **more}
    return Response(body, status, headers, content_type=kind)


class _Writer:
    """Writes the metrics of this process to the files of multiprocess mode, for all its applications."""

    def __init__(self, members: Callable[[], Sequence[Any]]) -> None:
        self._members = members
        self._lock = threading.Lock()  # guards what follows, between the thread and a scrape
        # Each metric with the values that were written, by their labels.
        self._metrics: dict[tuple[str, tuple[str, ...]], tuple[Any, dict[tuple[str, ...], float]]] = {}
        self.renew()

    def renew(self) -> None:
        """Get ready for another run of the process; what has been written still counts."""
        self.scheduler = Scheduler(self._tick, "lifecycle-metrics", "writing the metrics of this worker")

    def _tick(self) -> float:
        self.write()
        return _WRITE_EACH

    def write(self) -> None:
        with self._lock:
            for metric, labels, samples in read(self._members()):
                self._write(metric, labels, samples)

    def _write(self, metric: Metric, labels: tuple[str, ...], samples: Iterable[Sample]) -> None:
        key = (metric.name, labels)
        if key not in self._metrics:
            self._metrics[key] = _make(metric, labels), {}
        made, written = self._metrics[key]
        now = dict(samples)
        if metric.kind == "gauge":
            now = dict.fromkeys(written, 0.0) | now
        for values, value in now.items():
            before = written.get(values)
            if value != before:
                child = made.labels(*values) if values else made
                if metric.kind == "counter":
                    child.inc(max(0.0, value - (before or 0.0)))  # it is less after a fork
                else:
                    child.set(value)
                written[values] = value


def _make(metric: Metric, labels: tuple[str, ...]) -> Any:
    """A metric of multiprocess mode. It is in no registry: the files are read."""
    from prometheus_client import Counter, Gauge

    if metric.kind == "counter":
        return Counter(metric.full_name, metric.help, labels, registry=None)
    mode: Any = f"live{metric.workers}"
    return Gauge(metric.full_name, metric.help, labels, registry=None, multiprocess_mode=mode)


# -- OpenTelemetry ------------------------------------------------------------------------------------------------


def instrument(lifecycle: Any, meter_provider: Any = None) -> None:
    """Give the metrics to OpenTelemetry as observable instruments; call it once for each provider.

    They are read when the provider's reader collects, and cost nothing between.

    :param lifecycle: a ``Lifecycle``, or an application after ``init_app``.
    :param meter_provider: by default the global one.
    :raises TypeError: that has no lifecycle.
    :raises RuntimeError: opentelemetry-api is not installed.
    """
    with needs("OpenTelemetry", "opentelemetry"):
        from opentelemetry.metrics import get_meter
    apps = _applications_of([lifecycle])
    meter = get_meter(PREFIX, meter_provider=meter_provider)
    for metric in METRICS:
        make: Callable[..., Any] = meter.create_observable_gauge
        if metric.kind == "counter":
            make = meter.create_observable_counter
        elif metric.workers == "sum":  # gauges cannot be added up there
            make = meter.create_observable_up_down_counter
        # Prometheus' exporters make our name of it again, with unit and _total.
        make(f"{PREFIX}.{metric.name}", [_observe(metric, apps)], metric.unit, metric.help)


def _observe(metric: Metric, apps: Callable[[], Sequence[App]]) -> Callable[[Any], Iterator[Any]]:
    def observe(options: Any) -> Iterator[Any]:
        from opentelemetry.metrics import Observation

        for _metric, labels, samples in read(apps(), [metric]):
            for values, value in samples:
                yield Observation(value, dict(zip(labels, values, strict=True)))

    return observe
