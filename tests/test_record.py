"""Records: named tuples as ``typing`` makes them, at a fraction of what that costs."""

from __future__ import annotations

import ast
import inspect
import pickle
import typing
from pathlib import Path
from typing import Any

import pytest

import flask_lifecycle
from flask_lifecycle._record import NamedTuple

PACKAGE = Path(flask_lifecycle.__file__).parent


class Ours(NamedTuple):
    """What it is."""

    name: str
    age: float = 1.5
    more: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} is {self.age}"

    @property
    def old(self) -> bool:
        """Whether it is."""
        return self.age > 1


class Theirs(typing.NamedTuple):
    """What it is."""

    name: str
    age: float = 1.5
    more: tuple[int, ...] = ()


def test_a_record_is_a_named_tuple_as_typing_makes_it() -> None:
    """Fields, defaults, signature, text, equality and copies are those of ``typing``."""
    ours, theirs = Ours("x", age=2.0), Theirs("x", age=2.0)
    assert isinstance(ours, tuple)
    assert tuple(ours) == tuple(theirs)
    assert (Ours._fields, Ours._field_defaults) == (Theirs._fields, Theirs._field_defaults)
    # The defaults and the order; what stands for an annotation there is another matter.
    assert [(p.name, p.default) for p in inspect.signature(Ours).parameters.values()] == [
        (p.name, p.default) for p in inspect.signature(Theirs).parameters.values()
    ]
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert ours._replace(age=3.0)._asdict() == theirs._replace(age=3.0)._asdict()
    assert Ours("y") == ("y", 1.5, ())


def test_a_record_has_what_its_class_statement_gives_it() -> None:
    """Methods, properties, the docstring, the module and the annotations are there."""
    assert (str(Ours("x")), Ours("x").old, Ours.__doc__) == ("x is 1.5", True, "What it is.")
    assert (Ours.__module__, Ours.__name__) == (__name__, "Ours")
    assert typing.get_type_hints(Ours) == {"name": str, "age": float, "more": tuple[int, ...]}


def test_a_record_is_frozen_and_can_be_pickled() -> None:
    """Nobody changes a record that others hold as well, and a process pool may be given one."""
    with pytest.raises(AttributeError, match=r"can't set attribute|object has no setter"):
        Ours("x").name = "y"  # type: ignore[misc]  # that is the error
    assert pickle.loads(pickle.dumps(Ours("x"))) == Ours("x")


def test_missing_and_unknown_fields_are_refused() -> None:
    """As with any function."""
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        Ours()  # type: ignore[call-arg]  # that is the error
    wrong: dict[str, Any] = {"name": "x", "size": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        Ours(**wrong)


def test_every_record_of_the_package_is_one_of_these() -> None:
    """No module takes ``typing``'s, which would cost at import what this saves."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "typing" and path.name != "_record.py":
                found += [path.name for alias in node.names if alias.name == "NamedTuple"]
    assert found == []
