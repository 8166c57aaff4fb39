"""The wrapper around the application: each result is closed once, and a drain closes connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from flask_lifecycle._servers.wsgi import WSGIWrapper


def call(app: Any, start_response: Any = lambda *arguments: None) -> Any:
    """Ask an application for something."""
    return app({}, start_response)


class Result:
    """A body that says how often it was closed."""

    def __init__(self) -> None:
        self.closed = 0
        self.left = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return b"x"

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("end", ["iterated", "closed", "both", "dropped"])
def test_a_body_is_closed_once(end: str) -> None:
    """However a server treats a body, it is closed, and once."""
    subject, result = WSGIWrapper(), Result()
    body = call(subject.wrap(lambda environ, start_response: result))
    assert len(subject.running) == 1
    if end == "dropped":
        result.left = 2
        begun = iter(body)
        next(begun)
        del begun
    if end in ("iterated", "both"):
        assert list(body) == []
    if end in ("closed", "both"):
        body.close()
    assert (result.closed, len(subject.running)) == (1, 0)


def test_an_application_that_raises_has_ended() -> None:
    """A request whose application raises before it returns a body is not running any more."""

    def fails(environ: Any, start_response: Any) -> Iterable[bytes]:
        raise ValueError("boom")

    subject = WSGIWrapper()
    with pytest.raises(ValueError, match="boom"):
        call(subject.wrap(fails))
    assert not subject.running
