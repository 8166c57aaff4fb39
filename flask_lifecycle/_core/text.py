"""Text of others on one line: what an application, a client or a file says, as it may be written anywhere.

A name, a reason, the text of an exception or a path may hold line ends, by which it would begin a line of its own in a
log, and sequences that a terminal takes for commands. :func:`visible` shows both as what they are. The logger does this
to everything that it is given (``state.py``), so no call has to remember it; what goes elsewhere calls it.
"""

from __future__ import annotations


def visible(text: str, most: int = 0) -> str:
    r"""A text with everything escaped that is not printed as a sign: a line end becomes ``\n``, Escape ``\x1b``.

    :param most: at most so many characters of the text, and dots for the others; 0 for all.
    """
    if most and len(text) > most:
        text = f"{text[: most - 3]}..."
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class Lines(str):
    """A text of several lines that the logger leaves as it is: each is visible, and all but the first are indented.

    So none of them can be taken for a record of its own.
    """

    __slots__ = ()

    @classmethod
    def of(cls, text: str) -> Lines:
        first, *others = text.rstrip("\n").split("\n")
        shown = (visible(line) for line in others)
        return cls("\n".join([visible(first), *(line if line[:1] in ("", " ") else f"    {line}" for line in shown)]))
