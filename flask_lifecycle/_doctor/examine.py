"""Checks a file: finds its workloads, and applies the rules to each.

Exit codes: 0 without an error; 1 with one; 2 if a file cannot be read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .._config import KUBERNETES_DELAY, Settings
from .docker import is_compose, is_dockerfile, read_compose, read_dockerfile
from .gunicorn import CONFIGURATION_RULES, is_gunicorn, read_gunicorn
from .kubernetes import is_kubernetes, read_kubernetes
from .model import ERROR, OK, UNREADABLE, WARNING, Case, Finding, Notes, Workload
from .rules import RULES
from .source import UnreadableError, check_length, parse_yaml, read
from .systemd import is_systemd, read_systemd


@dataclasses.dataclass(frozen=True, slots=True)
class Application:
    """The application, as the rules use it."""

    settings: Settings
    config: Mapping[str, Any]
    group_at: Callable[[str], str | None]  # the group of checks that a path asks, ``None`` for any other path

    def settings_on(self, platform: str) -> Settings:
        """The settings on a platform: in a cluster the delay has another default, which may not fit the others."""
        if platform != "kubernetes" or "LIFECYCLE_SHUTDOWN_DELAY" in self.config:
            return self.settings
        return Settings.from_mapping({**self.config, "LIFECYCLE_SHUTDOWN_DELAY": KUBERNETES_DELAY})


def examine(file: str, application: Application, name: str | None = None) -> list[Finding]:
    """The findings of one file, for the container or service of this name, or for those that look like it."""
    notes = Notes("<stdin>" if file == "-" else file, name, application.group_at)
    found: list[Finding] = []
    checked = False
    try:
        for workload in _workloads(read(file), notes):
            checked = True
            found += _check(workload, application, notes)
    except UnreadableError as error:
        notes.unreadable(error)
    if not checked and not notes.findings:
        text = "The file contains no Kubernetes workload, no compose service and no systemd unit."
        if name is not None:
            text = f"The file has no container or service '{name}'; give --name one that it has."
        notes.unreadable(UnreadableError(0, text))
    # Several rules may read the same unreadable value.
    return sorted(dict.fromkeys([*notes.findings, *found]), key=lambda finding: finding.line)


def _workloads(text: str, notes: Notes) -> Iterator[Workload]:
    """The workloads of a file; an unreadable document hides no other."""
    if is_systemd(notes.file, text):
        yield read_systemd(check_length(text), notes)
    elif is_gunicorn(notes.file):
        yield read_gunicorn(check_length(text), notes)
    elif is_dockerfile(notes.file, text):
        yield read_dockerfile(check_length(text), notes)
    else:
        for document in parse_yaml(text):
            with notes.reading():
                if isinstance(document, UnreadableError):
                    raise document
                if is_kubernetes(document):
                    yield from read_kubernetes(document, notes)
                elif is_compose(document):
                    yield from read_compose(document, notes)


def _check(workload: Workload, application: Application, notes: Notes) -> Iterator[Finding]:
    try:
        settings = application.settings_on(workload.platform)
    except ValueError as error:
        text = f"in the cluster the application does not start: {error}"
        yield Finding(workload.file, workload.line, ERROR, "settings", workload.subject, text)
        return
    case = Case(workload, settings, application.group_at)
    rules = CONFIGURATION_RULES if workload.platform == "gunicorn" else RULES
    for rule in rules:
        with notes.reading():
            yield from rule(case)


def exit_code(findings: list[Finding]) -> int:
    severities = {finding.severity for finding in findings}
    return 2 if UNREADABLE in severities else 1 if ERROR in severities else 0


def as_json(findings: list[Finding]) -> str:
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in (ERROR, WARNING, OK, UNREADABLE)
    }
    return json.dumps({"findings": [dataclasses.asdict(finding) for finding in findings], "counts": counts}, indent=2)
