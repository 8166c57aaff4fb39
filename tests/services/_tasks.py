"""A Celery application: that of the tests, and that of the workers that they start."""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery  # type: ignore[import-untyped]  # it has no types

BROKER = "TESTS_BROKER"


def make(broker: str, **config: object) -> Celery:
    """An application with this broker, which is nobody's default."""
    made = Celery("tests", broker=broker, set_as_current=False)
    made.conf.update(broker_connection_retry_on_startup=True, **config)
    return made


app = make(os.environ.get(BROKER, "memory://"))


@app.task(name="occupy")  # type: ignore[untyped-decorator]  # as above
def occupy(started: str, end: str) -> None:
    """Say in one file that the worker is busy, and be so until there is another."""
    Path(started).touch()
    while not Path(end).exists():
        time.sleep(0.01)
