"""The cases of Lightship's suite, by their numbers.

Where the package differs on purpose a docstring says so in a clause. What holds for all of them: ``/health``, ``/live``
and ``/ready`` are ``/healthcheck``, ``/livez`` and ``/readyz``, on the main port as on a port of their own; no is 503
and not 500; the text is one word, the same on each; liveness is no matter of a stop; and the process ends with 0 after
a stop that was clean, and with 1 after another.
"""

from __future__ import annotations

import pytest

from tests.live._client import Connection

from .conftest import Mounted

NOT_TESTED: dict[int, str] = {}
# Tests that ask the same of servers, or of more of them.
SHOWN_BY = {
    7: "live/test_work.py::test_a_task_holds_readiness_and_no_request",
    8: "live/test_probes.py::test_probe_listener_opens_first_and_closes_last",
    10: "live/test_probes.py::test_probe_listener_opens_first_and_closes_last",
    11: "live/test_startup.py::test_signal_while_a_startup_function_runs",
    12: "live/test_logs.py::test_a_whole_life",
    13: "live/test_hostile_surroundings.py::test_signal_joins_a_shutdown",
    14: "live/test_work.py::test_a_stop_waits_for_work",
    15: "live/test_promise.py::test_the_delay",
    16: "live/test_start_failures.py::test_startup_function_fails",
}
PROBES = ("/healthcheck", "/livez", "/readyz")
NOT_READY = [(503, b"fail\n"), (200, b"pass\n"), (503, b"fail\n")]
READY = [(200, b"pass\n")] * 3
BY_HAND = pytest.mark.app(settings={"LIFECYCLE_READY": "manual"})


def answers(mounted: Mounted) -> list[tuple[int, bytes]]:
    """What the three probes say, as text."""
    found = [mounted.ask(path, Accept="text/plain") for path in PROBES]
    assert {answer.headers["content-type"] for answer in found} == {"text/plain; charset=utf-8"}
    return [(answer.status, answer.body) for answer in found]


def heads(mounted: Mounted) -> list[tuple[int, bytes]]:
    """What the three probes say to HEAD: the length of a body, and no body."""
    found = [mounted.ask(path, "HEAD", Accept="text/plain") for path in PROBES]
    assert {answer.headers["content-length"] for answer in found} == {"5"}
    return [(answer.status, answer.body) for answer in found]


@BY_HAND
def test_cases_1_2_not_ready_at_first(mounted: Mounted) -> None:
    """With LIFECYCLE_READY "manual" it is started, alive and not ready until it says so; HEAD is the same."""
    assert answers(mounted) == NOT_READY
    assert heads(mounted) == [(status, b"") for status, _ in NOT_READY]
    assert mounted.ask("/startupz").status == 200


@BY_HAND
def test_cases_3_4_ready_when_told(mounted: Mounted) -> None:
    """After set_ready all three probes are 200, to HEAD too."""
    mounted.ask("/ready", "POST")
    assert answers(mounted) == READY
    assert heads(mounted) == [(200, b"")] * 3


def test_case_5_asked_again_and_again(mounted: Mounted) -> None:
    """Probes go on answering the same, over one connection as over many."""
    assert [answers(mounted) for _ in range(3)] == [READY] * 3
    with Connection(mounted.running.address) as connection:
        kept = [connection.get(f"/{mounted.name}{path}").status for _ in range(3) for path in PROBES]
    assert kept == [200] * 9


@pytest.mark.app(settings={"LIFECYCLE_READY": "manual"}, waits=True)
def test_case_6_told_when_ready_at_first(mounted: Mounted) -> None:
    """wait_ready returns once the application is ready, and the signal state_changed is sent once."""
    assert (mounted.told("state"), mounted.told("waited")) == (["NOT_READY"], [])
    for _ in range(2):
        mounted.ask("/ready", "POST")
    mounted.running.wait_event(f"{mounted.name} waited True")
    assert mounted.told("state") == ["NOT_READY", "READY"]


def test_case_9_not_ready_again(mounted: Mounted) -> None:
    """After set_not_ready readiness is gone, and after set_ready it is back; work is served meanwhile."""
    assert answers(mounted) == READY
    mounted.ask("/not-ready", "POST")
    assert answers(mounted) == NOT_READY
    assert mounted.ask("/hello").body == b"hello"
    mounted.ask("/ready", "POST")
    assert answers(mounted) == READY
