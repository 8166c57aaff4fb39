"""The cases of Terminus' suite, by their numbers.

Where the package differs on purpose a docstring says so in a clause. What holds for all of them: a check is asked by
``/readyz``; options of ``createTerminus`` are keys of the configuration or functions that are registered; and
``onSignal`` and ``onShutdown`` are two functions of one kind, the last registered of which runs first.
"""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from tests.live.test_probes import probe_address

from .conftest import Mounted, Own, ask, body_of

NOT_TESTED = {
    53: "the export of HealthCheckError is a matter of names in a module; tests/test_public_api.py lists ours",
    54: "the export of createTerminus is a matter of names in a module; Lifecycle is in tests/test_public_api.py",
    55: "that an error object keeps its causes is asked in the process by checks/test_checks.py; case 22 sees it sent",
}
# Tests that ask the same of more servers, or of what has nothing to do with a server.
SHOWN_BY = {
    **dict.fromkeys((6, 7, 8), "probes/test_endpoints.py::test_configured_paths"),
    **dict.fromkeys((10, 22), "probes/test_render.py::test_json"),
    11: "probes/test_endpoints.py::test_a_renderer",
    **dict.fromkeys((20, 21), "checks/test_health.py::test_what_a_check_may_ask"),
    **dict.fromkeys((23, 25), "checks/test_checks.py::test_causes"),
    24: "checks/test_checks.py::test_raising",
    29: "live/test_promise.py::test_the_delay",
    **dict.fromkeys((33, 34), "probes/test_endpoints.py::test_probes_that_the_drain_refuses"),
    35: "live/test_probes.py::test_readiness_kept_until_the_listener_closes",
    36: "checks/test_health.py::test_keeping_readiness_in_a_drain",
    50: "probes/test_endpoints.py::test_headers",
    **dict.fromkeys((51, 52), "live/test_exit.py::test_exit_functions_run_and_buffers_are_written"),
}

ALL_THREE = ["SIGTERM", "SIGINT", "SIGUSR2"]
LIST = {"causes": ["disk full", "queue long"]}


def failing(**error: Any) -> dict[str, Any]:
    """A check that fails with this error."""
    return {"checks": {"database": {"fails": error}}}


def status_codes(**codes: int) -> dict[str, Any]:
    return {"settings": {"LIFECYCLE_STATUS_CODES": codes}}


UP_OR_DOWN = {"up_or_down": True}
AWAY = {"response": {"status": "NO DATABASE"}}
CAUSES = {"message": "not for you", "causes": {"db": "nor this"}}
Rows = dict[int, tuple[dict[str, Any], int, dict[str, str]]]
# The application of a case, and the status and the body that /readyz answers with. The words are pass and fail, where
# Terminus says ok and error; the status of an error beats that of the settings, and its body that of a renderer.
ANSWERS: Rows = {
    3: (status_codes(**{"pass": 201}), 201, {"status": "pass"}),
    4: ({}, 200, {"status": "pass"}),
    5: (UP_OR_DOWN, 200, {"status": "UP"}),
    13: ({**status_codes(fail=500), "checks": {"database": {"raises": "down"}}}, 500, {"status": "fail"}),
    14: (failing(status_code=500), 500, {"status": "fail"}),
    15: ({**status_codes(fail=500), **failing(status_code=502)}, 502, {"status": "fail"}),
    16: (failing(**CAUSES), 503, {"status": "fail"}),
    17: ({**UP_OR_DOWN, "checks": {"database": {"raises": "down"}}}, 503, {"status": "DOWN"}),
    18: (failing(**AWAY), 503, {"status": "NO DATABASE"}),
    19: ({**UP_OR_DOWN, **failing(**AWAY)}, 503, {"status": "NO DATABASE"}),
    26: ({**status_codes(fail=500), **failing(**LIST)}, 500, {"status": "fail"}),
    27: (failing(**LIST, status_code=500), 500, {"status": "fail"}),
    28: ({**status_codes(fail=500), **failing(**LIST, status_code=502)}, 502, {"status": "fail"}),
}


def rows(table: Rows) -> list[Any]:
    return [pytest.param(*row[1:], marks=pytest.mark.app(**row[0]), id=str(case)) for case, row in table.items()]


@pytest.mark.parametrize(("status", "body"), rows(ANSWERS))
def test_cases_3_to_28_answers(mounted: Mounted, status: int, body: dict[str, str]) -> None:
    """Statuses and bodies are those of the settings, of a renderer, or of the error."""
    answer = mounted.ask("/readyz")
    assert (answer.status, body_of(answer)) == (status, body)


@pytest.mark.app(checks={})
def test_case_1_no_checks(mounted: Mounted) -> None:
    """Without checks other routes answer as ever; the probes are there all the same, and pass."""
    assert mounted.ask("/hello").body == b"hello"
    assert mounted.ask("/nothing").status == 404
    assert body_of(mounted.ask("/readyz")) == {"status": "pass"}


def test_case_2_a_check_that_passes(mounted: Mounted) -> None:
    """A check that passes is 200 and JSON; with a length and not to be stored, which Terminus leaves out."""
    answer = mounted.ask("/readyz")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/health+json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["cache-control"] == "no-store"
    assert mounted.ask("/readyz", Accept="application/json").headers["content-type"] == "application/json"
    assert mounted.told("check") == ["database"] * 2


def test_case_3_status_without_a_body(own: Own) -> None:
    """A status that has no body, 204, is answered with none, by every listener."""
    running = own.serve(settings={"LIFECYCLE_STATUS_CODES": {"pass": 204}})
    for address in (running.address, probe_address(running)):
        answer = ask(address, "/readyz")
        assert (answer.status, answer.body) == (204, b"")
        assert "content-length" not in answer.headers
    assert "content was ignored" not in running.log
    assert running.stop() == 0


def test_case_9_a_check_runs_once_a_probe(mounted: Mounted) -> None:
    """Although a probe could be answered in two places, its check runs once and the application is not called."""
    assert mounted.ask("/readyz").status == 200
    assert mounted.told("check") == ["database"]
    assert mounted.told("request") == []


@pytest.mark.app(checks={"case-12": {"raises": "case 12: password123"}})
def test_case_12_a_check_that_raises(mounted: Mounted) -> None:
    """A check that raises is 503, and the log tells it; once, as nothing has changed at the next probe."""
    answers = [mounted.ask("/readyz") for _ in range(2)]
    assert [answer.status for answer in answers] == [503, 503]
    assert all(b"password123" not in answer.body for answer in answers)
    assert mounted.told("check") == ["case-12"] * 2
    # Told after the answer, by the thread of the check.
    mounted.running.wait_log("ValueError: case 12: password123")
    assert len(re.findall("check 'case-12' fails after", mounted.running.log)) == 1


# The application of a case, and the status and the body after the signal.
AFTER_THE_SIGNAL: Rows = {
    30: (status_codes(fail=501), 501, {"status": "fail"}),
    31: ({}, 503, {"status": "fail"}),
    32: (UP_OR_DOWN, 503, {"status": "DOWN"}),
}


@pytest.mark.parametrize(("status", "body"), rows(AFTER_THE_SIGNAL))
def test_cases_30_31_32_answers_after_the_signal(in_drain: Mounted, status: int, body: dict[str, str]) -> None:
    """Status and body of a failure hold after the signal, also those of the settings and of a renderer."""
    answer = in_drain.ask("/readyz")
    assert (answer.status, body_of(answer)) == (status, body)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2], ids=ALL_THREE)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "listed"])
def test_cases_37_38_39_40_41_42_43_44_45_46_47_48_signals(own: Own, number: signal.Signals, alone: bool) -> None:
    """Each of LIFECYCLE_SIGNALS stops the process; on_drain runs at once, on_shutdown after the drain, reversed."""
    hooks = {"drain": ["onDrain"], "shutdown": ["onShutdown", "onSignal"]}
    running = own.serve(settings={"LIFECYCLE_SIGNALS": [number.name] if alone else ALL_THREE}, hooks=hooks)
    assert running.stop(number) == 0
    assert running.hooks("drain") == [f"onDrain {number.value}"]
    assert running.hooks() == [f"onSignal {number.value}", f"onShutdown {number.value}"]
    assert f"shutdown begins: {number.name}" in running.log


def test_case_49_three_applications(own: Own) -> None:
    """Three applications in one process stop together, by one signal; those that came last stop first."""
    plan = {"mounted": {name: {"hooks": {"shutdown": [f"of {name}"]}} for name in ("second", "third")}}
    running = own.serve(hooks={"shutdown": ["of first"]}, plan=plan)
    assert running.stop() == 0
    told = [event.text for event in running.events if "shutdown" in event.text]
    assert told == ["third shutdown of third 15", "second shutdown of second 15", "shutdown of first 15"]
