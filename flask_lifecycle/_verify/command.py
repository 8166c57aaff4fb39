"""``flask lifecycle verify``: the options, and how the outcomes are shown.

Exit codes: 0 if the required guarantee holds; 1 if it is broken; 2 if nothing can be checked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import click

from .client import Tcp
from .runner import BROKEN, HOLDS, NOT_CHECKED, Outcome, Plan, Runner, choose
from .subject import MisuseError
from .trial import LEVELS

_KINDS = {
    "fast": "answers at once",
    "slow": "answers after {seconds}",
    "stream": "streams for {seconds}",
    "upload": "answers a POST of any body",
    "large": "answers several megabytes",
    "file": "sends a file of several megabytes",
    "websocket": "echoes the messages of a websocket",
    "ready": "is the readiness probe",
    "live": "is the liveness probe",
}
_SIGNALS = {each.name: each for each in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)}
_RELOADS = {each.name: each for each in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)}
_COLOURS = {HOLDS: "green", BROKEN: "red", NOT_CHECKED: "yellow"}


def _path_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for kind, text in reversed(_KINDS.items()):
        text = f"A path of the application that {text}."
        command = click.option(f"--{kind}", f"path_{kind}", metavar="PATH", default=None, help=text)(command)
    return command


def _address(url: str) -> Tcp:
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.hostname is None or port is None or parts.scheme not in ("", "http"):
        raise MisuseError(f"--url '{url}' is not of the form http://HOST:PORT.")
    return parts.hostname, port


def _plan(command: Sequence[str], url: str | None, options: dict[str, Any], **others: Any) -> Plan:
    if not command:
        raise MisuseError("Give the command that starts the server after '--', for example: -- waitress-serve ...")
    if url is None and not any("{port}" in word for word in command):
        raise MisuseError("The command has no {port}, which is replaced by a free port; write it there, or give --url.")
    paths = {kind: options[f"path_{kind}"] for kind in _KINDS if options[f"path_{kind}"] is not None}
    return Plan(command, None if url is None else _address(url), paths, **others)


def required(outcomes: Sequence[Outcome], level: str) -> list[Outcome]:
    """The broken promises of a level and of those that it includes."""
    included = LEVELS[: LEVELS.index(level) + 1]
    return [outcome for outcome in outcomes if outcome.result == BROKEN and outcome.level in included]


def as_json(outcomes: Sequence[Outcome], level: str, command: Sequence[str]) -> dict[str, Any]:
    shown = [{k: v for k, v in dataclasses.asdict(outcome).items() if k != "log"} for outcome in outcomes]
    return {
        "command": list(command), "required": level, "holds": not required(outcomes, level), "scenarios": shown,
    }  # fmt: skip


def as_junit(outcomes: Sequence[Outcome]) -> str:
    suite = ElementTree.Element(
        "testsuite", name="flask lifecycle verify", tests=str(len(outcomes)),
        failures=str(sum(outcome.result == BROKEN for outcome in outcomes)),
        skipped=str(sum(outcome.result == NOT_CHECKED for outcome in outcomes)),
    )  # fmt: skip
    for outcome in outcomes:
        classname, _, name = outcome.scenario.partition("/")
        case = ElementTree.SubElement(suite, "testcase", classname=classname, name=name, time=f"{outcome.seconds:.2f}")
        if outcome.result == BROKEN:
            ElementTree.SubElement(case, "failure", message=outcome.seen).text = outcome.promise
        elif outcome.result == NOT_CHECKED:
            ElementTree.SubElement(case, "skipped", message=outcome.seen)
    return ElementTree.tostring(suite, encoding="unicode")


def _show(outcome: Outcome) -> None:
    result = click.style(f"{outcome.result:11}", fg=_COLOURS[outcome.result])
    click.echo(f"{outcome.scenario:31} {outcome.level:9} {result} {outcome.seconds:6.1f} s  {outcome.seen}")
    if outcome.result == BROKEN:
        click.echo(f"    expected: {outcome.promise}")
        for line in outcome.log.splitlines()[-3:]:
            click.echo(f"    log: {line[:160]}")


@contextlib.contextmanager
def _cancelled_by_signals(runner: Runner) -> Iterator[None]:
    """End all processes when Ctrl-C or SIGTERM comes, then exit with 128 and its number.

    Interleavings: a handler that cancels or raises interrupts the main thread between two steps of a lock of the pool
    or of the runner, and waits for ever or leaves it broken; or it interrupts no lock, and all is well. So the handler
    only wakes a thread, by a queue whose ``put`` may interrupt itself.
    """
    numbers: list[int] = []
    wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def handle(number: int, _frame: object) -> None:
        numbers.append(number)
        wake.put(None)

    def wait() -> None:
        wake.get()
        if numbers:
            runner.cancel()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        wake.put(None)
        waiter.join()
        if numbers:
            raise SystemExit(128 + numbers[0]) from None


@click.command()
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--url", default=None, metavar="URL", help="Where the command listens, if not on {port}.")
@click.option(
    "--require", type=click.Choice(LEVELS), default=None,
    help="The guarantee that must hold.  [default: that of the package on this server]",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME", help="A scenario or family to run; may be repeated.")
@click.option("--skip", multiple=True, metavar="NAME", help="A scenario or family to leave out; may be repeated.")
@click.option("--list", "list_only", is_flag=True, help="List the scenarios and exit.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Scenarios run at once.")
@click.option("--repeat", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs of each scenario.")
@click.option("--json", "json_file", type=click.File("w", lazy=False), help="Write the outcomes to this file.")
@click.option("--junit", "junit_file", type=click.File("w", lazy=False), help="Write them as JUnit XML.")
@click.option(
    "--keep-logs", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path), default=None,
    metavar="DIR", help="Keep what each process printed in this directory.",
)  # fmt: skip
@click.option(
    "--signal", "signal_name", type=click.Choice(list(_SIGNALS)), default="SIGTERM", show_default=True,
    help="The signal that stops the process.",
)  # fmt: skip
@click.option(
    "--reload-on", type=click.Choice(list(_RELOADS)), default=None,
    help="The signal on which COMMAND replaces its processes, if it does so.",
)  # fmt: skip
@click.option(
    "--grace", type=click.FloatRange(1, 3600), default=None, metavar="SECONDS",
    help="How long a shutdown may take.  [default: the application's grace period]",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(1, 3600), default=30.0, show_default=True, metavar="SECONDS",
    help="How long each wait for the process may take.",
)  # fmt: skip
@_path_options
def verify(
    command: tuple[str, ...],
    url: str | None,
    require: str | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    list_only: bool,
    jobs: int,
    repeat: int,
    json_file: Any,
    junit_file: Any,
    keep_logs: Path | None,
    signal_name: str,
    reload_on: str | None,
    grace: float | None,
    timeout: float,
    **paths: Any,
) -> None:
    """Shut COMMAND down in many difficult situations and report which guarantee holds.

    Each scenario starts COMMAND again, with {port} and {probe_port} replaced by free ports:

        flask --app shop lifecycle verify -- waitress-serve --port={port} shop:app
    """
    try:
        scenarios = choose(only, skip)
        if list_only:
            for each in scenarios:
                click.echo(f"{each.name:31} {each.level:8} {each.promise}")
            return
        plan = _plan(
            command, url, paths, number=_SIGNALS[signal_name], grace=grace, patience=timeout, keep_logs=keep_logs,
            reload_on=None if reload_on is None else _RELOADS[reload_on],
        )  # fmt: skip
        if url is not None and jobs > 1:
            raise MisuseError("With --url all processes would listen at one address; leave --jobs at 1.")
        runner = Runner(plan)
        with _cancelled_by_signals(runner):
            runner.try_command()
            click.echo(f"{'scenario':31} {'guarantee':9} {'result':11} {'time':>8}  seen")
            outcomes = []
            for outcome in runner.run([each for each in scenarios for _ in range(repeat)], jobs):
                _show(outcome)
                outcomes.append(outcome)
    except MisuseError as error:
        raise click.UsageError(str(error)) from None
    level = require or runner.claim
    if json_file is not None:
        json_file.write(json.dumps(as_json(outcomes, level, command), indent=2) + "\n")
    if junit_file is not None:
        junit_file.write(as_junit(outcomes) + "\n")
    broken = required(outcomes, level)
    counts = ", ".join(f"{sum(o.result == r for o in outcomes)} {r}" for r in _COLOURS)
    part = " in these scenarios" if only or skip else ""
    verdict = "is broken" if broken else f"holds{part}"
    click.echo(f"{counts}. The guarantee '{level}' {verdict}.")
    raise SystemExit(bool(broken))
