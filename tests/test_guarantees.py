"""What the documents say of servers is what live tests show, and what the code promises."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import types
from collections.abc import Mapping

import pytest

from flask_lifecycle._verify import runner
from tests.catalogue.servers import COMMANDS, results
from tests.guarantees import GUARANTEES, LEVELS, ROOT, SERVERS, TABLES, Server, level, updated

PARAMETERS = {"waitress", "werkzeug", *(each.parameter for each in SERVERS.values() if each.parameter)}
# Longest first: the name of one may be a part of another's.
NAMES = re.compile("|".join(sorted(PARAMETERS, key=len, reverse=True)))


@pytest.fixture(scope="module")
def collected() -> Mapping[str, list[str]]:
    """The live tests, by file and function, each with the parameters that it runs with."""
    collect = ("-m", "pytest", "--collect-only", "-q", "-n0", "-m", "", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, *collect, "tests/live", "tests/services"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, parameters = re.sub(r"^tests/\w+/", "", line).partition("[")
        found.setdefault(name, []).append(parameters.removesuffix("]"))
    return found


def shows(test: str, server: Server, collected: Mapping[str, list[str]]) -> bool:
    """Whether a test is collected, and runs on the server if it runs on several."""
    function, _, parameters = test.partition("[")
    variants = [each for each in collected.get(function, []) if not parameters or each == parameters.removesuffix("]")]
    named = [servers for each in variants if (servers := NAMES.findall(each))]
    return bool(variants) and (not named or any(server.parameter in servers for servers in named))


def test_every_yes_is_shown(collected: Mapping[str, list[str]]) -> None:
    """What is kept is kept in a scenario or in a live test, and every test that is named is one of this server."""
    found = results()
    for name, server in SERVERS.items():
        unshown = [
            each
            for each, cell in server.cells.items()
            if cell.words.startswith("yes") and not (cell.tests or (name in found and GUARANTEES[each][1]))
        ]
        tests = {test for cell in server.cells.values() for test in cell.tests}
        assert (name, unshown) == (name, [])
        assert (name, [test for test in sorted(tests) if not shows(test, server, collected)]) == (name, [])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_words_are_those_of_the_results(name: str) -> None:
    """No scenario of a "yes" is broken, and one of a "no" is; none that the guarantee includes is broken."""
    by_scenario = results()[name]
    catalogue = runner.choose((), ())
    assert list(by_scenario) == [each.name for each in catalogue]
    for guarantee, (_head, shown_by) in GUARANTEES.items():
        words, was = SERVERS[name].cells[guarantee].words, {by_scenario[each] for each in shown_by}
        if words.startswith(("yes", "with `LIFECYCLE_PROBE_PORT`")) and was:
            assert (guarantee, "holds" in was, "broken" in was) == (guarantee, True, False)
        elif words.startswith("no") and not words.startswith("not"):
            assert (guarantee, "broken" in was) == (guarantee, True)
    promised = [each.name for each in catalogue if each.level in LEVELS[SERVERS[name].guarantee]]
    assert [each for each in promised if by_scenario[each] == "broken"] == []


@pytest.mark.parametrize("name", SERVERS)
def test_the_promise_is_the_code_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The level that ``lifecycle.server`` and the line at the start tell is the one that the cells add up to."""
    server = SERVERS[name]
    assert {each for each, cell in server.cells.items() if cell.words} == set(GUARANTEES)
    assert level(server) == server.guarantee
    if server.kind:
        module, _, kind = server.kind.partition(":")
        monkeypatch.setitem(sys.modules, "uwsgi", types.ModuleType("uwsgi"))  # which only uWSGI itself has
        code = getattr(importlib.import_module(f"flask_lifecycle._servers.{module}"), kind)
        sys.modules.pop("flask_lifecycle._servers.uwsgi", None)
        assert code.guarantee == server.guarantee


@pytest.mark.parametrize("document", TABLES)
def test_the_tables_are_up_to_date(document: str) -> None:
    """The documents have the tables that ``python -m tests.guarantees`` writes."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert TABLES[document]() in text
    assert updated(document) == text
