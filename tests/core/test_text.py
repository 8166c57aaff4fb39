"""Text of the application and of clients: it forges no line of a log, and no terminal takes it for a command."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_lifecycle import HealthCheckError
from flask_lifecycle._core.log import logger
from tests._fakes import raiser, serve, state_of

FORGED = "x\n2026-01-01 INFO shutdown complete\r\x1b[2J\u202e\x9b1m\u2028y"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[io.StringIO]:
    """What a plain handler of the application writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("RECORD %(levelname)s %(message)s"))
    root = logging.getLogger("flask_lifecycle")
    root.addHandler(handler)
    with caplog.at_level(logging.DEBUG, root.name):
        yield stream
    root.removeHandler(handler)


def harmless(text: str) -> bool:
    """Whether a text has nothing but printed signs and line ends."""
    return all(each.isprintable() or each == "\n" for each in text)


def test_the_log_cannot_be_forged(log: io.StringIO) -> None:
    """Reasons, names of hooks and exceptions, with their tracebacks, begin no line of the log."""
    app, lifecycle = serve()

    @lifecycle.on_shutdown(name=FORGED)
    def fail() -> None:
        try:
            raise KeyError(FORGED)
        except KeyError as error:
            raise ValueError(FORGED) from error

    state_of(app).startup.run()
    lifecycle.set_not_ready(FORGED)
    lifecycle.work(FORGED, of=FORGED).done()
    lifecycle.shutdown(FORGED)
    written = log.getvalue()
    assert "ValueError: x\n    2026-01-01 INFO shutdown complete\\r\\x1b[2J" in written
    assert r"shutdown begins: x\n2026-01-01 INFO" in written
    assert harmless(written)
    for line in written.splitlines():
        assert re.match(r"RECORD |\s|$|Traceback |KeyError: |ValueError: x|The above exception", line), line


def test_an_object_that_cannot_tell_what_it_is(log: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    """An argument whose text raises costs the record and nothing else. Each record names the file that logs."""

    class Mute:
        def __str__(self) -> str:
            raise ValueError("no words")

    logger.info("%s", Mute())
    logger.info("after %d and %.1f %s", 3, 0.5, "größe 世")
    assert log.getvalue().endswith("RECORD INFO after 3 and 0.5 größe 世\n")
    assert [record.filename for record in caplog.records] == [Path(__file__).name] * 2


def test_plain_text_is_visible() -> None:
    """A terminal that shows ``/readyz?verbose`` gets no sequence of the application's."""
    app, lifecycle = serve(LIFECYCLE_DETAILS="always")
    lifecycle.check("database")(raiser(HealthCheckError(FORGED)))
    state_of(app).startup.run()
    lifecycle.set_not_ready(FORGED)
    body = app.test_client().get("/readyz?verbose", buffered=True).text
    assert harmless(body)
    assert not any(line.startswith("2026") for line in body.splitlines())
    assert r"\x1b[2J" in body


def test_what_the_command_line_prints_is_visible() -> None:
    """A name on the command line is shown as it is."""
    app, _lifecycle = serve()
    for directory in (f"/nowhere/{FORGED}", f"{__file__}/{FORGED}"):
        done = app.test_cli_runner().invoke(args=["lifecycle", "uncordon", "--dir", directory])
        assert done.exit_code == 2
        assert r"\x1b[2J" in done.output
        assert harmless(done.output)
