"""Makes text from outside safe for logs and terminals.

Its line ends would begin a forged line in a log, and a terminal would execute its control sequences. The logger escapes
all its arguments (``log.py``); text for other places must call :func:`visible`.
"""

from __future__ import annotations


def visible(text: str, most: int = 0) -> str:
    r"""A text with all unprintable characters escaped: a line end becomes ``\n``, Escape ``\x1b``.

    :param most: the maximum number of characters, dots included; 0 for all.
    """
    if most and len(text) > most:
        text = f"{text[: most - 3]}..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class Lines(str):
    """A text of several lines, each escaped, which the logger does not escape again.

    All lines but the first are indented, so none can be mistaken for a log record.
    """

    __slots__ = ()

    @classmethod
    def of(cls, text: str) -> Lines:
        first, *others = text.rstrip("\n").split("\n")
        shown = (visible(line) for line in others)
        return cls("\n".join([visible(first), *(line if line[:1] in ("", " ") else f"    {line}" for line in shown)]))
