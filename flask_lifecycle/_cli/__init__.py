"""``flask lifecycle ...``."""

from __future__ import annotations

import importlib
import traceback
from typing import Any, ClassVar

import click
from flask import Flask
from flask.cli import AppGroup, ScriptInfo


def load(info: ScriptInfo) -> tuple[Flask, Any]:
    """The application, with what is wrong with its settings as one sentence; its own errors keep their traceback."""
    try:
        app = info.load_app()
    except (ValueError, TypeError, RuntimeError) as error:
        if not _raised_by_us(error):
            raise
        raise click.UsageError(str(error)) from None
    if "lifecycle" not in app.extensions:
        raise click.UsageError(f"The application '{app.name}' has no Lifecycle; give it one with Lifecycle(app).")
    return app, app.extensions["lifecycle"]


def _raised_by_us(error: BaseException) -> bool:
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__package__") or ""
    return str(package).partition(".")[0] == "flask_lifecycle"


class _Group(AppGroup):
    """The commands, each made when it is wanted: every application has them, and few processes use one."""

    _modules: ClassVar = {
        "cordon": "flask_lifecycle._cli.operators",
        "doctor": "flask_lifecycle._cli.doctor",
        "drain": "flask_lifecycle._cli.operators",
        "manifest": "flask_lifecycle._cli.doctor",
        "run": "flask_lifecycle._cli.run",
        "status": "flask_lifecycle._cli.operators",
        "uncordon": "flask_lifecycle._cli.operators",
        "verify": "flask_lifecycle._verify.command",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._modules:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(self._modules[cmd_name]), cmd_name)
        return command


# Flask finds it in two places: in the application, and by the entry point of this distribution, which is there even
# if the application cannot be loaded, so that our own sentence can say why not.
group = _Group("lifecycle", help="Serve, inspect and stop an application without dropping requests.")
