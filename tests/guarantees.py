"""What is guaranteed on which server, each with the live tests that show it: the source of the tables in the documents.

A server is a column here and a row there. Whoever adds one, or changes what one keeps, does it here, runs

    python -m tests.guarantees

which writes the tables of ``README.md`` and ``docs/guarantees.md``, and has ``tests/test_guarantees.py`` check it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flask_lifecycle._parties import ACCEPTED, FULL, STARTED

ROOT = Path(__file__).parent.parent

# What may be guaranteed, each with the head of its column in the documents.
GUARANTEES = {
    "busy": "probes while all workers are busy",
    "readiness": "readiness fails before anything else happens",
    "running": "what the application has started is answered",
    "held": "what is queued in the server, half received or pipelined is answered",
    "kernel": "what is in the kernel's accept queue is answered",
    "unsent": "what is not sent yet reaches a slow reader",
    "websockets": "websockets",
    "late": "new requests after the delay",
    "hooks": "`on_shutdown` functions run, once",
    "bounded": "gone within the grace period",
}


class Cell(NamedTuple):
    """What is kept, in words that begin with yes or no where it is the one or the other, and what shows it."""

    words: str
    tests: tuple[str, ...] = ()
    """``file::function`` or ``file::function[parameters]``, of ``tests/live``."""


class Server(NamedTuple):
    """A server, in one way of starting it."""

    started: str
    kind: str
    """The class whose ``promise`` is that of the row, as ``module:Class`` of ``flask_lifecycle.servers``; empty for
    those that are not recognised."""
    promise: str
    phrase: str
    """What a reader of the README is to know of it, in one phrase."""
    cells: Mapping[str, Cell]
    parameter: str = ""
    """How the tests that run on several servers call it."""


# Tests that run on each server of the fixture ``full_server``.
FULL_TESTS = {
    "busy": ("test_probes.py::test_all_workers_busy",),
    "readiness": ("test_stop.py::test_new_connections_during_and_after_the_delay",),
    "running": ("test_stop.py::test_request_in_flight", "test_stop.py::test_stream_to_its_last_chunk"),
    "held": (
        "test_stop.py::test_more_requests_than_threads",
        "test_connections.py::test_half_a_head",
        "test_connections.py::test_half_a_body",
        "test_connections.py::test_pipelined",
    ),
    "kernel": ("test_connections.py::test_accept_queue", "test_storms.py::test_new_connections_in_a_loop"),
    "unsent": ("test_stop.py::test_slow_reader",),
    "late": ("test_stop.py::test_new_connections_during_and_after_the_delay",),
    "hooks": ("test_stop.py::test_idle_stop",),
    "bounded": ("test_bounds.py::test_request_longer_than_the_grace_period",),
}
CLOSED = "the listener is closed"
BEST_EFFORT = "yes; [best effort](#closing-the-listener) on Linux before 5.7 and on other systems"
NO_WEBSOCKETS = Cell("no, waitress has none")


def full(websockets: Cell) -> dict[str, Cell]:
    """The cells of a server of the fixture ``full_server``."""
    words = {"late": CLOSED, "kernel": BEST_EFFORT}
    shown = {guarantee: Cell(words.get(guarantee, "yes"), tests) for guarantee, tests in FULL_TESTS.items()}
    return {**shown, "websockets": websockets}


def of(file: str, **tests: str) -> dict[str, tuple[str, ...]]:
    """Tests of one file, by what they show."""
    return {each: tuple(f"{file}::test_{test}" for test in names.split()) for each, names in tests.items()}


_WERKZEUG = of("test_websockets.py", websockets="a_websocket_that_notices_the_drain nothing_follows_the_close_frame")
_FLASK_RUN = of(
    "test_flask_run.py",
    readiness="the_delay",
    running="whatever_is_accepted_is_answered",
    kernel="whatever_is_accepted_is_answered storm",
    late="the_delay",
    hooks="whatever_is_accepted_is_answered a_change_of_code_in_the_middle_of_a_request",
    bounded="processes_that_hang_are_killed",
)
_GUNICORN = of(
    "test_gunicorn.py",
    busy="the_probe_listener_of_several_workers",
    readiness="readiness_flips_in_all_workers",
    running="a_request_in_flight_is_answered",
    held="half_a_request_is_answered the_queue_behind_a_busy_worker_is_served",
    kernel="the_accept_queue_is_served a_stop_under_load_loses_nothing",
    unsent="a_slow_reader_gets_all",
    hooks="idle_stop",
    bounded="a_request_that_hangs",
)
_GUNICORN_GEVENT = of(
    "test_gunicorn_gevent.py",
    under_way="what_is_under_way_is_answered",
    together="all_workers_leave_together",
    kernel="the_accept_queue_is_served workers_that_are_replaced_lose_nothing",
    bounded="a_request_that_hangs kept_and_silent_connections_hold_no_stop",
)
_GUNICORN_ALONE = of(
    "test_gunicorn.py",
    busy="without_hooks_all_workers_have_the_probe_listener",
    readiness="without_hooks_readiness_turns_first",
    running="without_hooks_started_requests_are_answered",
    held="without_hooks_half_a_request",
    late="without_hooks_a_late_request_is_refused",
    hooks="without_hooks_workers_start_by_themselves without_hooks_a_recycled_worker_runs_its_hooks",
)
_UVICORN = of(
    "test_other_servers.py",
    readiness="the_delay_is_served[uvicorn]",
    running="uvicorn_loses_nothing",
    late="uvicorn_loses_nothing",
    bounded="uvicorn_is_left_within_the_grace_period",
)
_HYPERCORN = of(
    "test_other_servers.py",
    readiness="the_delay_is_served[hypercorn]",
    workers="hypercorns_workers_answer_what_they_have",
)
_GRANIAN = of(
    "test_other_servers.py",
    readiness="the_delay_is_served[granian]",
    workers="granians_workers_answer_what_they_have",
    bounded="granian_is_left_within_the_grace_period",
)
_MOD_WSGI = of("test_other_servers.py", running="mod_wsgi_answers_what_it_has")
_UWSGI = of("test_other_servers.py", running="uwsgi_answers_what_it_runs", held="uwsgi_that_is_drained_loses_nothing")
_MORE = {
    "busy": ("probes",),
    "readiness": ("delay",),
    "running": ("in flight",),
    "held": ("queued", "half a head", "half a body", "pipelined"),
    "unsent": ("slow reader", "half closed"),
    "late": ("delay",),
    "hooks": ("in flight",),
    "bounded": ("deadline",),
}
_FOUND = of(
    "test_found_servers.py",
    readiness="delay_of_a_found_server",
    running="nothing_is_lost",
    kernel="nothing_is_lost storm_on_a_found_server",
    bounded="request_that_outlasts_a_found_server",
)
_PROBE_PORT = "with `LIFECYCLE_PROBE_PORT`"
_YIELDS = "yes, unless the application computes without a pause"
_UVICORN_SHOWN = _UVICORN["running"]


def more(server: str, busy: str) -> dict[str, Cell]:
    """The cells of a server that ``run`` starts and whose tests are in ``test_more_servers.py``."""
    words = {"late": CLOSED, "busy": busy}
    promise = "test_more_servers.py::test_the_full_promise"
    shown = {
        guarantee: Cell(words.get(guarantee, "yes"), tuple(f"{promise}[{each}-{server}]" for each in scenarios))
        for guarantee, scenarios in _MORE.items()
    }
    queues = ("accept_queues_of_three_listeners", "storm_on_more_servers")
    kernel = Cell(BEST_EFFORT, tuple(f"test_more_servers.py::test_{each}" for each in queues))
    return {**shown, "kernel": kernel, "websockets": Cell("not tested")}


def found(busy: str, held: str) -> dict[str, Cell]:
    """The cells of a server of ``test_found_servers.py``."""
    lost = _FOUND["running"]
    return {
        "busy": Cell(busy, lost if busy.startswith("yes") else ()),
        "readiness": Cell("yes", _FOUND["readiness"]),
        "running": Cell("yes", lost),
        "held": Cell(held, lost),
        "kernel": Cell(BEST_EFFORT, _FOUND["kernel"]),
        "unsent": Cell("yes, it sends as the application produces them", lost),
        "websockets": Cell("not tested"),
        "late": Cell(CLOSED, lost),
        "hooks": Cell("yes", lost),
        "bounded": Cell("yes", _FOUND["bounded"]),
    }


SERVERS = {
    "waitress": Server(
        "`flask lifecycle run`, `Lifecycle.run()`", "waitress:Waitress", FULL,
        "the default", full(NO_WEBSOCKETS), "waitress",
    ),
    "Werkzeug": Server(
        "`flask lifecycle run --server werkzeug`", "werkzeug:Werkzeug", FULL, "a thread for each connection",
        full(
            Cell(
                "yes, in flight until they end; nothing of HTTP follows their last frame",
                _WERKZEUG["websockets"],
            )
        ),
        "werkzeug",
    ),
    "waitress by itself": Server(
        "`waitress-serve`, `serve()`", "found.waitress:FoundWaitress", FULL,
        "`init_app` is all; Ctrl-C stays with waitress", full(NO_WEBSOCKETS), "waitress-serve",
    ),
    "cheroot": Server(
        "`flask lifecycle run --server cheroot`", "cheroot:Cheroot", FULL, "a pool of threads",
        {**more("cheroot", "yes"), "websockets": Cell("no, cheroot has none")}, "cheroot",
    ),
    "cheroot by itself": Server(
        "`cheroot`, `cheroot.wsgi.Server().start()`", "found.cheroot:FoundCheroot", FULL, "`init_app` is all",
        {
            **found(_PROBE_PORT, "yes, but for what is pipelined behind what is answered during the stop"),
            "websockets": Cell("no, cheroot has none"),
        },
        "cheroot",
    ),
    "gevent": Server(
        "`flask lifecycle run --server gevent`", "gevent:Gevent", FULL, "a greenlet for each connection",
        more("gevent", _YIELDS), "gevent",
    ),
    "gevent by itself": Server(
        "`gevent.pywsgi.WSGIServer().serve_forever()`", "found.gevent:FoundGevent", FULL, "`init_app` is all",
        found(_YIELDS, "yes"), "gevent",
    ),
    "Flask's own": Server(
        "`flask run`, `app.run()`, `run_simple`", "found.werkzeug:FoundWerkzeug", FULL,
        "`init_app` is all; with the reloader, too",
        {
            "busy": Cell("yes, but for `--without-threads`", _FLASK_RUN["late"]),
            "readiness": Cell("yes", _FLASK_RUN["readiness"]),
            "running": Cell("yes", _FLASK_RUN["running"]),
            "held": Cell("yes; of pipelined ones the first, whose answer says close", _FLASK_RUN["running"]),
            "kernel": Cell(BEST_EFFORT, _FLASK_RUN["kernel"]),
            "unsent": Cell("yes, it sends as the application produces them", _FLASK_RUN["running"]),
            "websockets": Cell("yes, in flight until they end", ("test_websockets.py::test_flask_run",)),
            "late": Cell(CLOSED, _FLASK_RUN["late"]),
            "hooks": Cell("yes; with the reloader in each process that serves", _FLASK_RUN["hooks"]),
            "bounded": Cell("yes", _FLASK_RUN["bounded"]),
        },
    ),
    "gunicorn": Server(
        "sync, gthread; `from flask_lifecycle.gunicorn import *` in `gunicorn.conf.py`", "gunicorn:Worker", FULL,
        "one line of configuration",
        {
            "busy": Cell(_PROBE_PORT, _GUNICORN["busy"]),
            "readiness": Cell("yes, in all workers together", _GUNICORN["readiness"]),
            "running": Cell("yes", _GUNICORN["running"]),
            "held": Cell("yes", _GUNICORN["held"]),
            "kernel": Cell(BEST_EFFORT, _GUNICORN["kernel"]),
            "unsent": Cell("yes, it sends as the application produces them", _GUNICORN["unsent"]),
            "websockets": Cell("yes, with gthread", ("test_websockets.py::test_gunicorn",)),
            "late": Cell("served until the accept queue is empty, then the listener is closed", _GUNICORN["kernel"]),
            "hooks": Cell("yes, once in each worker", _GUNICORN["hooks"]),
            "bounded": Cell("yes", _GUNICORN["bounded"]),
        },
    ),
    "gunicorn's gevent worker": Server(
        "gevent; the same line of configuration", "gunicorn:Worker", FULL, "the stop takes up to two seconds more",
        {
            "busy": Cell(f"{_YIELDS}, on a listener of its own too", _GUNICORN_GEVENT["together"]),
            "readiness": Cell("yes, in all workers together", _GUNICORN_GEVENT["together"]),
            "running": Cell("yes", _GUNICORN_GEVENT["under_way"]),
            "held": Cell("yes", _GUNICORN_GEVENT["under_way"]),
            "kernel": Cell(BEST_EFFORT, _GUNICORN_GEVENT["kernel"]),
            "unsent": Cell("yes, it sends as the application produces them", _GUNICORN_GEVENT["under_way"]),
            "websockets": Cell("not tested"),
            "late": Cell("served for at most a second more", _GUNICORN_GEVENT["kernel"]),
            "hooks": Cell("yes, once in each worker", _GUNICORN_GEVENT["under_way"]),
            "bounded": Cell("yes", _GUNICORN_GEVENT["bounded"]),
        },
    ),
    "uvicorn": Server(
        "`--interface wsgi`, a2wsgi", "found.uvicorn:FoundUvicorn", FULL,
        "in one process; with `--workers` or `--reload` accepted requests",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("yes", _UVICORN["readiness"]),
            "running": Cell("yes", _UVICORN_SHOWN),
            "held": Cell("yes", _UVICORN_SHOWN),
            "kernel": Cell(BEST_EFFORT, _UVICORN_SHOWN),
            "unsent": Cell("yes", _UVICORN_SHOWN),
            "websockets": Cell("not tested"),
            "late": Cell(CLOSED, _UVICORN["late"]),
            "hooks": Cell("yes", _UVICORN_SHOWN),
            "bounded": Cell("yes", _UVICORN["bounded"]),
        },
    ),
    "hypercorn": Server(
        "`hypercorn wsgi:app:app`, a2wsgi", "", ACCEPTED, "with `--workers 0` the full promise",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("yes, each worker within 0.1 s", _HYPERCORN["readiness"]),
            "running": Cell("yes", _HYPERCORN["workers"]),
            "held": Cell("yes", _HYPERCORN["workers"]),
            "kernel": Cell("not those that are there when the last worker closes its listener"),
            "unsent": Cell("yes", _HYPERCORN["workers"]),
            "websockets": Cell("not tested"),
            "late": Cell(CLOSED, _HYPERCORN["workers"]),
            "hooks": Cell("yes, once in each worker", _HYPERCORN["workers"]),
            "bounded": Cell("yes", ("test_other_servers.py::test_hypercorn_is_left_within_the_grace_period",)),
        },
    ),
    "granian": Server(
        "`granian --interface wsgi`", "found.granian:FoundGranian", ACCEPTED, "any number of workers",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("yes, in all workers together", _GRANIAN["readiness"]),
            "running": Cell("yes", _GRANIAN["workers"]),
            "held": Cell("yes", _GRANIAN["workers"]),
            "kernel": Cell("as granian does it"),
            "unsent": Cell("yes", _GRANIAN["workers"]),
            "websockets": Cell("not tested"),
            "late": Cell("the listener is closed"),
            "hooks": Cell("yes, once in each worker", _GRANIAN["workers"]),
            "bounded": Cell("yes", _GRANIAN["bounded"]),
        },
    ),
    "uWSGI": Server(
        "with the configuration in [examples/uwsgi](../examples/uwsgi/uwsgi.ini)", "found.uwsgi:FoundUwsgi", STARTED,
        "accepted requests if `flask lifecycle drain` comes first",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("when it is drained first", _UWSGI["held"]),
            "running": Cell("yes", _UWSGI["running"]),
            "held": Cell("when it is drained first", _UWSGI["held"]),
            "kernel": Cell("when it is drained first", _UWSGI["held"]),
            "unsent": Cell("as uWSGI does it"),
            "websockets": Cell("not tested"),
            "late": Cell("when it is drained first: refused with 503", _UWSGI["held"]),
            "hooks": Cell("yes, once in each worker", _UWSGI["running"]),
            "bounded": Cell("by `worker-reload-mercy`"),
        },
    ),
    "mod_wsgi": Server(
        "in daemon mode, with [examples/mod_wsgi](../examples/mod_wsgi/shop.conf)", "", ACCEPTED,
        "if Apache is stopped by SIGWINCH; SIGTERM cuts what runs",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("when it is drained first"),
            "running": Cell("yes", _MOD_WSGI["running"]),
            "held": Cell("yes", _MOD_WSGI["running"]),
            "kernel": Cell("as Apache does it"),
            "unsent": Cell("yes", _MOD_WSGI["running"]),
            "websockets": Cell("not tested"),
            "late": Cell(CLOSED, _MOD_WSGI["running"]),
            "hooks": Cell("yes, once in each process", _MOD_WSGI["running"]),
            "bounded": Cell("by `GracefulShutdownTimeout` and `shutdown-timeout`"),
        },
    ),
    "gunicorn without our line": Server(
        "`init_app` alone", "found.gunicorn:FoundGunicorn", STARTED, "as under any other server, in each worker",
        {
            "busy": Cell(_PROBE_PORT, _GUNICORN_ALONE["busy"]),
            "readiness": Cell("in each worker, without `--preload`", _GUNICORN_ALONE["readiness"]),
            "running": Cell("yes", _GUNICORN_ALONE["running"]),
            "held": Cell("no, refused with 503", _GUNICORN_ALONE["held"]),
            "kernel": Cell("no"),
            "unsent": Cell("as gunicorn does it"),
            "websockets": Cell("not tested"),
            "late": Cell("refused with 503", _GUNICORN_ALONE["late"]),
            "hooks": Cell("yes, once in each worker", _GUNICORN_ALONE["hooks"]),
            "bounded": Cell("yes, then gunicorn's own limits apply", _GUNICORN_ALONE["running"]),
        },
    ),
    "others": Server(
        "`init_app` alone", "", STARTED, "as far as the signal reaches the application",
        {
            "busy": Cell(_PROBE_PORT),
            "readiness": Cell("where the signal reaches the application"),
            "running": Cell("as the server does it"),
            "held": Cell("as the server does it"),
            "kernel": Cell("as the server does it"),
            "unsent": Cell("as the server does it"),
            "websockets": Cell("as the server does it, and in flight until they end"),
            "late": Cell("refused with 503"),
            "hooks": Cell("before the signal is handed on, once a request has been served"),
            "bounded": Cell("then the server's own limits apply"),
        },
    ),
}  # fmt: skip


def level(server: Server) -> str:
    """Which level of the promise the cells of a server add up to."""

    def kept(guarantee: str) -> bool:
        return server.cells[guarantee].words.startswith("yes")

    return FULL if kept("held") and kept("kernel") else ACCEPTED if kept("held") else STARTED


def long_table() -> str:
    """That of ``docs/guarantees.md``: a row for each server."""
    rows = [["server", "started by", "promise", *GUARANTEES.values()]]
    for name, server in SERVERS.items():
        rows.append([name, server.started, server.promise, *(server.cells[each].words for each in GUARANTEES)])
    return _table(rows)


def short_table() -> str:
    """That of the README."""
    rows = [["server", "started by", "promise", ""]]
    rows += [[name, each.started, f"**{each.promise}**", each.phrase] for name, each in SERVERS.items()]
    return _table(rows).replace("](../", "](")


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


TABLES = {"README.md": short_table, "docs/guarantees.md": long_table}


def replaced(text: str, table: str) -> str:
    """A document with its table in the place of the one that begins alike."""
    return re.sub(r"^\| server \| started by \|.*\n(\|.*\n)+", lambda _match: table, text, count=1, flags=re.MULTILINE)


def main() -> None:
    """Write the tables."""
    for name, table in TABLES.items():
        path = ROOT / name
        path.write_text(replaced(path.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
