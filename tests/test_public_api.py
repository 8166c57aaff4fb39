"""What the package offers, as data: a change here is a change that users see."""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import types
import typing
from typing import Any

import pytest

import flask_lifecycle
from flask_lifecycle import Lifecycle, testing

PUBLIC = [
    "Check", "CheckContext", "CheckReport", "CheckResult", "HealthCheckError", "HealthReport", "HookRecord",
    "Lifecycle", "PhaseRecord", "ProberInfo", "RequestInfo", "ServerInfo", "ShutdownContext", "ShutdownReport",
    "StartupTask", "State", "Transition", "Work", "WorkInfo", "check_changed", "health_changed", "probe_refused",
    "shutdown_complete", "state_changed",
]  # fmt: skip

# Of each public method: its parameters with their defaults. Types are mypy's to check.
SIGNATURES = {
    "Check.__init__": (
        "(self, name, function, timeout=2.0, critical=True, groups=('ready',), ttl=1.0, fail_ttl=None, interval=None,"
        " fail_interval=None, fail_after=1, recover_after=1, fail_for=0.0, scope='local', affects=())"
    ),
    "Lifecycle.__init__": "(self, app=None)",
    "Lifecycle.init_app": "(self, app)",
    "Lifecycle.check": "(self, name=None, **options)",
    "Lifecycle.add_check": "(self, check, **options)",
    "Lifecycle.group": "(self, name, *, path=None, status_codes=None, headers=None, details=None, renderer=None)",
    "Lifecycle.renderer": "(self, function)",
    "Lifecycle.transitions": "(self)",
    "Lifecycle.probers": "(self)",
    "Lifecycle.on_startup": "(self, function=None, *, name=None, timeout=None)",
    "Lifecycle.on_drain": "(self, function=None, *, name=None, timeout=None, hold=False)",
    "Lifecycle.on_shutdown": "(self, function=None, *, name=None, timeout=None, scope='process')",
    "Lifecycle.requests": "(self, stacks=False)",
    "Lifecycle.resource": "(self, function=None, *, name=None, timeout=None, close_timeout=None)",
    "Lifecycle.startup_task": "(self, name, *, on_failure='shutdown')",
    "Lifecycle.submit": "(self, executor, function, /, *arguments, **keywords)",
    "Lifecycle.work_items": "(self, stacks=False)",
    "Lifecycle.wait_ready": "(self, timeout=None)",
    "Lifecycle.work": "(self, name, /, **info)",
    "Lifecycle.remaining": "(self)",
    "Lifecycle.set_ready": "(self)",
    "Lifecycle.set_not_ready": "(self, reason='set_not_ready()')",
    "Lifecycle.run": "(self, app, host=None, port=None, server='waitress', **server_options)",
    "Lifecycle.shutdown": "(self, reason='shutdown()', wait=True)",
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


def test_all_is_sorted_and_complete() -> None:
    """``__all__`` is the sorted list of what the package offers, neither more nor less."""
    public = {name: value for name, value in vars(flask_lifecycle).items() if not name.startswith("_")}
    there = {name for name, value in public.items() if not isinstance(value, types.ModuleType)} - {"annotations"}
    assert flask_lifecycle.__all__ == sorted(there) == PUBLIC
    assert sorted(testing.__all__) == testing.__all__


OFFERED = {name: getattr(package, name) for package in (flask_lifecycle, testing) for name in package.__all__}


@pytest.mark.parametrize("name", OFFERED)
def test_public_names_are_documented(name: str) -> None:
    """Every public name, method and property has a docstring of its own, and is found in the package."""
    value = OFFERED[name]
    doc = value.__dict__.get("__doc__")
    assert doc
    assert not doc.startswith(f"{name}(")  # what dataclasses write when nobody else did
    assert getattr(value, "__module__", "flask_lifecycle").split(".")[0] in {"flask_lifecycle", "blinker"}
    if inspect.isclass(value) and not issubclass(value, enum.Enum):
        ours = [base for base in value.__mro__ if base.__module__.startswith("flask_lifecycle")]
        public = {each: it for base in ours for each, it in vars(base).items() if each[0] != "_" or each == "__call__"}
        kinds = (types.FunctionType, property, functools.cached_property)
        assert [member for member, thing in public.items() if isinstance(thing, kinds) and not thing.__doc__] == []


def test_signatures() -> None:
    """The methods of ``Lifecycle`` and of what the fixtures give, and a check, take what is written here."""
    signatures = {}
    for kind in (Lifecycle, flask_lifecycle.Check, *(getattr(testing, name) for name in testing.__all__)):
        special = "__call__" if kind.__module__.startswith(testing.__name__) else "__init__"
        for name, value in inspect.getmembers(kind, inspect.isfunction):
            if name == special or not name.startswith("_"):
                signature = inspect.signature(value)
                bare: list[Any] = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
                signatures[f"{kind.__name__}.{name}"] = str(inspect.Signature(bare))
    assert signatures == SIGNATURES


@pytest.mark.skipif(sys.version_info < (3, 11), reason="overloads are not kept before Python 3.11")
def test_the_decorator_is_typed_with_the_options_of_a_check() -> None:
    """What editors and type checkers are told of ``check`` are the options of a check, with their defaults."""
    (_, overload) = typing.get_overloads(Lifecycle.check)  # type: ignore[attr-defined,unused-ignore]
    told = {name: p.default for name, p in inspect.signature(overload).parameters.items() if p.kind is p.KEYWORD_ONLY}
    _name, _function, *options = inspect.signature(flask_lifecycle.Check).parameters.values()
    assert told == {option.name: option.default for option in options}


def test_properties_of_lifecycle() -> None:
    """What is read without a call is a property that cannot be set."""
    properties = {n: p for n, p in vars(Lifecycle).items() if isinstance(p, property) and not n.startswith("_")}
    assert sorted(properties) == ["draining", "in_flight", "probe_address", "server", "state"]
    assert all(prop.fset is None for prop in properties.values())
