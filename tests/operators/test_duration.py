"""Times as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flask_lifecycle._operators import cordon
from tests._fakes import whole


@pytest.mark.parametrize(
    ("given", "seconds", "written"),
    [
        ("10m", 600, "10m"),
        ("90s", 90, "1m30s"),
        ("1h30m", 5400, "1h30m"),
        ("1d12h", 129600, "1d12h"),
        ("1d2h3m4s", 93784, "1d2h3m4s"),
        ("1.5h", 5400, "1h30m"),
        ("0.5s", 0.5, "0.5s"),
        ("5", 5, "5s"),
        ("2.5", 2.5, "2.5s"),
        ("61.25s", 61.25, "1m1.25s"),
        (" 5s\n", 5, "5s"),
        (5, 5, "5s"),
        (0.25, 0.25, "0.25s"),
        ("7d", 604800, "7d"),
    ],
)
def test_what_people_write(given: Any, seconds: float, written: str) -> None:
    """A number with units, the longer before the shorter, or without for seconds; what is written can be read again."""
    assert cordon.parse_duration("for", given, 604800) == seconds
    assert cordon.format_duration(seconds) == written
    assert cordon.parse_duration("for", written) == seconds


@pytest.mark.parametrize(
    "given",
    [
        *("", " ", "s", "m10", "10x", "10M", "10 m", "5m5m", "30m1h", "1h30", "-5m", "+5m", "1e3", "0x10", "1_0"),
        *(".5s", "5.s", "5m,", "nan", "inf", "٥m", "５m", "²s", "5ｍ", "5\u2028m", "9" * 33, "5m\0"),
        *(math.nan, math.inf, -math.inf, True, None, b"5m", [5]),
    ],
    ids=ascii,
)
def test_what_is_no_duration(given: Any) -> None:
    """Everything else is refused in one sentence that shows the value and tells how a duration is written."""
    message = f"'for' must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d, not {given!a}."
    with pytest.raises(ValueError, match=whole(message)):
        cordon.parse_duration("for", given)


@pytest.mark.parametrize("given", ["x" * 1000, 10**400])
def test_a_long_value_is_cut(given: Any) -> None:
    """What a client sends is not repeated at any length."""
    with pytest.raises(ValueError, match=r", not .{57}\.\.\.\.$"):
        cordon.parse_duration("for", given)


@pytest.mark.parametrize("given", [0, -1, -0.5, "0", "0s", "0h0m", "0.0"])
def test_no_time_at_all(given: Any) -> None:
    """A duration is longer than zero."""
    with pytest.raises(ValueError, match=whole(f"'for' must be longer than zero, such as '10m', not {given!r}.")):
        cordon.parse_duration("for", given)


@pytest.mark.parametrize("given", ["8d", "7d1s", 604801, "9" * 32, "99999999999999999999d"])
def test_too_long(given: Any) -> None:
    """What is longer than may be is refused with the bound."""
    message = f"'for' must be at most '7d', not {given!r}; renew it then."
    with pytest.raises(ValueError, match=whole(message)):
        cordon.parse_duration("for", given, 604800)
