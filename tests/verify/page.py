"""Writes the table of ``docs/verify.md``: ``python -m tests.verify.page``. A test compares them."""

from __future__ import annotations

import re
from pathlib import Path

from flask_lifecycle._verify.scenarios import CATALOGUE

PAGE = Path(__file__).parent.parent.parent / "docs" / "verify.md"


def replaced(text: str) -> str:
    """The page with the table of the catalogue."""
    rows = ["| scenario | promise | what holds | why it matters |", "|---|---|---|---|"]
    rows += [f"| `{each.name}` | {each.level} | {each.promise} | {each.why} |" for each in CATALOGUE.values()]
    pattern = r"(<!-- python -m tests.verify.page writes this -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda match: f"{match[1]}\n" + "\n".join(rows) + f"\n\n{match[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
