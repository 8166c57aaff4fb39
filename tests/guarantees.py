"""What each server guarantees, with the live tests that show it: the source of the tables in the documents.

To add a server or change a guarantee, edit ``SERVERS`` and run

    python -m tests.guarantees

which writes the tables of ``README.md`` and ``docs/guarantees.md``. ``tests/test_guarantees.py`` checks them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flask_lifecycle._core.server import ACCEPTED, ALL_CONNECTIONS, STARTED

ROOT = Path(__file__).parent.parent

# What may be guaranteed, each with the head of its column in the documents.
GUARANTEES = {
    "busy": "probes while all workers are busy",
    "readiness": "readiness fails first",
    "running": "running requests",
    "held": "queued, half-received and pipelined requests",
    "kernel": "connections in the kernel's accept queue",
    "unsent": "whole responses to slow readers",
    "websockets": "websockets",
    "late": "new requests after the delay",
    "hooks": "`on_shutdown` functions run once",
    "bounded": "exits within the grace period",
}


class Cell(NamedTuple):
    """What is kept, in words that begin with yes or no where it is the one or the other, and what shows it."""

    words: str
    tests: tuple[str, ...] = ()
    """``file::function`` or ``file::function[parameters]``, of ``tests/live`` or ``tests/services``."""


class Server(NamedTuple):
    """A server, in one way of starting it."""

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


def cells(tests: Mapping[str, tuple[str, ...]], **words: str) -> dict[str, Cell]:
    """A cell for each guarantee: its words, or "yes" where a test shows it."""
    words = {"websockets": "not tested", **words}
    return {each: Cell(words.get(each, "yes" if each in tests else ""), tests.get(each, ())) for each in GUARANTEES}


_PROMISE = of(
    "test_promise.py",
    **dict.fromkeys(("running", "held", "unsent", "hooks"), "every_accepted_request_is_answered"),
    **dict.fromkeys(("readiness", "late"), "the_delay"),
    kernel="every_accepted_request_is_answered a_storm",
    bounded="a_request_longer_than_the_grace_period",
)
_BUSY = of("test_probes.py", busy="all_workers_busy")
_WERKZEUG = of("test_websockets.py", websockets="a_websocket_that_notices_the_drain a_close_frame_that_is_not_answered")


def all_connections(tests: Mapping[str, tuple[str, ...]] = _BUSY, **words: str) -> dict[str, Cell]:
    """The cells of a server that answers all connections, as ``test_promise.py`` shows, with further tests."""
    return cells({**_PROMISE, **tests}, **{"late": CLOSED, "kernel": BEST_EFFORT, **words})


_FLASK_RUN = {
    **of("test_websockets.py", websockets="flask_run"),
    **of(
        "test_flask_run.py",
        busy="whatever_is_accepted_is_answered",
        running="whatever_is_accepted_is_answered",
        hooks="whatever_is_accepted_is_answered a_change_of_code_in_the_middle_of_a_request",
        bounded="processes_that_hang_are_killed",
    ),
}
_GUNICORN = of(
    "test_gunicorn.py",
    **dict.fromkeys(("busy", "readiness"), "all_workers_leave_together"),
    **dict.fromkeys(("running", "unsent", "hooks"), "what_is_under_way_is_answered"),
    held="what_is_under_way_is_answered the_queue_behind_a_busy_worker_is_served",
    kernel="the_accept_queue_is_served a_stop_under_load_loses_nothing",
    late="the_accept_queue_is_served",
    bounded="a_request_that_hangs waiting_connections_hold_no_stop",
)
_GUNICORN_GEVENT = {
    **_GUNICORN,
    **of("test_gunicorn.py", held="what_is_under_way_is_answered"),
    **of("test_gunicorn.py", kernel="the_accept_queue_is_served recycled_workers_lose_nothing"),
}
_GUNICORN_ALONE = of(
    "test_gunicorn.py",
    busy="without_hooks_all_workers_have_the_probe_listener",
    readiness="without_hooks_readiness_turns_first",
    running="without_hooks_started_requests_are_answered",
    held="without_hooks_half_a_request",
    late="without_hooks_a_late_request_is_refused",
    hooks="without_hooks_workers_start_by_themselves without_hooks_a_recycled_worker_runs_its_hooks",
)
_HYPERCORN = {
    **of("test_promise.py", readiness="the_delay", bounded="a_request_longer_than_the_grace_period"),
    **of("test_other_servers.py", workers="hypercorns_workers_answer_what_they_have"),
}
_GRANIAN = {
    **of("test_promise.py", readiness="the_delay", bounded="a_request_longer_than_the_grace_period"),
    **of("test_other_servers.py", workers="granians_workers_answer_what_they_have"),
}
_MOD_WSGI = of("test_mod_wsgi.py", running="mod_wsgi_answers_what_it_has")
_UWSGI = of("test_other_servers.py", running="uwsgi_answers_what_it_runs", held="uwsgi_that_is_drained_loses_nothing")

SERVERS = {
    "waitress": Server(
        "`flask lifecycle run`, `Lifecycle.run()`", "waitress:Waitress", ALL_CONNECTIONS,
        "the default", all_connections(websockets="not supported by waitress"), "waitress",
    ),
    "Werkzeug": Server(
        "`flask lifecycle run --server werkzeug`", "werkzeug:RunningWerkzeug", ALL_CONNECTIONS,
        "one thread per connection",
        all_connections({**_BUSY, **_WERKZEUG}, held=_FIRST_OF_A_PIPELINE, websockets=_IN_FLIGHT),
        "werkzeug",
    ),
    "waitress by itself": Server(
        "`waitress-serve`, `serve()`", "waitress:Waitress", ALL_CONNECTIONS,
        "needs only `init_app`; waitress itself handles Ctrl-C",
        all_connections(websockets="not supported by waitress"), "waitress-serve",
    ),
    "cheroot": Server(
        "`flask lifecycle run --server cheroot`", "cheroot:RunningCheroot", ALL_CONNECTIONS, "a thread pool",
        all_connections(busy=_PROBE_PORT, websockets="not supported by cheroot"), "cheroot",
    ),
    "cheroot by itself": Server(
        "`cheroot`, `cheroot.wsgi.Server().start()`", "cheroot:Cheroot", ALL_CONNECTIONS, "needs only `init_app`",
        all_connections({}, busy=_PROBE_PORT, websockets="not supported by cheroot"), "cheroot-alone",
    ),
    "gevent": Server(
        "`flask lifecycle run --server gevent`", "gevent:RunningGevent", ALL_CONNECTIONS, "one greenlet per connection",
        all_connections(busy=_YIELDS), "gevent",
    ),
    "gevent by itself": Server(
        "`gevent.pywsgi.WSGIServer().serve_forever()`", "gevent:Gevent", ALL_CONNECTIONS, "needs only `init_app`",
        all_connections({"busy": _PROMISE["readiness"]}, busy=_YIELDS), "gevent-alone",
    ),
    "Flask's own": Server(
        "`flask run`, `app.run()`, `run_simple`", "werkzeug:Werkzeug", ALL_CONNECTIONS,
        "needs only `init_app`, also with the reloader",
        all_connections(
            _FLASK_RUN, busy="yes, except with `--without-threads`", held=_FIRST_OF_A_PIPELINE, websockets=_IN_FLIGHT,
            hooks="yes; with the reloader, in each serving process",
        ),
        "flask-run",
    ),
    "gunicorn": Server(
        "sync, gthread; `from flask_lifecycle.gunicorn import *` in `gunicorn.conf.py`", "gunicorn.worker:HookedWorker",
        ALL_CONNECTIONS, "one line of configuration",
        cells(
            {**_GUNICORN, **of("test_websockets.py", websockets="gunicorn")},
            busy=_PROBE_PORT, readiness="yes, in all workers at once", held=_FIRST_OF_A_PIPELINE, kernel=BEST_EFFORT,
            websockets="yes, with gthread", hooks="yes, once in each worker",
            late="served until the accept queue is empty, then the listener is closed",
        ),
        "gthread",
    ),
    "gunicorn's gevent worker": Server(
        "gevent; the same import in `gunicorn.conf.py`", "gunicorn.worker:HookedWorker", ALL_CONNECTIONS,
        "a stop takes up to two seconds longer",
        cells(
            _GUNICORN_GEVENT, busy=f"{_YIELDS} (also on the probe listener)", readiness="yes, in all workers at once",
            held=_FIRST_OF_A_PIPELINE, kernel=BEST_EFFORT, late="served for at most one more second",
            hooks="yes, once in each worker",
        ),
        "gevent",
    ),
    "uvicorn": Server(
        "`--interface wsgi`, a2wsgi", "asgi.uvicorn:Uvicorn", ALL_CONNECTIONS,
        "in one process; with `--workers`, `--reload` or as a gunicorn worker: accepted requests",
        all_connections({}, busy=_PROBE_PORT, held=_FIRST_OF_A_PIPELINE), "uvicorn",
    ),
    "hypercorn": Server(
        "`hypercorn wsgi:app:app`, a2wsgi", "", ACCEPTED, "all connections with `--workers 0`",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("yes, each worker within 0.1 s", _HYPERCORN["readiness"]),
            "running": Cell("yes", _HYPERCORN["workers"]),
            "held": Cell(_FIRST_OF_A_PIPELINE, _HYPERCORN["workers"]),
            "kernel": Cell("no: those still queued when the last worker closes its listener are lost"),
            "unsent": Cell("yes", _HYPERCORN["workers"]),
            "websockets": Cell("not tested"),
            "late": Cell(CLOSED, _HYPERCORN["workers"]),
            "hooks": Cell("yes, once in each worker", _HYPERCORN["workers"]),
            "bounded": Cell("yes", _HYPERCORN["bounded"]),
        },
        "hypercorn",
    ),
    "granian": Server(
        "`granian --interface wsgi`", "asgi.granian:Granian", ACCEPTED, "any number of workers",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("yes, in all workers at once", _GRANIAN["readiness"]),
            "running": Cell("yes", _GRANIAN["workers"]),
            "held": Cell("yes", _GRANIAN["workers"]),
            "kernel": Cell("left to granian"),
            "unsent": Cell("yes", _GRANIAN["workers"]),
            "websockets": Cell("not tested"),
            "late": Cell("the listener is closed"),
            "hooks": Cell("yes, once in each worker", _GRANIAN["workers"]),
            "bounded": Cell("yes", _GRANIAN["bounded"]),
        },
        "granian",
    ),
    "uWSGI": Server(
        "with the configuration in [examples/uwsgi](../examples/uwsgi/uwsgi.ini)", "uwsgi:Uwsgi", STARTED,
        "accepted requests if you run `flask lifecycle drain` first",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("only if drained first", _UWSGI["held"]),
            "running": Cell("yes", _UWSGI["running"]),
            "held": Cell("only if drained first", _UWSGI["held"]),
            "kernel": Cell("only if drained first", _UWSGI["held"]),
            "unsent": Cell("left to uWSGI"),
            "websockets": Cell("not tested"),
            "late": Cell("refused with 503 if drained first", _UWSGI["held"]),
            "hooks": Cell("yes, once in each worker", _UWSGI["running"]),
            "bounded": Cell("by `worker-reload-mercy`"),
        },
    ),
    "mod_wsgi": Server(
        "in daemon mode, with [examples/mod_wsgi](../examples/mod_wsgi/shop.conf)", "", ACCEPTED,
        "if you stop Apache with SIGWINCH; SIGTERM cuts off running requests",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("only if drained first"),
            "running": Cell("yes", _MOD_WSGI["running"]),
            "held": Cell("yes", _MOD_WSGI["running"]),
            "kernel": Cell("left to Apache"),
            "unsent": Cell("yes", _MOD_WSGI["running"]),
            "websockets": Cell("not tested"),
            "late": Cell(CLOSED, _MOD_WSGI["running"]),
            "hooks": Cell("yes, once in each process", _MOD_WSGI["running"]),
            "bounded": Cell("by `GracefulShutdownTimeout` and `shutdown-timeout`"),
        },
    ),
    "gunicorn without the hooks": Server(
        "`init_app` alone", "gunicorn.unhooked:UnhookedGunicorn", STARTED, "each worker by itself",
        {
            "busy": Cell(_PROBE_PORT, _GUNICORN_ALONE["busy"]),
            "readiness": Cell("in each worker, without `--preload`", _GUNICORN_ALONE["readiness"]),
            "running": Cell("yes", _GUNICORN_ALONE["running"]),
            "held": Cell("no, refused with 503", _GUNICORN_ALONE["held"]),
            "kernel": Cell("no"),
            "unsent": Cell("left to gunicorn"),
            "websockets": Cell("not tested"),
            "late": Cell("refused with 503", _GUNICORN_ALONE["late"]),
            "hooks": Cell("yes, once in each worker", _GUNICORN_ALONE["hooks"]),
            "bounded": Cell("yes, within gunicorn's own limits", _GUNICORN_ALONE["running"]),
        },
        "gthread",
    ),
    "others": Server(
        "`init_app` alone", "", STARTED, "if the signal reaches the application",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("if the signal reaches the application"),
            "running": Cell("depends on the server"),
            "held": Cell("depends on the server"),
            "kernel": Cell("depends on the server"),
            "unsent": Cell("depends on the server"),
            "websockets": Cell("depends on the server; in flight until they close"),
            "late": Cell("refused with 503"),
            "hooks": Cell("before the signal is passed on, if a request has been served"),
            "bounded": Cell("within the server's own limits"),
        },
    ),
}  # fmt: skip


def level(server: Server) -> str:
    """Which guarantee the cells of a server add up to."""

    def kept(guarantee: str) -> bool:
        return server.cells[guarantee].words.startswith("yes")

    return ALL_CONNECTIONS if kept("held") and kept("kernel") else ACCEPTED if kept("held") else STARTED


def long_tables() -> str:
    """Those of ``docs/guarantees.md``: a row for each server, in tables that fit a page."""
    start = [["server", "started by", "guarantee", GUARANTEES["websockets"]]]
    start += [[name, each.started, each.guarantee, each.cells["websockets"].words] for name, each in SERVERS.items()]
    return "\n".join(
        [
            _table(start),
            "## What is answered\n",
            _of_cells("running", "held", "kernel", "unsent"),
            "## Probes, hooks and the exit\n",
            _of_cells("busy", "readiness", "late", "hooks", "bounded"),
        ]
    )


def _of_cells(*guarantees: str) -> str:
    rows = [["server", *(GUARANTEES[each] for each in guarantees)]]
    rows += [[name, *(server.cells[each].words for each in guarantees)] for name, server in SERVERS.items()]
    return _table(rows)


def short_table() -> str:
    """That of the README."""
    rows = [["server", "started by", "guarantee", "notes"]]
    rows += [[name, each.started, f"**{each.guarantee}**", each.phrase] for name, each in SERVERS.items()]
    return _table(rows).replace("](../", "](")


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


TABLES = {"README.md": short_table, "docs/guarantees.md": long_tables}


def replaced(text: str, tables: str) -> str:
    """A document with these tables between its two marks."""
    marked = re.compile(
        r"(?<=^<!-- python -m tests.guarantees writes this -->\n\n).*?(?=\n<!-- end -->$)", re.DOTALL | re.MULTILINE
    )
    return marked.sub(lambda _match: tables, text, count=1)


def main() -> None:
    """Write the tables."""
    for name, table in TABLES.items():
        path = ROOT / name
        path.write_text(replaced(path.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
