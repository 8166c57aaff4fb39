"""``flask lifecycle doctor`` and ``manifest``: check and print deployment files."""

from __future__ import annotations

from typing import Any

import click

from .._doctor.examine import Application, as_json, examine, exit_code
from .._doctor.manifest import KINDS, plan_for, render
from . import load


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--name", metavar="NAME", default=None, help="The container or service that is the application.")
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
@click.pass_obj
def doctor(info: Any, files: tuple[str, ...], name: str | None, json_wanted: bool) -> None:
    """Check deployment files against the application's settings.

    Reads Kubernetes YAML, compose files, Dockerfiles, systemd units and gunicorn.conf.py ('-' is the standard
    input). Exits with 0 without an error, with 1 with one, and with 2 if a file cannot be read.
    """
    app, state = load(info)
    application = Application(state.settings, app.config, state.probes.worker)
    findings = [finding for file in files for finding in examine(file, application, name)]
    click.echo(as_json(findings) if json_wanted else "\n".join(map(str, findings)))
    raise SystemExit(exit_code(findings))


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--port", "-p", type=click.IntRange(1, 65535), default=8000, show_default=True, help="The main port.")
@click.pass_obj
def manifest(info: Any, kind: str, port: int) -> None:
    """Print a deployment file that fits the settings.

    Comments give the reason for each number. Names, images and addresses are placeholders.
    """
    app, state = load(info)
    application = Application(state.settings, app.config, state.probes.worker)
    try:
        plan = plan_for(kind, application, app.name, info.app_import_path or "app", port)
    except ValueError as error:
        raise click.UsageError(f"In a cluster the application does not start: {error}") from None
    click.echo(render(kind, plan), nl=False)
