"""``flask lifecycle doctor``: the files in, a line for each finding out.

Exit codes, for scripts: 0 nothing is an error; 1 something is; 2 a file cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from .._config import KUBERNETES_DELAY, Settings
from .._record import NamedTuple
from ._compose import is_compose, read_compose
from ._docker import is_dockerfile, read_dockerfile
from ._gunicorn import CONFIGURATION_RULES, is_gunicorn, read_gunicorn
from ._kubernetes import is_kubernetes, read_kubernetes
from ._model import ERROR, OK, UNREADABLE, WARNING, Case, Finding, Notes, Workload
from ._rules import RULES
from ._source import UnreadableError, Value, parse_yaml, read
from ._systemd import is_systemd, read_systemd


class Application(NamedTuple):
    """What is known of the application.

    :param lane: names the probe at a path.
    """

    settings: Settings
    config: Mapping[str, Any]
    lane: Callable[[str], str | None]

    def settings_on(self, platform: str) -> Settings:
        """Those that it will have there: in a cluster the delay has another default.

        :raises ValueError: there they do not fit each other.
        """
        if platform != "kubernetes" or "LIFECYCLE_SHUTDOWN_DELAY" in self.config:
            return self.settings
        return Settings.from_mapping({**self.config, "LIFECYCLE_SHUTDOWN_DELAY": KUBERNETES_DELAY})


def examine(file: str, application: Application, name: str | None = None) -> list[Finding]:
    """All that is to be said of one file.

    :param name: of the containers or services that are the application; by default those that look like it.
    """
    shown = "<stdin>" if file == "-" else file
    notes = Notes(shown)
    try:
        workloads = _workloads(read(file), notes, name, application)
        if not workloads and not notes.findings:
            raise UnreadableError(0, _nothing(name))
        found = [*notes.findings, *(each for work in workloads for each in _judge(work, application))]
    except UnreadableError as error:
        return [Finding(shown, error.line, UNREADABLE, "file", "", str(error))]
    return sorted(found, key=lambda finding: finding.line)


def _nothing(name: str | None) -> str:
    if name is not None:
        return f"The file has no container or service '{name}'; --name has to be one of those in it."
    return "The file holds no workload of Kubernetes, no compose service and no systemd unit."


def _workloads(text: str, notes: Notes, name: str | None, application: Application) -> list[Workload]:
    if is_systemd(notes.file, text):
        return read_systemd(text, notes)
    if is_gunicorn(notes.file):
        return read_gunicorn(text, notes)
    if is_dockerfile(notes.file, text):
        return read_dockerfile(text, notes, name)
    found: list[Workload] = []
    for document in parse_yaml(text):
        found += _document(document, notes, name, application)
    return found


def _document(document: Value, notes: Notes, name: str | None, application: Application) -> list[Workload]:
    if is_kubernetes(document):
        return read_kubernetes(document, notes, name, application.lane)
    if is_compose(document):
        return read_compose(document, notes, name, application.lane)
    return []


def _judge(workload: Workload, application: Application) -> list[Finding]:
    try:
        settings = application.settings_on(workload.platform)
    except ValueError as error:
        text = f"in the cluster the application does not start: {error}"
        return [Finding(workload.file, workload.line, ERROR, "settings", workload.subject, text)]
    case = Case(workload, settings, application.lane)
    rules = CONFIGURATION_RULES if workload.platform == "gunicorn" else RULES
    return [finding for rule in rules for finding in rule(case)]


def exit_code(findings: list[Finding]) -> int:
    severities = {finding.severity for finding in findings}
    return 2 if UNREADABLE in severities else 1 if ERROR in severities else 0


def as_json(findings: list[Finding]) -> str:
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in (ERROR, WARNING, OK, UNREADABLE)
    }
    return json.dumps({"findings": [finding._asdict() for finding in findings], "counts": counts}, indent=2)


def commands(load: Callable[[Any], tuple[Any, Any]]) -> dict[str, click.Command]:
    """The command, by its name."""

    @click.command("doctor")
    @click.argument("files", metavar="FILE...", nargs=-1, required=True)
    @click.option("--name", metavar="NAME", default=None, help="The container or service that is the application.")
    @click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
    @click.pass_obj
    def doctor(info: Any, files: tuple[str, ...], name: str | None, json_wanted: bool) -> None:
        """Hold deployment files against the application's settings.

        Reads Kubernetes YAML, compose files, Dockerfiles, systemd units and gunicorn.conf.py ('-' is the standard
        input). Exits with 0 if nothing is an error, with 1 if something is, and with 2 if a file cannot be read.
        """
        app, state = load(info)
        application = Application(state.settings, app.config, state.probes.lane)
        findings = [finding for file in files for finding in examine(file, application, name)]
        click.echo(as_json(findings) if json_wanted else "\n".join(map(str, findings)))
        raise SystemExit(exit_code(findings))

    return {"doctor": doctor}
