"""What the package offers, as data: a change here is a change that users see."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from typing import Any

import pytest

import flask_lifecycle
from flask_lifecycle import Lifecycle, testing

PUBLIC = [
    "Check",
    "CheckContext",
    "CheckReport",
    "CheckResult",
    "HealthCheckError",
    "HealthReport",
    "HookRecord",
    "Lifecycle",
    "PhaseRecord",
    "ProberInfo",
    "RequestInfo",
    "ServerInfo",
    "ShutdownContext",
    "ShutdownReport",
    "StartupTask",
    "State",
    "Transition",
    "Work",
    "WorkInfo",
    "check_changed",
    "health_changed",
    "probe_refused",
    "shutdown_complete",
    "state_changed",
]

# Of each public method of Lifecycle: its parameters with their defaults. Types are mypy's to check.
SIGNATURES = {
    "__init__": "(self, app=None)",
    "init_app": "(self, app)",
    "check": "(self, name=None, **options)",
    "add_check": "(self, check, **options)",
    "group": "(self, name, *, path=None, status_codes=None, headers=None, details=None, renderer=None)",
    "renderer": "(self, function)",
    "transitions": "(self)",
    "probers": "(self)",
    "on_startup": "(self, function=None, *, name=None, timeout=None)",
    "on_drain": "(self, function=None, *, name=None, timeout=None, hold=False)",
    "on_shutdown": "(self, function=None, *, name=None, timeout=None, scope='process')",
    "requests": "(self, stacks=False)",
    "resource": "(self, function=None, *, name=None, timeout=None, close_timeout=None)",
    "startup_task": "(self, name, *, on_failure='shutdown')",
    "submit": "(self, executor, function, /, *arguments, **keywords)",
    "work_items": "(self, stacks=False)",
    "wait_ready": "(self, timeout=None)",
    "work": "(self, name, /, **info)",
    "remaining": "(self)",
    "set_ready": "(self)",
    "set_not_ready": "(self, reason='set_not_ready()')",
    "run": "(self, app, host=None, port=None, server='waitress', **server_options)",
    "shutdown": "(self, reason='shutdown()', wait=True)",
}


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


def test_all_is_sorted_and_complete() -> None:
    """``__all__`` is the sorted list of what the package offers, neither more nor less."""
    there = [
        name
        for name, value in vars(flask_lifecycle).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    ]
    assert flask_lifecycle.__all__ == PUBLIC
    assert sorted(there) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name: str) -> None:
    """Every public name has a docstring of its own, written for it and not inherited."""
    value = getattr(flask_lifecycle, name)
    doc = value.__dict__.get("__doc__")
    assert doc
    # What dataclasses write when nobody else did.
    assert not doc.startswith(f"{name}(")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_belong_to_the_package(name: str) -> None:
    """A public class is found by pickles, tracebacks and help under a module of the package."""
    value = getattr(flask_lifecycle, name)
    assert getattr(value, "__module__", "flask_lifecycle").split(".")[0] in {
        "flask_lifecycle",
        "blinker",
    }


def test_public_members_of_classes_are_documented() -> None:
    """Every public method and property of a public class has a docstring."""
    bare = []
    for name in PUBLIC:
        value = getattr(flask_lifecycle, name)
        if not inspect.isclass(value) or issubclass(value, enum.Enum):
            continue
        ours = [base for base in value.__mro__ if base.__module__.startswith("flask_lifecycle")]
        for member, thing in (item for base in ours for item in vars(base).items()):
            documentable = inspect.isfunction(thing) or isinstance(thing, property)
            if documentable and not member.startswith("_") and not inspect.getdoc(thing):
                bare.append(f"{name}.{member}")
    assert bare == []


def test_signatures_of_lifecycle() -> None:
    """The methods of ``Lifecycle`` take what is written here."""
    methods = {
        name: _signature(value)
        for name, value in inspect.getmembers(Lifecycle)
        if inspect.isfunction(value) and (not name.startswith("_") or name == "__init__")
    }
    assert methods == SIGNATURES


# Of the options of a check: their defaults.
OPTIONS = {
    "timeout": 2.0,
    "critical": True,
    "groups": ("ready",),
    "ttl": 1.0,
    "fail_ttl": None,
    "interval": None,
    "fail_interval": None,
    "fail_after": 1,
    "recover_after": 1,
    "fail_for": 0.0,
    "scope": "local",
    "affects": (),
}


def test_options_of_a_check() -> None:
    """A check has the options that are written here, with these defaults."""
    fields = {field.name: field.default for field in dataclasses.fields(flask_lifecycle.Check) if field.init}
    assert list(fields) == ["name", "function", *OPTIONS]
    assert {name: fields[name] for name in OPTIONS} == OPTIONS


@pytest.mark.skipif(sys.version_info < (3, 11), reason="overloads are not kept before Python 3.11")
def test_the_decorator_is_typed_with_the_options_of_a_check() -> None:
    """What editors and type checkers are told of ``check`` are the options of a check, with their defaults."""
    (_, overload) = typing.get_overloads(Lifecycle.check)  # type: ignore[attr-defined,unused-ignore]
    told = {name: p.default for name, p in inspect.signature(overload).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert told == OPTIONS


def test_properties_of_lifecycle() -> None:
    """What is read without a call is a property that cannot be set."""
    properties = {n: p for n, p in vars(Lifecycle).items() if isinstance(p, property)}
    assert sorted(name for name in properties if not name.startswith("_")) == [
        "draining",
        "in_flight",
        "probe_address",
        "server",
        "state",
    ]
    assert all(prop.fset is None for prop in properties.values())


# Of flask_lifecycle.testing, as for Lifecycle.
SIGNATURES_OF_TESTING = {
    "AppFactory.__call__": "(self, app, *arguments, settings=None, start=True, timeout=30.0, **keywords)",
    "AppFactory.close": "(self)",
    "AppUnderTest.check": "(self, name)",
    "AppUnderTest.drain": "(self)",
    "AppUnderTest.failing": "(self, name, reason='made to fail by the test')",
    "AppUnderTest.start": "(self)",
    "AppUnderTest.stop": "(self)",
    "ServerFactory.close": "(self)",
    "Server.get": "(self, path, headers=None, port=None)",
    "Server.open": "(self, path, method='GET', body=None, headers=None, port=None)",
    "Server.signal": "(self, number=<Signals.SIGTERM: 15>)",
    "Server.start_request": "(self, path, method='GET', body=None, headers=None, port=None)",
    "Server.stop": "(self, number=<Signals.SIGTERM: 15>)",
    "Server.wait": "(self)",
    "Server.wait_log": "(self, pattern)",
    "Server.wait_status": "(self, path, status=200, port=None)",
    "ServerFactory.__call__": (
        "(self, app=None, *, command=None, settings=None, env=None, ready_path='/readyz', timeout=30.0)"
    ),
}


def test_signatures_of_testing() -> None:
    """What the fixtures give has these methods, and each public member has a docstring."""
    members = {
        f"{name}.{member}": value
        for name in testing.__all__
        for member, value in vars(getattr(testing, name)).items()
        if member == "__call__" or not member.startswith("_")
    }
    assert sorted(testing.__all__) == testing.__all__
    assert {
        name: _signature(value) for name, value in members.items() if inspect.isfunction(value)
    } == SIGNATURES_OF_TESTING
    assert [name for name, value in members.items() if not inspect.getdoc(value)] == []
