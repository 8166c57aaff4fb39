"""The check of Celery workers: real workers behind a real Redis, which the tests hang, kill and start again."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from celery import Celery  # type: ignore[import-untyped]  # it has no types

from flask_lifecycle.checks import CeleryCheck
from tests._fakes import make_app, whole

# -- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ({"minimum": value}, f"'minimum' must be a whole number of workers, at least 1, not {value!r}.")
            for value in (0, -1, 1.5, True, "1", None)
        ),
        *(
            ({"reply_timeout": value}, f"'reply_timeout' must be a number of seconds greater than zero, not {value!r}.")
            for value in (0, -1, float("inf"), float("nan"), True, "1", None)
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    """Each bad argument is an error of one sentence, at construction."""
    with pytest.raises(ValueError, match=whole(message)):
        CeleryCheck(Celery("tests", broker="memory://", set_as_current=False), **arguments)
    with pytest.raises(TypeError, match=whole("'app' must be a Celery application, not 'Flask'.")):
        CeleryCheck(make_app(), **arguments)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Celery, the error names the extra to install."""
    monkeypatch.setitem(sys.modules, "celery", None)
    message = "Celery is not installed; install it with: pip install 'flask-lifecycle[celery]'"
    with pytest.raises(RuntimeError, match=whole(message)):
        CeleryCheck(None)
