"""No case of either suite is forgotten: each has its test, or its reason why not."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from . import test_lightship, test_terminus

_NUMBERS = re.compile(r"test_cases?((?:_\d+)+)_[a-z]")
SUITES = pytest.mark.parametrize(
    ("module", "cases"), [(test_terminus, 55), (test_lightship, 16)], ids=["terminus", "lightship"]
)


def numbers_of(module: ModuleType) -> set[int]:
    """The numbers in the names of a module's tests, and in its table of answers."""
    names = [match[1] for name in vars(module) if (match := _NUMBERS.match(name))]
    return {int(number) for name in names for number in name.split("_") if number} | set(getattr(module, "ANSWERS", ()))


@SUITES
def test_every_case_is_tested_or_listed(module: ModuleType, cases: int) -> None:
    """Every number has a test, or a reason in NOT_TESTED; none has both, and there are no others."""
    listed = set(module.NOT_TESTED)
    assert sorted([*numbers_of(module), *listed]) == list(range(1, cases + 1))


@SUITES
def test_every_test_has_its_number(module: ModuleType, cases: int) -> None:
    """Every test says which case it is."""
    assert [name for name in vars(module) if name.startswith("test_") and not _NUMBERS.match(name)] == []


@SUITES
def test_reasons_are_given(module: ModuleType, cases: int) -> None:
    """Each reason is a sentence, and what is partly left out belongs to a case that is tested."""
    assert set(module.PARTLY) <= numbers_of(module)
    assert all(len(reason.split()) >= 6 for reason in [*module.NOT_TESTED.values(), *module.PARTLY.values()])
