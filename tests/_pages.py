"""Documents with parts that a program writes, between two marks."""

from __future__ import annotations

import re


def replaced(text: str, program: str, part: str) -> str:
    """A document with this part, which ends with a newline, between the marks of the program that writes it."""
    marked = rf"(^<!-- {re.escape(program)} writes this -->\n\n).*?(\n<!-- end -->$)"
    return re.sub(marked, lambda marks: marks[1] + part + marks[2], text, count=1, flags=re.DOTALL | re.MULTILINE)
