"""What each server guarantees, and what shows it: the source of the tables in the documents.

Most is shown by the scenarios of ``flask lifecycle verify`` (``docs/verified.json``, which ``tests/catalogue`` writes
and checks), the rest by live tests. To add a server or change a guarantee, edit ``SERVERS`` and run

    python -m tests.guarantees

which writes the tables of ``README.md`` and ``docs/guarantees.md``, and that of the scenarios in ``docs/verify.md``.
``tests/test_guarantees.py`` checks them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flask_lifecycle._verify import runner
from tests.catalogue.servers import results

ROOT = Path(__file__).parent.parent
PROGRAM = "python -m tests.guarantees"
ALL_CONNECTIONS, ACCEPTED, STARTED = "all connections", "accepted requests", "started requests"
# The levels of scenarios that each includes.
LEVELS = {ALL_CONNECTIONS: ("started", "accepted", "all"), ACCEPTED: ("started", "accepted"), STARTED: ("started",)}

# What may be guaranteed: the head of its column in the documents, and the scenarios of verify that show it.
GUARANTEES: dict[str, tuple[str, tuple[str, ...]]] = {
    "busy": ("probes while all workers are busy", ("probes/live-busy",)),
    "readiness": ("readiness fails first", ("probes/ready-fails",)),
    "running": (
        "running requests",
        ("in-flight/running", "in-flight/streamed", "in-flight/http-1.0", "in-flight/half-closed"),
    ),
    "held": (
        "queued, half-received and pipelined requests",
        (
            *("in-flight/queued", "in-flight/half-head", "in-flight/half-body", "in-flight/trickled"),
            *("in-flight/chunked", "in-flight/expect", "in-flight/pipelined"),
        ),
    ),
    "kernel": (
        "connections in the kernel's accept queue",
        ("accept/queue", "accept/flood", "accept/storm", "accept/storm-kept"),
    ),
    "unsent": ("whole responses to slow readers", ("in-flight/slow-reader", "in-flight/sendfile")),
    "websockets": ("websockets", ("in-flight/websocket",)),
    "late": ("new requests after the delay", ()),
    "hooks": ("`on_shutdown` functions run once", ("hooks/run", "hooks/after-the-last-response", "hooks/once")),
    "bounded": ("exits within the grace period", ("exit/hung-request", "exit/during-start", "exit/thread-left")),
}


class Cell(NamedTuple):
    """What is kept, in words that begin with yes or no where it is the one or the other, and what shows it."""

    words: str
    tests: tuple[str, ...] = ()
    """What shows it beside the scenarios: ``file::function`` or ``file::function[parameters]``, of ``tests/live`` or
    ``tests/services``."""


class Server(NamedTuple):
    """A server, in one way of starting it. ``tests/catalogue/servers.py`` has the command of most."""

    started: str
    kind: str
    """The class whose ``guarantee`` is that of the row, as ``module:Class`` of ``flask_lifecycle._servers``; empty for
    those that are not recognised."""
    guarantee: str
    phrase: str
    """What a reader of the README is to know of it, in one phrase."""
    cells: Mapping[str, Cell]
    parameter: str = ""
    """How the tests that run on several servers call it."""


CLOSED = "the listener is closed"
BEST_EFFORT = "yes; [best effort](#closing-the-listener) before Linux 5.7 and on other systems"
_FIRST_OF_A_PIPELINE = "yes; of pipelined requests only the first, with `Connection: close`"
_PROBE_PORT = "with `LIFECYCLE_PROBE_PORT`"
_YIELDS = "yes, unless a request computes without yielding"
_IN_FLIGHT = "yes, in flight until they close"


def of(file: str, **tests: str) -> dict[str, tuple[str, ...]]:
    """Tests of one file, by what they show."""
    return {each: tuple(f"{file}::test_{test}" for test in names.split()) for each, names in tests.items()}


def cells(tests: Mapping[str, tuple[str, ...]] | None = None, **words: str) -> dict[str, Cell]:
    """A cell for each guarantee: its words, or "yes"; with the tests of some."""
    words = {"websockets": "not tested", "late": CLOSED, "kernel": BEST_EFFORT, **words}
    tests = {**_DELAY, **(tests or {})}
    return {each: Cell(words.get(each, "yes"), tests.get(each, ())) for each in GUARANTEES}


_DELAY = of("test_promise.py", late="the_delay")
_WERKZEUG = of("test_websockets.py", websockets="a_websocket_that_notices_the_drain a_close_frame_that_is_not_answered")
_GUNICORN = of("test_gunicorn.py", late="the_accept_queue_is_served")
_GUNICORN_ALONE = of("test_gunicorn.py", late="without_hooks_a_late_request_is_refused")
_MOD_WSGI = ("test_mod_wsgi.py::test_mod_wsgi_answers_what_it_has",)
_UWSGI = of("test_other_servers.py", running="uwsgi_answers_what_it_runs", held="uwsgi_that_is_drained_loses_nothing")

SERVERS = {
    "waitress": Server(
        "`flask lifecycle run`, `Lifecycle.run()`", "waitress:Waitress", ALL_CONNECTIONS,
        "the default", cells(websockets="not supported by waitress"), "waitress",
    ),
    "Werkzeug": Server(
        "`flask lifecycle run --server werkzeug`", "werkzeug:RunningWerkzeug", ALL_CONNECTIONS,
        "one thread per connection", cells(_WERKZEUG, held=_FIRST_OF_A_PIPELINE, websockets=_IN_FLIGHT), "werkzeug",
    ),
    "standalone waitress": Server(
        "`waitress-serve`, `serve()`", "waitress:Waitress", ALL_CONNECTIONS,
        "", cells(websockets="not supported by waitress"), "waitress-serve",
    ),
    "cheroot": Server(
        "`flask lifecycle run --server cheroot`", "cheroot:RunningCheroot", ALL_CONNECTIONS, "a thread pool",
        cells(busy=_PROBE_PORT, websockets="not supported by cheroot"), "cheroot",
    ),
    "standalone cheroot": Server(
        "`cheroot`, `cheroot.wsgi.Server().start()`", "cheroot:Cheroot", ALL_CONNECTIONS, "",
        cells(busy=_PROBE_PORT, websockets="not supported by cheroot"), "cheroot-alone",
    ),
    "gevent": Server(
        "`flask lifecycle run --server gevent`", "gevent:RunningGevent", ALL_CONNECTIONS, "one greenlet per connection",
        cells(busy=_YIELDS), "gevent",
    ),
    "standalone gevent": Server(
        "`gevent.pywsgi.WSGIServer().serve_forever()`", "gevent:Gevent", ALL_CONNECTIONS, "",
        cells(busy=_YIELDS), "gevent-alone",
    ),
    "Flask's own": Server(
        "`flask run`, `app.run()`, `run_simple`", "werkzeug:Werkzeug", ALL_CONNECTIONS, "",
        cells(
            of(
                "test_flask_run.py", hooks="a_change_of_code_in_the_middle_of_a_request",
                bounded="processes_that_hang_are_killed",
            ),
            busy="yes, except with `--without-threads`", held=_FIRST_OF_A_PIPELINE, websockets=_IN_FLIGHT,
            hooks="yes; with the reloader, in each serving process",
        ),
        "flask-run",
    ),
    "gunicorn": Server(
        "sync or gthread, with `from flask_lifecycle.gunicorn import *` in `gunicorn.conf.py`",
        "gunicorn.worker:HookedWorker", ALL_CONNECTIONS, "",
        cells(
            _GUNICORN,
            busy=_PROBE_PORT, readiness="yes, in all workers at once", held=_FIRST_OF_A_PIPELINE,
            websockets="yes, with gthread", hooks="yes, once in each worker",
            late="served until the accept queue is empty, then the listener is closed",
        ),
        "gthread",
    ),
    "gunicorn's gevent worker": Server(
        "gevent, with the same import", "gunicorn.worker:HookedWorker", ALL_CONNECTIONS,
        "takes up to two seconds longer",
        cells(
            _GUNICORN, busy=f"{_YIELDS} (even on the probe listener)", readiness="yes, in all workers at once",
            held=_FIRST_OF_A_PIPELINE, late="served for at most one more second", hooks="yes, once in each worker",
            websockets="yes",
        ),
        "gevent",
    ),
    "uvicorn": Server(
        "`uvicorn --interface wsgi`, a2wsgi", "asgi.uvicorn:Uvicorn", ALL_CONNECTIONS,
        "accepted requests with `--workers`, `--reload` or gunicorn",
        cells(busy=_PROBE_PORT, held=_FIRST_OF_A_PIPELINE), "uvicorn",
    ),
    "hypercorn": Server(
        "`hypercorn wsgi:app:app`, a2wsgi", "", ACCEPTED, "all connections with `--workers 0`",
        cells(
            busy=_PROBE_PORT, readiness="yes, each worker within 0.1 s", held=_FIRST_OF_A_PIPELINE,
            kernel="no: those still queued when the last worker closes its listener are lost",
            hooks="yes, once in each worker",
        ),
        "hypercorn",
    ),
    "granian": Server(
        "`granian --interface wsgi`", "asgi.granian:Granian", ACCEPTED, "any number of workers",
        cells(
            busy=_PROBE_PORT, readiness="yes, in all workers at once", kernel="left to granian",
            hooks="yes, once in each worker",
        ),
        "granian",
    ),
    "uWSGI": Server(
        "with the configuration in [examples/uwsgi](../examples/uwsgi/uwsgi.ini)", "uwsgi:Uwsgi", STARTED,
        "accepted requests if you run `flask lifecycle drain` first",
        cells(
            {**_UWSGI, "hooks": _UWSGI["running"], "late": _UWSGI["held"]},
            busy=_PROBE_PORT, readiness="only if drained first", held="only if drained first",
            kernel="only if drained first", unsent="left to uWSGI", late="refused with 503 if drained first",
            hooks="yes, once in each worker", bounded="by `worker-reload-mercy`",
        ),
    ),
    "mod_wsgi": Server(
        "in daemon mode, with [examples/mod_wsgi](../examples/mod_wsgi/shop.conf)", "", ACCEPTED,
        "if you stop Apache with SIGWINCH; SIGTERM cuts off running requests",
        cells(
            dict.fromkeys(("running", "held", "unsent", "late", "hooks"), _MOD_WSGI),
            busy=_PROBE_PORT, readiness="only if drained first", kernel="left to Apache",
            hooks="yes, once in each process", bounded="by `GracefulShutdownTimeout` and `shutdown-timeout`",
        ),
    ),
    "gunicorn without the hooks": Server(
        "`init_app` alone", "gunicorn.unhooked:UnhookedGunicorn", STARTED, "",
        cells(
            _GUNICORN_ALONE,
            busy=_PROBE_PORT, readiness="in each worker, without `--preload`", held="no, refused with 503",
            kernel="no", unsent="left to gunicorn", late="refused with 503", hooks="yes, once in each worker",
            bounded="yes, within gunicorn's own limits",
        ),
        "gthread",
    ),
    "others": Server(
        "`init_app` alone", "", STARTED, "if the signal reaches the application",
        cells(
            {"late": ()},
            busy=_PROBE_PORT, readiness="if the signal reaches the application", late="refused with 503",
            **dict.fromkeys(("running", "held", "kernel", "unsent"), "depends on the server"),
            websockets="depends on the server; in flight until they close",
            hooks="before the signal is passed on, if a request has been served",
            bounded="within the server's own limits",
        ),
    ),
}  # fmt: skip

# The README has these in the row of another server.
SAME = {
    "standalone waitress": "waitress",
    "standalone cheroot": "cheroot",
    "standalone gevent": "gevent",
    "Flask's own": "Werkzeug",
}


def level(server: Server) -> str:
    """Which guarantee the cells of a server add up to."""

    def kept(guarantee: str) -> bool:
        return server.cells[guarantee].words.startswith("yes")

    return ALL_CONNECTIONS if kept("held") and kept("kernel") else ACCEPTED if kept("held") else STARTED


def long_tables() -> str:
    """Those of ``docs/guarantees.md``: a row for each server, in tables that fit a page."""
    start = [["server", "how it is started", "guarantee", "websockets"]]
    start += [[name, each.started, each.guarantee, each.cells["websockets"].words] for name, each in SERVERS.items()]
    return "\n".join(
        [
            _table(start),
            "## What is answered\n",
            _of_cells("running", "held", "kernel", "unsent"),
            "## Probes, hooks and the exit\n",
            _of_cells("busy", "readiness", "late", "hooks", "bounded"),
            "## Scenario by scenario\n",
            _of_results(),
        ]
    )


def _of_cells(*guarantees: str) -> str:
    rows = [["server", *(GUARANTEES[each][0] for each in guarantees)]]
    rows += [[name, *(server.cells[each].words for each in guarantees)] for name, server in SERVERS.items()]
    return _table(rows)


def _of_results() -> str:
    found = results()
    rows = [["server", "broken", "not checked, because the server does not support it"]]
    for name, by_scenario in found.items():
        rows.append([name])
        for result in ("broken", "not checked"):
            rows[-1].append(", ".join(f"`{each}`" for each, was in by_scenario.items() if was == result) or "none")
    return (
        "CI runs [every scenario](verify.md#the-scenarios) of `flask lifecycle verify` on these servers."
        " Every scenario that the\nserver's guarantee includes holds. Of the others, these do not:\n\n" + _table(rows)
    )


def short_table() -> str:
    """That of the README, with one row for all ways to start a server that have the same guarantee."""
    rows = {}
    for name, each in SERVERS.items():
        if (first := SAME.get(name)) is None:
            rows[name] = [name, each.started, f"**{each.guarantee}**", each.phrase]
        else:
            assert each.guarantee == SERVERS[first].guarantee
            rows[first][1] += f", {each.started}"
    return _table([["server", "how it is started", "guarantee", "notes"], *rows.values()]).replace("](../", "](")


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def scenarios() -> str:
    """That of ``docs/verify.md``, whose last column is written there, and kept."""
    page = (ROOT / "docs/verify.md").read_text(encoding="utf-8")
    why = dict(re.findall(r"^\| `(\S+/\S+)` \|.*\| (.+) \|$", page, re.MULTILINE))
    rows = [[f"`{each.name}`", each.level, each.promise, why[each.name]] for each in runner.choose((), ())]
    return _table([["scenario", "guarantee", "what must hold", "why it matters"], *rows])


TABLES = {"README.md": short_table, "docs/guarantees.md": long_tables, "docs/verify.md": scenarios}


def updated(name: str) -> str:
    """A document with its table, between the marks of this program."""
    marked = rf"(^<!-- {re.escape(PROGRAM)} writes this -->\n\n).*?(\n<!-- end -->$)"
    table, text = TABLES[name](), (ROOT / name).read_text(encoding="utf-8")
    return re.sub(marked, lambda marks: marks[1] + table + marks[2], text, count=1, flags=re.DOTALL | re.MULTILINE)


def main() -> None:
    """Write the tables."""
    for name in TABLES:
        (ROOT / name).write_text(updated(name), encoding="utf-8")


if __name__ == "__main__":
    main()
