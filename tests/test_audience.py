"""Those who watch the status page: how their questions are held, and how they are told of the end."""

from __future__ import annotations

import threading

from flask_lifecycle import _audience
from flask_lifecycle._audience import MOST_HELD, Audience
from tests._fakes import BOUND, ManualClock, running, until


def enter(audience: Audience, times: int = 1) -> None:
    """So many ask, and there is room for them."""
    for _ in range(times):
        assert audience.enter()


def test_there_is_room_for_a_few() -> None:
    """So many questions are held and no more, until one of them is answered."""
    audience = Audience()
    enter(audience, MOST_HELD)
    assert not audience.enter()
    audience.leave(comes_back=False)
    enter(audience)


def test_a_missed_change_is_told_at_once() -> None:
    """A change between an answer and the next question does not keep that question waiting."""
    audience = Audience()
    audience.changed()
    audience.wait(0, BOUND)
    assert audience.changes == 1


def test_a_change_ends_the_waiting() -> None:
    """A question that is held is let go by the next change."""
    audience = Audience()
    with running(lambda: audience.wait(0, BOUND)) as thread:
        audience.changed()
        thread.join(BOUND)
        assert not thread.is_alive()


def test_nothing_happens() -> None:
    """A question that nothing happens to is let go when its time is over."""
    audience = Audience()
    audience.wait(0, 0.001)
    audience.wait_closed(0.001)
    assert not audience.closed


def test_only_the_end_of_the_port_ends_that_waiting() -> None:
    """Whoever waits for the port to be closed is let go by that, and by no other change."""
    audience = Audience()
    audience.changed()
    with running(lambda: audience.wait_closed(BOUND)) as thread:
        audience.changed()
        assert not audience.closed
        audience.changed(closed=True)
        thread.join(BOUND)
        assert not thread.is_alive()
    audience.changed()
    assert audience.closed


# -- the end ------------------------------------------------------------------------------------------------------


def test_nobody_is_waited_for_where_nobody_watches() -> None:
    """The end waits for nobody where nobody watches, or where the last answer told that there is no more."""
    audience = Audience(clock=lambda: 0.0)
    _audience_patience(audience)
    audience.farewell()
    enter(audience)
    audience.leave(comes_back=False)
    audience.farewell()


def _audience_patience(audience: Audience) -> None:
    """Make every wait of an audience an error."""

    def wait(timeout: float | None = None) -> bool:
        raise AssertionError("somebody is waited for")

    audience._turn.wait = wait  # type: ignore[method-assign]


def test_the_end_waits_for_who_is_there() -> None:
    """Whoever is held when the end comes is let go, and has his answer before the end goes on."""
    audience = Audience()
    enter(audience)
    order: list[str] = []

    def watch() -> None:
        audience.wait(0, BOUND)
        order.append("answered")
        audience.leave(comes_back=False)

    with running(watch):
        audience.farewell()
        order.append("gone")
    assert order == ["answered", "gone"]


def test_the_end_waits_for_who_is_about_to_come_back() -> None:
    """Whoever is between an answer and his next question when the end comes is waited for, and answered."""
    audience = Audience()
    enter(audience)
    audience.leave(comes_back=True)
    waiting = threading.Event()
    order: list[str] = []
    before = audience.changes

    def come_back() -> None:
        assert waiting.wait(BOUND)
        until(lambda: audience.changes > before)  # the end has begun
        enter(audience)
        audience.wait(before, BOUND)
        order.append("answered")
        audience.leave(comes_back=False)

    with running(come_back):
        waiting.set()
        audience.farewell()
        order.append("gone")
    assert order == ["answered", "gone"]


def test_one_who_does_not_come_back() -> None:
    """Somebody who has closed the page is waited for no longer than a moment, and after a second not at all."""
    clock = ManualClock()
    audience = Audience(clock.monotonic)
    enter(audience)
    audience.leave(comes_back=True)
    audience.farewell()  # it ends
    clock.advance(_audience._RETURN + 0.1)
    _audience_patience(audience)
    audience.farewell()


def test_who_has_opened_the_page_is_about_to_ask() -> None:
    """Whoever has just opened the page is waited for as well; of many who did no more are remembered than have room."""
    audience = Audience()
    for _ in range(10 * MOST_HELD):
        audience.expect()
    assert len(audience._away) == MOST_HELD
    enter(audience, MOST_HELD)
    assert not audience._away
