"""Writes the table of ``docs/verify.md``: ``python -m tests.verify.page``. A test compares them."""

from __future__ import annotations

from pathlib import Path

from flask_lifecycle._verify import runner
from tests._pages import replaced

PAGE = Path(__file__).parent.parent.parent / "docs" / "verify.md"


def updated(text: str) -> str:
    """The page with the table of the catalogue."""
    rows = ["| scenario | guarantee | what must hold | why it matters |", "|---|---|---|---|"]
    rows += [f"| `{each.name}` | {each.level} | {each.promise} | {each.why} |" for each in runner.choose((), ())]
    return replaced(text, "python -m tests.verify.page", "\n".join(rows) + "\n")


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
