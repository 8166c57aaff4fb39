"""No case of either suite is forgotten: each has its test, or its reason why not."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.live._process import ROOT

from . import test_lightship, test_terminus

_NUMBERS = re.compile(r"test_cases?((?:_\d+)+)_[a-z]")


@pytest.mark.parametrize(
    ("module", "cases"), [(test_terminus, 55), (test_lightship, 16)], ids=["terminus", "lightship"]
)
def test_every_case_is_tested_or_listed(module: ModuleType, cases: int) -> None:
    """Every number has a test or a reason in NOT_TESTED, not both; every test says which case it is."""
    names = {name: _NUMBERS.match(name) for name in vars(module) if name.startswith("test_")}
    assert [name for name, match in names.items() if not match] == []
    numbers = {int(number) for match in names.values() if match for number in match[1].split("_")[1:]}
    tested = numbers | set(getattr(module, "ANSWERS", ()))
    assert sorted([*tested, *module.SHOWN_BY, *module.NOT_TESTED]) == list(range(1, cases + 1))
    assert all(len(reason.split()) >= 6 for reason in module.NOT_TESTED.values())
    for test in module.SHOWN_BY.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), test
