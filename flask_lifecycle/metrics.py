"""The figures of an application for Prometheus (``[prometheus]``) and OpenTelemetry (``[opentelemetry]``).

``LIFECYCLE_METRICS = True`` serves them on the probe listener at ``/metrics``, with what else is in the default
registry. Whoever serves metrics already registers :class:`LifecycleCollector`, and whoever has OpenTelemetry calls
:func:`instrument`. What there is to see stands in ``_figures.py``.

Several processes
-----------------

In prometheus_client's multiprocess mode (``PROMETHEUS_MULTIPROC_DIR``) a scrape reaches one worker, which adds up what
all of them have written to files; custom collectors are not part of that, because nobody could ask those of another
process. So there each process has a thread, the :class:`_Writer`, that writes our figures as the gauges and counters
that everybody else has: each second, and at once when the state changes. Gauges are ``live`` ones, which go with their
process if the server's configuration calls ``mark_process_dead``; counters stay, as a sum over the dead and the living.

A gauge of that mode cannot be taken back, so what there is no more (a token's name) is written as 0. Counters are told
as differences: a process that gets the number of one that died goes on where that one's file ends.

What cannot hang
----------------

A scrape runs the application's own collectors, and one of those may hang. Of the answers that the probe listener gives
at once no more than :data:`MOST_SCRAPES` are scrapes, so that probes go on being answered.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._config import METRICS_PATH, MULTIPROC_DIR
from ._figures import FIGURES, PREFIX, App, Figure, Sample, read
from ._scheduler import Scheduler
from ._state import State, logger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["LifecycleCollector", "instrument"]

# Two Prometheus servers and a curious operator; more than that hang.
MOST_SCRAPES = 4
# A worker makes its file and writes to it, which is a matter of microseconds; so often, and so long apart, is looked.
_ATTEMPTS = 5
_PAUSE = 0.01
# How old the figures of another worker may be; Prometheus scrapes each 15 s to a minute.
_WRITE_EACH = 1.0


def _found_in(subject: Any) -> Callable[[], Sequence[App]]:
    """What gives the applications of a ``Lifecycle``, also those it is still to get, or the one that a Flask is.

    :raises TypeError: it is neither.
    """
    if hasattr(subject, "extensions") and "lifecycle" in subject.extensions:
        state: App = subject.extensions["lifecycle"]
        return lambda: [state]
    if not hasattr(subject, "_states"):
        raise TypeError(
            f"Metrics were asked of {subject!r}, which has no lifecycle; give a Lifecycle, or an application after"
            " init_app."
        )
    states: Callable[[], Sequence[App]] = subject._states
    return states


def _all_of(subjects: Sequence[Any]) -> Callable[[], list[App]]:
    sources = [_found_in(subject) for subject in subjects]
    return lambda: list({id(app): app for source in sources for app in source()}.values())


# -- Prometheus ---------------------------------------------------------------------------------------------------


class LifecycleCollector:
    """A collector for a registry of prometheus_client: ``REGISTRY.register(LifecycleCollector(lifecycle))``.

    It costs nothing until it is asked, and then it reads what is known: no check is run, nobody is waited for. In
    multiprocess mode register none; ``LIFECYCLE_METRICS`` has each worker write its figures there.

    :param subjects: a ``Lifecycle``, or applications after ``init_app``. With more than one application the figures
        that each has carry its name as the label ``app``; name all of them in one collector then.
    :raises TypeError: one of them has no lifecycle.
    :raises RuntimeError: prometheus_client is not installed.
    """

    def __init__(self, *subjects: Any) -> None:
        require_prometheus()
        self._apps = _all_of(subjects)

    def describe(self) -> Iterator[Any]:
        """The names, for the registry that looks for duplicates."""
        return (_family(figure, ()) for figure in FIGURES)

    def collect(self) -> Iterator[Any]:
        """All figures as they are now."""
        return families(self._apps())


def families(apps: Sequence[App]) -> Iterator[Any]:
    """The figures of applications as metric families."""
    for figure, labels, samples in read(apps):
        family = _family(figure, labels)
        for values, value in samples:
            family.add_metric(values, value)
        yield family


def _family(figure: Figure, labels: Sequence[str]) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    return kind(figure.full_name, figure.help, labels=labels, unit="seconds" if figure.unit == "s" else "")


def require_prometheus() -> None:
    """Refuse to go on without prometheus_client.

    :raises RuntimeError: it is not installed.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise RuntimeError(
            "prometheus_client is not installed; install it with: pip install 'flask-lifecycle[prometheus]'"
        ) from None


class Metrics:
    """``LIFECYCLE_METRICS``: what the probe listener answers at ``/metrics``, and the writer of multiprocess mode.

    :raises RuntimeError: prometheus_client is not installed.
    :raises ValueError: the directory of multiprocess mode is none.
    """

    def __init__(self, members: Callable[[], Sequence[Any]], environ: Mapping[str, str] = os.environ) -> None:
        require_prometheus()
        self._members = members
        self._directory = environ.get(MULTIPROC_DIR)
        if self._directory is not None and not os.path.isdir(self._directory):
            raise ValueError(
                f"'{MULTIPROC_DIR}' is {self._directory!r}, which is no directory;"
                " make it before the workers start, and empty."
            )
        self._complained = False
        self._forget()

    def _forget(self) -> None:
        self._room = threading.Semaphore(MOST_SCRAPES)

    # -- as a companion -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self._forget()  # in a forked child nobody would give back what the parent's scrapes hold
        if self._directory is not None:
            _Writer.begin(self._members)

    def state_changed(self, new: State, reason: str) -> None:
        writer = _Writer.here()
        if writer is not None:
            writer.wake()

    def end(self) -> None:
        writer = _Writer.here()
        if writer is not None:
            writer.end()

    # -- as a WSGI application ------------------------------------------------------------------------------------

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a scrape, to whoever reaches the probe listener."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _plain(start_response, "405 METHOD NOT ALLOWED", b"metrics answer GET and HEAD\n", Allow="GET, HEAD")
        if not self._room.acquire(blocking=False):
            return _plain(start_response, "503 SERVICE UNAVAILABLE", b"other scrapes have not ended\n")
        try:
            kind, body = self._expose(environ.get("HTTP_ACCEPT", ""))
        finally:
            self._room.release()
        answer = _answer(start_response, "200 OK", kind, body, Vary="Accept")
        return answer if environ["REQUEST_METHOD"] == "GET" else [b""]

    def _expose(self, accept: str) -> tuple[str, bytes]:
        from prometheus_client.exposition import choose_encoder

        encode, kind = choose_encoder(accept)
        registry: Any = self
        return kind, encode(registry)

    def collect(self) -> Iterator[Any]:
        """What the application has registered itself, and ours as far as they are not among that."""
        from prometheus_client import REGISTRY, CollectorRegistry
        from prometheus_client.multiprocess import MultiProcessCollector

        if self._directory is not None:
            writer = _Writer.here()
            if writer is not None:
                writer.write()
            workers: Any = MultiProcessCollector(CollectorRegistry(), self._directory)  # type: ignore[no-untyped-call]
            yield from _collect_files(workers)
            return
        there = []
        try:
            there = list(REGISTRY.collect())
        except Exception:
            if not self._complained:  # a scrape is not logged, so this is once
                self._complained = True
                logger.exception(
                    "a collector of the application failed; /metrics shows the lifecycle's figures alone",
                    extra={"lifecycle_path": METRICS_PATH},
                )
        yield from there
        names = {family.name for family in there}
        yield from (family for family in families(self._members()) if family.name not in names)


def _collect_files(workers: Any) -> list[Any]:
    """What all workers have written. A file that a worker has just made, and has not written to, is no file to it."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(struct.error):
            return list(workers.collect())
        threading.Event().wait(_PAUSE)
    return list(workers.collect())


def _answer(start_response: StartResponse, status: str, kind: str, body: bytes, **more: str) -> list[bytes]:
    headers = {
        "Content-Type": kind,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **more,
    }
    start_response(status, list(headers.items()))
    return [body]


def _plain(start_response: StartResponse, status: str, body: bytes, **more: str) -> list[bytes]:
    return _answer(start_response, status, "text/plain; charset=utf-8", body, **more)


class _Writer:
    """Writes the figures of this process to the files of multiprocess mode; one in a process, for all applications."""

    _by_process: dict[int, _Writer] = {}  # noqa: RUF012  by pid, so that a forked child finds none

    def __init__(self, members: Callable[[], Sequence[Any]]) -> None:
        self._members = members
        self._lock = threading.Lock()  # guards what follows, between the thread and a scrape
        self._metrics: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._written: dict[tuple[str, tuple[str, ...]], dict[tuple[str, ...], float]] = {}
        self._complained = False
        self._scheduler = Scheduler(self._tick, "lifecycle-metrics", "metrics of this worker")

    @classmethod
    def begin(cls, members: Callable[[], Sequence[App]]) -> None:
        """Have this process's write from now on; the applications of a process share it."""
        cls._by_process.setdefault(os.getpid(), cls(members)).wake()

    @classmethod
    def here(cls) -> _Writer | None:
        """That of this process, if it has begun."""
        return cls._by_process.get(os.getpid())

    def wake(self) -> None:
        """Write soon. Does not block."""
        self._scheduler.wake()

    def end(self) -> None:
        """Write the last time."""
        self._by_process.pop(os.getpid(), None)
        self._scheduler.stop()
        self.write()

    def _tick(self) -> float:
        try:
            self.write()
        except Exception:
            if not self._complained:  # it would come each second
                self._complained = True
                logger.exception(
                    "the metrics of this worker could not be written; they will be tried again",
                    extra={"lifecycle_what": "metrics"},
                )
        return _WRITE_EACH

    def write(self) -> None:
        """Write what has changed."""
        with self._lock:
            for figure, labels, samples in read(self._members()):
                self._write(figure, labels, samples)

    def _write(self, figure: Figure, labels: tuple[str, ...], samples: Iterable[Sample]) -> None:
        key = (figure.name, labels)
        if key not in self._metrics:
            self._metrics[key] = _make(figure, labels)
            self._written[key] = {}
        metric, written = self._metrics[key], self._written[key]
        now = dict(samples)
        if figure.kind == "gauge":
            now = dict.fromkeys(written, 0.0) | now
        for values, value in now.items():
            before = written.get(values)
            if value != before:
                child = metric.labels(*values) if values else metric
                if figure.kind == "counter":
                    child.inc(max(0.0, value - (before or 0.0)))  # less, where a process has been made anew
                else:
                    child.set(value)
                written[values] = value


def _make(figure: Figure, labels: tuple[str, ...]) -> Any:
    """A metric of multiprocess mode. It is in no registry: the files are what is read."""
    from prometheus_client import Counter, Gauge

    if figure.kind == "counter":
        return Counter(figure.full_name, figure.help, labels, registry=None)
    mode: Any = f"live{figure.workers}"
    return Gauge(figure.full_name, figure.help, labels, registry=None, multiprocess_mode=mode)


# -- OpenTelemetry ------------------------------------------------------------------------------------------------


def instrument(lifecycle: Any, meter_provider: Any = None) -> None:
    """Give the figures to OpenTelemetry, as observable instruments; once for each provider.

    They are read whenever the provider's reader collects, and cost nothing before.

    :param lifecycle: a ``Lifecycle``, or an application after ``init_app``.
    :param meter_provider: by default the global one.
    :raises TypeError: that has no lifecycle.
    :raises RuntimeError: opentelemetry-api is not installed.
    """
    try:
        from opentelemetry.metrics import get_meter
    except ImportError:
        raise RuntimeError(
            "OpenTelemetry is not installed; install it with: pip install 'flask-lifecycle[opentelemetry]'"
        ) from None
    apps = _all_of([lifecycle])
    meter = get_meter(PREFIX, meter_provider=meter_provider)
    for figure in FIGURES:
        make: Callable[..., Any] = meter.create_observable_gauge
        if figure.kind == "counter":
            make = meter.create_observable_counter
        elif figure.workers == "sum":  # what may be added up is no gauge there
            make = meter.create_observable_up_down_counter
        # The name that Prometheus' exporters make ours of again, with unit and _total.
        make(f"{PREFIX}.{figure.name}", [_observe(figure, apps)], figure.unit, figure.help)


def _observe(figure: Figure, apps: Callable[[], Sequence[App]]) -> Callable[[Any], Iterator[Any]]:
    def observe(options: Any) -> Iterator[Any]:
        from opentelemetry.metrics import Observation

        for _figure, labels, samples in read(apps(), [figure]):
            for values, value in samples:
                yield Observation(value, dict(zip(labels, values, strict=True)))

    return observe
