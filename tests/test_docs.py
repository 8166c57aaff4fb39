"""The documents have a place for everything, name what there is, and say what the code does."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._config import KEYS, Settings, attribute_of
from tests._fakes import ROOT

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (DOCS / "api.md").read_text(encoding="utf-8")
EXAMPLES = "\n".join(re.findall(r"^```pycon\n(.*?)^```$", API, re.DOTALL | re.MULTILINE))
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for part in ("", "docs/", "benchmarks/") for path in ROOT.glob(f"{part}*.md")
)
MODULES = ["", ".checks", ".metrics", ".gunicorn", ".testing"]
# The README's commands, each in one line that can be copied as it is.
SERVE = (
    "python3 -m venv .venv && .venv/bin/pip install '.[waitress]'"
    " && .venv/bin/flask --app examples/quickstart.py lifecycle run -p 8000"
)
TEST = "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_api_reference(module: str) -> None:
    """``docs/api.md`` has a directive for each name of ``__all__``; its examples use it, and all of ``Lifecycle``."""
    names = set(importlib.import_module(f"flask_lifecycle{module}").__all__)
    assert names <= set(re.findall(r"^\.\. auto\w+:: (\w+)$", API, re.MULTILINE))
    assert names <= set(re.findall(r"\w+", EXAMPLES))
    assert {name for name in dir(Lifecycle) if name[0] != "_"} <= set(re.findall(r"\blifecycle\.(\w+)", EXAMPLES))


def test_the_examples_of_the_api_reference(tmp_path: Path) -> None:
    """They are one session, and print what the page says."""
    page = tmp_path / "api.txt"
    page.write_text(EXAMPLES, encoding="utf-8")
    command = [sys.executable, "-m", "doctest", "-o", "ELLIPSIS", str(page)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_settings_is_the_code_s() -> None:
    """``docs/settings.md`` explains every setting, in its order, with its default, which is that of ``Settings()``."""
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    table = page[page.index("| setting |") :].split("\n\n")[0].splitlines()[2:]
    rows = [re.split(r"(?<!\\)\|", line.strip("|").replace("`", "")) for line in table]
    assert [row[0].strip() for row in rows] == list(KEYS)
    assert [row[0] for row in rows if len(row) != 3 or len(row[2].strip()) < 15] == []
    in_words = dict[str, str]()
    for name, default, _meaning in rows:
        attribute = attribute_of(name.strip())
        try:
            assert getattr(Settings(), attribute) == ast.literal_eval(default.strip()), name
        except (SyntaxError, ValueError):
            in_words[attribute] = default.strip()
    cluster = "if KUBERNETES_SERVICE_HOST is set, else"
    assert in_words == {  # test_config.py has the values
        **dict.fromkeys(("shutdown_delay", "delay_min"), f"5.0 {cluster} 0.0"),
        "delay_max": "the smaller of 15.0 and three fifths of the grace period",
        "hook_reserve": "the smaller of 5.0 and a fifth of the grace period",
        "signals": "SIGTERM on init_app; SIGTERM and SIGINT under run and under flask run",
        "probe_host": f'"0.0.0.0" {cluster} the host of the main listener, or 127.0.0.1 if unknown',
        "paths": "/healthcheck, /livez, /readyz and /startupz",
        "status_codes": "pass and warn 200, fail 503",
        "report_file": "/dev/termination-log in Kubernetes, else None",
    }


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name == "README.md" or name.startswith("docs/")])
def test_no_setting_is_mentioned_that_does_not_exist(document: str) -> None:
    """Every ``LIFECYCLE_*`` name in the documents is a setting."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![A-Z_])(?:FLASK_)?(LIFECYCLE_[A-Z_]+[A-Z])", text)) <= set(KEYS)


def test_every_page_is_in_the_index() -> None:
    """``docs/index.md`` links to each page in its text, and has it in a table of contents."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    contents = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL))
    assert set(re.findall(r"\]\((\S+)\.md\)", index)) == pages
    assert set(re.findall(r"^([a-z-]+)$", contents, re.MULTILINE)) == pages


def prose(path: Path) -> str:
    """The text of a document without its blocks of code, in which a ``#`` is no heading."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> list[str]:
    """What a document's headings may be linked by, as GitHub makes it of their text."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    """The file that a relative link names is there, and has the heading that it names."""
    path = ROOT / document
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"\w+:", link):
            continue  # another site's
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def test_the_messages_that_are_explained_are_the_program_s() -> None:
    """``docs/logs.md`` explains no message whose constant parts are not in the code."""
    page = (DOCS / "logs.md").read_text(encoding="utf-8")
    section = page.split("## Messages and what to do", 1)[1].split("\n## ", 1)[0]
    first_cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    parts = [
        part.strip(" ,'") for cell in first_cells for each in re.findall("`(.*?)`", cell) for part in each.split("...")
    ]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "flask_lifecycle").rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    code = "\n".join(text for text in texts if isinstance(text, str))
    assert [part for part in parts if part not in code] == []


def test_the_comparison_names_scenarios_of_verify() -> None:
    """Each scenario that ``docs/peers.md`` names is in ``docs/verify.md``, which is compared with the code."""
    catalogue = re.findall(r"^\| `(\S+/\S+)` \|", (DOCS / "verify.md").read_text(encoding="utf-8"), re.MULTILINE)
    families = "|".join({name.partition("/")[0] for name in catalogue})
    named = re.findall(rf"`((?:{families})/[\w*.-]+)`", (DOCS / "peers.md").read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if name not in catalogue and not name.endswith("/*")] == []


def test_the_two_commands_of_the_readme() -> None:
    """They are within the first screen, and ``.ci/run`` takes that of the tests from there."""
    blocks = re.findall(r"^```sh\n(.*?)\n```$", README, re.DOTALL | re.MULTILINE)[:2]
    assert {SERVE, TEST} <= set(blocks)
    assert max(README[: README.index(command)].count("\n") for command in (SERVE, TEST)) < 40
    assert "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert next(line for line in README.splitlines() if "python -m pytest" in line) == TEST


def test_the_readme_is_short_and_its_examples_are_there() -> None:
    """It has at most 1,200 words, code and tables included; its Python is whole, and the files that it names exist."""
    assert sum(bool(re.search(r"\w", word)) for word in README.split()) <= 1200
    for block in re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        compile(block, "README.md", "exec")
    named = set(re.findall(r"(?:examples|benchmarks)/\w+\.\w+", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
