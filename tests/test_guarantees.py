"""What the documents say of servers is what live tests show, and what the code promises."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from collections.abc import Mapping

import pytest

from tests.guarantees import GUARANTEES, ROOT, SERVERS, TABLES, Server, level, replaced

# Longest first: the name of one may be a part of another's.
PARAMETERS = sorted({"waitress", "werkzeug", *(each.parameter for each in SERVERS.values() if each.parameter)}, key=len)
each_server = pytest.mark.parametrize("name", SERVERS)


@pytest.fixture(scope="module")
def collected() -> Mapping[str, list[str]]:
    """The live tests, by file and function, each with the parameters that it runs with."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests/live"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, parameters = line.removeprefix("tests/live/").partition("[")
        found.setdefault(name, []).append(parameters.removesuffix("]"))
    return found


def servers_of(parameters: str) -> set[str]:
    """Which servers a test with these parameters runs on."""
    servers = set()
    for name in reversed(PARAMETERS):
        if name in parameters:
            servers.add(name)
            parameters = parameters.replace(name, "")
    return servers


def shows(test: str, server: Server, collected: Mapping[str, list[str]]) -> bool:
    """Whether a test is collected, and runs on the server if it runs on several."""
    function, _, parameters = test.partition("[")
    variants = [each for each in collected.get(function, []) if not parameters or each == parameters.removesuffix("]")]
    named = [servers_of(each) for each in variants if servers_of(each)]
    return bool(variants) and (not named or any(server.parameter in each for each in named))


@each_server
def test_every_yes_is_shown(name: str, collected: Mapping[str, list[str]]) -> None:
    """What is kept is kept in a live test that there is, and every test that is named is one of this server."""
    server = SERVERS[name]
    unshown = [each for each, cell in server.cells.items() if cell.words.startswith("yes") and not cell.tests]
    tests = {test for cell in server.cells.values() for test in cell.tests}
    assert unshown == []
    assert [test for test in sorted(tests) if not shows(test, server, collected)] == []


@each_server
def test_every_guarantee_has_its_cell(name: str) -> None:
    """Of each server all is said."""
    assert {each for each, cell in SERVERS[name].cells.items() if cell.words} == set(GUARANTEES)


@each_server
def test_the_promise_is_the_code_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The level that ``lifecycle.server`` and the line at the start tell is the one that the cells add up to."""
    server = SERVERS[name]
    assert level(server) == server.promise
    if server.kind:
        module, _, kind = server.kind.partition(":")
        monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))  # which only uWSGI itself has
        code = getattr(importlib.import_module(f"flask_lifecycle.servers.{module}"), kind)
        sys.modules.pop("flask_lifecycle.servers.found.uwsgi", None)
        assert code.promise == server.promise


@pytest.mark.parametrize("document", TABLES)
def test_the_tables_are_up_to_date(document: str) -> None:
    """The documents have the tables that ``python -m tests.guarantees`` writes."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert TABLES[document]() in text
    assert replaced(text, TABLES[document]()) == text


def test_a_test_that_is_not_one_is_found(collected: Mapping[str, list[str]]) -> None:
    """A test that does not exist, or does not run on the server, shows nothing."""
    ours, theirs = SERVERS["waitress"], SERVERS["waitress by itself"]
    both, one = "test_stop.py::test_slow_reader", "test_stop.py::test_report_of_run"
    assert [shows(test, server, collected) for server in (ours, theirs) for test in (both, one)] == [
        True,
        True,
        True,
        False,
    ]
    assert not shows("test_stop.py::test_nothing", ours, collected)
    assert not shows("test_stop.py::test_slow_reader[nothing]", ours, collected)
    assert shows("test_stop.py::test_slow_reader[waitress-serve-/big]", theirs, collected)
