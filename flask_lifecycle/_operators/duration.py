"""Durations in the form people write: ``10m``, ``90s``, ``1h30m``, or a number of seconds."""

from __future__ import annotations

import math
import re
from typing import Any

from .._config import shown

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
# Only ASCII digits: \d and float() also accept those of forty other scripts.
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-z])")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
# A longer text is not a duration that a person has written.
_LONGEST = 32


def parse_duration(name: str, value: Any, most: float = math.inf) -> float:
    """Seconds, from a text such as ``"10m"``, ``"1h30m"`` or ``"5"``, or from a number.

    :param name: the name of the duration, for the error.
    :param most: the maximum, in seconds.
    :raises ValueError: it is not a duration, not longer than zero, or too long.
    """
    seconds = _seconds(value)
    if not math.isfinite(seconds):
        raise ValueError(
            f"'{name}' must be a duration such as '10m', '90s' or '1h30m', in the units s, m, h and d,"
            f" not {shown(value)}."
        )
    if seconds <= 0:
        raise ValueError(f"'{name}' must be longer than zero, such as '10m', not {shown(value)}.")
    if seconds > most:
        raise ValueError(f"'{name}' must be at most '{format_duration(most)}', not {shown(value)}; renew it then.")
    return seconds


def format_duration(seconds: float) -> str:
    """As :func:`parse_duration` reads it: ``1h30m`` for 5400, ``0.5s`` for a half."""
    text, left = "", math.floor(seconds)
    for unit in ("d", "h", "m"):
        count, left = divmod(left, _UNITS[unit])
        text += f"{count}{unit}" if count else ""
    rest = left + seconds % 1
    return text + (f"{rest:.3g}s" if rest or not text else "")


def _seconds(value: Any) -> float:
    """The seconds of a duration; ``nan`` for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**63 else math.nan
    if not isinstance(value, str) or len(value) > _LONGEST:
        return math.nan
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    # Each unit once, the longer before the shorter: "5m5m" and "1s1h" are probably mistakes, so they are refused.
    in_order = bool(units) and units == [unit for unit in _UNITS if unit in units]
    if not in_order or "".join(number + unit for number, unit in parts) != text:
        return math.nan
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
