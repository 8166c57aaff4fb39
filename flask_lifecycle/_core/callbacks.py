"""Names, signatures and errors of the functions that users register."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any


def name_of(function: Any) -> str:
    """The name of a function or a callable object."""
    return str(getattr(function, "name", None) or getattr(function, "__name__", None) or type(function).__name__)


def error_text(error: BaseException) -> str:
    """An exception in one line of a log, also if its ``__str__`` fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}: (its __str__ fails)"


def takes_context(what: str, function: Callable[..., Any]) -> bool:
    """Whether a function takes one argument, the context.

    :param what: names it in the error.
    :raises TypeError: it takes more.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without one
        return False
    required = [each.kind for each in signature.parameters.values() if each.default is each.empty]
    positional = required.count(Parameter.POSITIONAL_ONLY) + required.count(Parameter.POSITIONAL_OR_KEYWORD)
    if positional > 1 or Parameter.KEYWORD_ONLY in required:
        raise TypeError(f"The {what} takes {signature}; it may take nothing, or one argument, the context.")
    return positional == 1
