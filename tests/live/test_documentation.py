"""The programs of the documentation, typed through."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ._client import Connection
from ._process import Running, Starter

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "tutorial.md").read_text(encoding="utf-8")
CHECK = '"""Raise an exception here if your database does not answer."""'


def serve(live: Starter, home: Path, program: str, **env: str) -> Running:
    path = home / "app.py"
    path.write_text(program.replace("time.sleep(5)", "time.sleep(1)"), encoding="utf-8")
    return live.serve("waitress", app=str(path), env=env, excuse=r"RuntimeError: no answer")


def ask(running: Running, path: str) -> tuple[int, str]:
    with Connection(running.address) as connection:
        connection.ask(path, Connection="close")
        answer = connection.answer()
        return answer.status, answer.body.decode()


def test_the_tutorial_s_application(live: Starter, tmp_path: Path) -> None:
    """Its request is answered although SIGINT comes in the middle, its pool is closed, and it exits with 0."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    running = serve(live, tmp_path, program)
    assert ask(running, "/readyz")[0] == 200
    with Connection(running.address) as connection:
        connection.ask("/slow")
        running.begin_stop(signal.SIGINT)
        assert connection.answer().body == b"done\n"
    assert running.wait_gone() == 0
    assert "closing the pool" in running.log


def test_the_tutorial_s_check_that_fails(live: Starter, tmp_path: Path) -> None:
    """Readiness fails and names the check, and liveness does not fail."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    failing = program.replace(CHECK, 'raise RuntimeError("no answer")')
    running = serve(live, tmp_path, failing, FLASK_LIFECYCLE_DETAILS="always")
    assert ask(running, "/livez")[0] == 200
    shown = PAGE.split("readyz?verbose'\n", 1)[1].split("```", 1)[0]
    assert ask(running, "/readyz?verbose") == (503, shown)
    assert running.stop() == 0


def test_the_hooks_of_the_documentation(live: Starter, tmp_path: Path) -> None:
    """The program that ``docs/hooks.md`` shows prints at SIGTERM what the page says."""
    text = (DOCS / "hooks.md").read_text(encoding="utf-8")
    program, printed = re.search(r"```python\n(.*?)```.*?```\n(.*?)```", text, re.DOTALL).groups()  # type: ignore[union-attr]
    # Without a buffer, print() writes a line and its end apart, and a line of the log may come between them.
    running = serve(live, tmp_path, program, PYTHONUNBUFFERED="")
    assert running.stop() == 0
    assert [line for line in running.log.splitlines() if line in printed.splitlines()] == printed.splitlines()


TESTING = (DOCS / "testing.md").read_text(encoding="utf-8")


def run_tests(home: Path, break_program: Callable[[str], str] = str) -> str:
    """Run the tests that ``docs/testing.md`` shows, each block in a file of its own; return what pytest prints."""
    program, *blocks = re.findall(r"```python\n(.*?)```", TESTING, re.DOTALL)
    assert all("def test_" in block for block in blocks)
    (home / "shop.py").write_text(break_program(program), encoding="utf-8")
    for number, block in enumerate(blocks):
        (home / f"test_{number}.py").write_text(block, encoding="utf-8")
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(home)]
    command = [sys.executable, "-m", "pytest", *options]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=100).stdout


def test_the_tests_of_the_documentation(tmp_path: Path) -> None:
    """They pass on the application that the page shows."""
    printed = run_tests(tmp_path)
    assert f"{TESTING.count('def test_')} passed in" in printed.splitlines()[-1], printed


def test_the_tests_of_the_documentation_can_fail(tmp_path: Path) -> None:
    """They all fail on an application without hooks and checks that cuts off its stream and loses requests."""

    def break_program(program: str) -> str:
        for line, broken in (
            ("@lifecycle.on_startup\n", ""),
            ("@lifecycle.on_shutdown\n", ""),
            ('@lifecycle.check("database", timeout=1, ttl=0)\n', ""),
            ('yield "bye\\n"', "pass"),
            ('return "done"', "os._exit(0)"),
        ):
            assert program.count(line) == 1
            program = program.replace(line, broken)
        return program

    printed = run_tests(tmp_path, break_program)
    assert f"{TESTING.count('def test_')} failed in" in printed.splitlines()[-1], printed
