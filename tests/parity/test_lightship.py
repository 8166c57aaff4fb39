"""The cases of Lightship's suite, by their numbers.

Where the package differs on purpose a docstring says so in a clause. What holds for all of them: ``/health``, ``/live``
and ``/ready`` are ``/healthcheck``, ``/livez`` and ``/readyz``, on the main port as on a port of their own; no is 503
and not 500; the text is one word, the same on each; liveness is no matter of a stop; and the process ends with 0 after
a stop that was clean, and with 1 after another.
"""

from __future__ import annotations

import signal

import pytest

from tests.live._client import Address, Connection
from tests.live._process import Running

from .conftest import Mounted, Own, ask, probe_address

NOT_TESTED: dict[int, str] = {}
# Cases whose test asks less than Lightship's, and what it leaves out.
PARTLY: dict[int, str] = {}

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


def statuses(address: Address) -> list[int]:
    """The statuses of the three probes."""
    return [ask(address, path).status for path in PROBES]


# -- probes ----------------------------------------------------------------------------------------------------------


@BY_HAND
def test_case_1_not_ready_at_first(mounted: Mounted) -> None:
    """With LIFECYCLE_READY "manual" an application is alive and not ready until it says so; it has started, though."""
    assert answers(mounted) == NOT_READY
    assert mounted.ask("/startupz").status == 200


@BY_HAND
def test_case_2_not_ready_at_first_to_head(mounted: Mounted) -> None:
    """HEAD has the same statuses as GET, and no body."""
    assert heads(mounted) == [(status, b"") for status, _ in NOT_READY]


@BY_HAND
def test_case_3_ready_when_told(mounted: Mounted) -> None:
    """After set_ready all three probes are 200."""
    mounted.ask("/ready", "POST")
    assert answers(mounted) == READY


@BY_HAND
def test_case_4_ready_when_told_to_head(mounted: Mounted) -> None:
    """After set_ready all three probes are 200 to HEAD."""
    mounted.ask("/ready", "POST")
    assert heads(mounted) == [(200, b"")] * 3


def test_case_5_asked_again_and_again(mounted: Mounted) -> None:
    """Probes go on answering the same, over one connection as over many."""
    assert [answers(mounted) for _ in range(3)] == [READY] * 3
    with Connection(mounted.running.address) as connection:
        kept = [connection.get(f"/{mounted.name}{path}").status for _ in range(3) for path in PROBES]
    assert kept == [200] * 9


@pytest.mark.app(settings={"LIFECYCLE_READY": "manual"}, waits=True)
def test_case_6_told_when_ready_at_first(mounted: Mounted) -> None:
    """Whoever waits by wait_ready goes on when the application is ready at first, and the signal state_changed tells
    it, once however often it says so.
    """
    assert (mounted.told("state"), mounted.told("waited")) == (["NOT_READY"], [])
    for _ in range(2):
        mounted.ask("/ready", "POST")
    mounted.running.wait_event(f"{mounted.name} waited True")
    assert mounted.told("state") == ["NOT_READY", "READY"]


def assert_starting(running: Running) -> None:
    """Assert that no probe says ready, and that nobody was told so."""
    for address in (running.address, probe_address(running)):
        assert statuses(address) == [503, 200, 503]
        assert ask(address, "/startupz").status == 503
    assert (running.hooks("state"), running.hooks("waited")) == ([], [])


def test_cases_7_8_a_task_holds_readiness(own: Own) -> None:
    """While a startup task lasts nothing is ready, /healthcheck included, whatever set_ready says, and whoever waits
    for it waits; after the last it is, and that is told once. Work is served meanwhile.
    """
    tasks, by_hand = [["migrate", "ok"], ["warm-up", "ok"]], {"LIFECYCLE_READY": "manual"}
    running = own.serve(listeners=0, tasks=tasks, waits=True, settings=by_hand)
    running.wait_log("listening on")
    assert ask(running.address, "/ready", "POST").body == b"told"
    assert ask(running.address, "/hello").body == b"hello"
    assert_starting(running)
    running.open_gate("migrate")
    running.wait_event("task migrate")
    assert_starting(running)
    running.open_gate("warm-up")
    running.wait_event("waited True")
    for address in (running.address, probe_address(running)):
        assert statuses(address) == [200, 200, 200]
    assert running.stop() == 0
    assert running.told("task warm-up") < running.told("state READY")
    assert running.hooks("state") == ["READY", "DRAINING", "STOPPING", "STOPPED"]


def test_cases_7_8_a_function_holds_readiness(own: Own) -> None:
    """While an on_startup function runs nothing is ready either; after it all is, and that is told once."""
    running = own.serve(listeners=0, hooks={"startup": [["migrate", "gate"]]}, waits=True)
    running.wait_event("startup migrate")
    running.wait_log("listening on")
    assert_starting(running)
    running.open_gate("migrate")
    running.wait_event("waited True")
    for address in (running.address, probe_address(running)):
        assert statuses(address) == [200, 200, 200]
    assert running.stop() == 0
    assert running.told("passed migrate") < running.told("state READY")
    assert running.hooks("state") == ["READY", "DRAINING", "STOPPING", "STOPPED"]


def test_case_9_not_ready_again(mounted: Mounted) -> None:
    """After set_not_ready readiness is gone, and after set_ready it is back; work is served meanwhile."""
    assert answers(mounted) == READY
    mounted.ask("/not-ready", "POST")
    assert answers(mounted) == NOT_READY
    assert mounted.ask("/hello").body == b"hello"
    mounted.ask("/ready", "POST")
    assert answers(mounted) == READY


# -- the stop --------------------------------------------------------------------------------------------------------


def test_case_10_probes_while_a_function_runs(own: Own) -> None:
    """While an on_shutdown function runs the probe listener answers: not ready; alive, where Lightship says no."""
    running = own.serve(hooks={"shutdown": [["slow", "gate"]]})
    assert ask(running.address, "/shutdown/1", "POST").body == b"told"
    running.wait_event("shutdown slow")
    found = [ask(probe_address(running), path, Accept="text/plain") for path in PROBES]
    assert [(answer.status, answer.body) for answer in found] == NOT_READY
    running.open_gate("slow")
    assert running.wait_gone() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
def test_case_11_a_signal_starts_the_stop(own: Own, number: signal.Signals) -> None:
    """Each signal of LIFECYCLE_SIGNALS starts the stop; by default SIGHUP is not among them."""
    settings = {} if number is not signal.SIGHUP else {"LIFECYCLE_SIGNALS": ["SIGTERM", "SIGHUP", "SIGINT"]}
    running = own.serve(settings=settings, hooks={"shutdown": [["slow", "gate"]]})
    running.send(number)
    running.wait_event(f"shutdown slow {number.value}")
    assert statuses(probe_address(running)) == [503, 200, 503]
    running.open_gate("slow")
    assert running.wait_gone() == 0


def test_case_12_a_function_that_fails(own: Own) -> None:
    """An on_shutdown function that raises does not keep the next from running; the log names it, the exit code is 1."""
    running = own.serve(hooks={"shutdown": [["next", "ok"], ["failing", "raise"]]})
    assert running.stop() == 1
    assert running.hooks() == ["failing 15", "next 15"]
    assert "on_shutdown 'failing' failed" in running.log


def test_case_13_stopped_twice(own: Own) -> None:
    """Whoever asks for a stop that is under way, by shutdown or by a signal, joins it: the functions run once."""
    running = own.serve(hooks={"shutdown": [["first", "ok"], ["slow", "gate"]]})
    assert ask(running.address, "/shutdown/2", "POST").body == b"told"
    running.wait_event("shutdown slow")
    running.send(signal.SIGTERM)
    running.open_gate("slow")
    assert running.wait_gone() == 0
    assert [name.partition(" ")[0] for name in running.hooks()] == ["slow", "first"]


def test_case_14_work_holds_the_functions(own: Own) -> None:
    """The on_shutdown functions wait for a request in flight, without anybody's declaring it."""
    running = own.serve(hooks={"shutdown": [["close", "ok"]]})
    with Connection(running.address) as connection:
        connection.ask("/gate/work")
        running.wait_event("request /gate/work")
        running.send(signal.SIGTERM)
        running.wait_log("listener closed")
        assert running.hooks() == []
        running.open_gate("work")
        assert connection.answer().body == b"passed work"
    assert running.wait_gone() == 0
    assert running.told("answered work") < running.told("shutdown close 15")


def test_case_14_a_beacon_holds_the_functions(own: Own) -> None:
    """The on_shutdown functions wait until every work item is done. Ending one twice ends no other; in Lightship
    it does.
    """
    running = own.serve(hooks={"shutdown": [["close", "ok"]]})
    for name in ("a", "b"):
        assert ask(running.address, f"/beacon/{name}", "POST").body == b"told"
    running.send(signal.SIGTERM)
    running.wait_log("listener closed")
    running.open_gate("a")
    running.wait_event("dead a")
    assert statuses(probe_address(running)) == [503, 200, 503]
    assert running.hooks() == []
    running.open_gate("b")
    assert running.wait_gone() == 0
    assert running.told("dies b") < running.told("shutdown close 15")


def test_case_14_a_beacon_that_does_not_die(own: Own) -> None:
    """A work item that is live at the deadline is logged, the functions still run, and the exit code is 1;
    Lightship would go on waiting.
    """
    grace = {"LIFECYCLE_GRACE_PERIOD": 1.0, "LIFECYCLE_HOOK_RESERVE": 0.5}
    running = own.serve(settings=grace, hooks={"shutdown": [["close", "ok"]]})
    assert ask(running.address, "/beacon/never", "POST").body == b"told"
    assert running.stop() == 1
    assert running.hooks() == ["close 15"]
    assert "abandoned work 'never' after" in running.log


def test_case_15_functions_wait_for_the_delay(own: Own) -> None:
    """The on_shutdown functions run after LIFECYCLE_SHUTDOWN_DELAY, which is a part of the grace period."""
    running = own.serve(settings={"LIFECYCLE_SHUTDOWN_DELAY": 0.5}, hooks={"shutdown": [["close", "ok"]]})
    assert running.stop() == 0
    (draining,), (closed,) = running.told("state DRAINING"), running.told("shutdown close 15")
    assert closed - draining >= 0.5  # told before the delay begins


def test_case_16_a_function_that_fails(own: Own) -> None:
    """An on_startup function that raises starts the stop: nobody is told ready, on_shutdown functions run, exit 1."""
    hooks = {"startup": [["migrate", "raise"], ["warm-up", "ok"]], "shutdown": [["close", "ok"]]}
    running = own.serve(listeners=0, hooks=hooks)
    assert running.wait_gone() == 1
    assert running.hooks("startup") == ["migrate"]
    assert running.hooks() == ["close"]
    assert running.hooks("state") == ["DRAINING", "STOPPING", "STOPPED"]
    assert "start-up failed: on_startup 'migrate'" in running.log


def test_case_16_a_task_that_fails(own: Own) -> None:
    """A startup task that raises starts the stop: nobody is told ready, on_shutdown functions run, exit 1."""
    running = own.serve(listeners=0, tasks=[["migrate", "raise"]], waits=True, hooks={"shutdown": [["close", "ok"]]})
    running.wait_log("listening on")
    running.open_gate("migrate")
    assert running.wait_gone() == 1
    assert running.hooks("task") == ["migrate", "migrate failed"]
    assert running.hooks() == ["close"]
    assert running.hooks("state") == ["DRAINING", "STOPPING", "STOPPED"]
    assert running.hooks("waited") in (["False"], [])  # the process may leave before its thread has told
    assert "startup task 'migrate' failed" in running.log
