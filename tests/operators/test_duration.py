"""Times as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flask_lifecycle._config import shown
from flask_lifecycle._operators.cordon import format_duration, parse_duration
from tests._fakes import whole


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("10m", 600),
        ("90s", 90),
        ("1h30m", 5400),
        ("1d12h", 129600),
        ("1d2h3m4s", 93784),
        ("1.5h", 5400),
        ("0.5s", 0.5),
        ("5", 5),
        ("2.5", 2.5),
        (" 5s\n", 5),
        (5, 5),
        (0.25, 0.25),
        ("7d", 604800),
    ],
)
def test_what_people_write(given: Any, seconds: float) -> None:
    """A number with units, the longer before the shorter, or without for seconds."""
    assert parse_duration("for", given, 604800) == seconds


@pytest.mark.parametrize(
    "given",
    [
        *("", " ", "s", "m10", "10x", "10M", "10 m", "5m5m", "30m1h", "1h30", "-5m", "+5m", "1e3", "0x10", "1_0"),
        *(".5s", "5.s", "5m,", "nan", "inf", "٥m", "５m", "²s", "5ｍ", "5\u2028m", "9" * 33, "5m\0"),
        *(math.nan, math.inf, -math.inf, 10**400, True, None, b"5m", [5]),
    ],
    ids=ascii,
)
def test_what_is_no_duration(given: Any) -> None:
    """Everything else is refused in one sentence that shows the value and tells how a duration is written."""
    message = (
        f"'for' must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d, not {shown(given)}."
    )
    with pytest.raises(ValueError, match=whole(message)):
        parse_duration("for", given)


@pytest.mark.parametrize("given", [0, -1, -0.5, "0", "0s", "0h0m", "0.0"])
def test_no_time_at_all(given: Any) -> None:
    """A duration is longer than zero."""
    with pytest.raises(ValueError, match=whole(f"'for' must be longer than zero, such as '10m', not {given!r}.")):
        parse_duration("for", given)


@pytest.mark.parametrize("given", ["8d", "7d1s", 604801, "9" * 32, "99999999999999999999d"])
def test_too_long(given: Any) -> None:
    """What is longer than may be is refused with the bound."""
    message = f"'for' must be at most '7d', not {given!r}; renew it then."
    with pytest.raises(ValueError, match=whole(message)):
        parse_duration("for", given, 604800)


def test_a_long_value_is_cut() -> None:
    """What a client sends is not repeated at any length, and not in its own characters."""
    assert shown("x" * 1000) == "'" + "x" * 56 + "..."
    assert shown("a\r\nb\x1b[2Jü\u202e") == r"'a\r\nb\x1b[2J\xfc\u202e'"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(600, "10m"), (90, "1m30s"), (5400, "1h30m"), (604800, "7d"), (0.5, "0.5s"), (0, "0s"), (61.25, "1m1.25s")],
)
def test_written_as_it_is_read(seconds: float, text: str) -> None:
    """What is written can be read again."""
    assert format_duration(seconds) == text
    assert not seconds or parse_duration("for", text) == seconds
