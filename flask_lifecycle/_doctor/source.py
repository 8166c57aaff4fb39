"""Reads files into values that know their line.

Files may be broken, huge, binary or hostile; each of these is an error of one sentence. A file of a megabyte is read
within a few seconds and 200 MB, or rejected: every value is counted before it takes memory, and so is every key that a
merge (``<<``) copies.

YAML is read from the events of PyYAML's parser (libyaml's if it is installed). They become :class:`Value`: mappings,
lists and scalars of the JSON types, so no tag creates an object. An alias is the same value again, not a copy. A value
that would be huge if it were expanded (a "billion laughs"), or contains itself, is rejected as well, because the tools
that read the file next may be less careful.

Each document is parsed separately, so a broken one hides no other.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .._core.text import visible

# Enough for a thousand objects of the usual size.
LIMIT = 1_000_000
# PyYAML's own parser is about four times slower than libyaml.
_SLOW_LIMIT = LIMIT // 4
# In real files a value takes four characters or more, so they meet LIMIT first.
MOST_VALUES = 250_000
# No real file is nested deeper; our reader is recursive.
DEEPEST = 100
# Characters of a number. PyYAML takes quadratic time for some, such as 59:59:59.
_LONGEST_NUMBER = 100
# Characters of a text in a sentence.
_QUOTED = 100

_TEMPLATE = re.compile(r"\{\{|\{%")
# At the start of a line they begin or end a document.
_BEGIN, _END = re.compile(r"---(?=\s|$)"), re.compile(r"\.\.\.(?=\s|$)")
_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


class UnreadableError(Exception):
    """A file cannot be read.

    :param line: 0 for the whole file.
    """

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A value and the line at which it begins: a mapping or list of others, or a scalar."""

    line: int
    data: Any

    def get(self, *keys: str) -> Value | None:
        """The value at a path of keys; ``None`` if it is missing or null."""
        value: Value | None = self
        for key in keys:
            value = value.data.get(key) if value is not None and isinstance(value.data, dict) else None
        return None if value is None or value.data is None else value

    def entries(self, *keys: str) -> list[Value]:
        """The elements of the list at a path of keys; empty without a list."""
        value = self.get(*keys)
        return list(value.data) if value is not None and isinstance(value.data, list) else []

    def fields(self, *keys: str) -> dict[str, Value]:
        """The mapping at a path of keys; empty without one."""
        value = self.get(*keys)
        return dict(value.data) if value is not None and isinstance(value.data, dict) else {}

    def text(self, *keys: str) -> str:
        """The text at a path of keys; empty without a scalar.

        :raises UnreadableError: it is a template.
        """
        value = self.get(*keys)
        if value is None or isinstance(value.data, (dict, list)):
            return ""
        text = str(value.data)
        if _TEMPLATE.search(text):
            raise template(value.line)
        return text


# -- bytes --------------------------------------------------------------------------------------------------------


def read(path: str) -> str:
    """The text of a file, or of the standard input for ``-``.

    :raises UnreadableError: it is missing, not text, empty or too large.
    """
    try:
        if path == "-":
            raw = sys.stdin.buffer.read(LIMIT + 1)
        else:
            with open(path, "rb") as file:
                raw = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:  # the name may hold a NUL byte
        reason = getattr(error, "strerror", None) or str(error)
        raise UnreadableError(0, f"The file cannot be read ({reason}).") from None
    return _decoded(raw)


def check_size(text: str, limit: int, what: str) -> None:
    """Reject a file with more characters than this.

    :raises UnreadableError: it is too large.
    """
    if len(text) > limit:
        raise UnreadableError(0, f"{what} is larger than {limit // 1000} kB; give only what deploys this application.")


def _decoded(raw: bytes) -> str:
    if len(raw) > LIMIT:
        raise UnreadableError(
            0, f"The file is larger than {LIMIT // 1000} kB; give only what deploys this application."
        )
    try:
        text = raw.decode("utf-8-sig")
        wrong = raw.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise UnreadableError(raw[:wrong].count(b"\n") + 1, "This is not UTF-8 text.")
    if not text.strip():
        raise UnreadableError(0, "The file is empty.")
    return text


def template(line: int) -> UnreadableError:
    """The error for a template."""
    return UnreadableError(
        line,
        "This is a template; render it ('helm template', Jinja) and give the result.",
    )


def find_template(text: str) -> int:
    """The line of the first template mark outside of comments; 0 without one."""
    for number, line in enumerate(text.split("\n"), 1):
        found = _TEMPLATE.search(line)
        if found and not line.lstrip().startswith("#"):
            return number
    return 0


# -- YAML ---------------------------------------------------------------------------------------------------------


def parse_yaml(text: str) -> Iterator[Value | UnreadableError]:
    """The documents of a YAML file; an error in place of each that cannot be read.

    :raises UnreadableError: PyYAML is missing, or the file is too large.
    """
    try:
        import yaml
    except ImportError:
        raise UnreadableError(0, "PyYAML is needed to read YAML; install flask_lifecycle[doctor].") from None
    if not hasattr(yaml, "CSafeLoader"):
        check_size(text, _SLOW_LIMIT, "The file, which PyYAML reads without libyaml,")
    reader = _Reader()
    for before, document in _split(text):
        try:
            yield from reader.documents(before, document)
        except UnreadableError as error:
            yield error
        if reader.exhausted:
            return


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Each document, with the lines before it; comments, directives and empty documents belong to the next."""
    begun, lines, filled = 0, list[str](), False
    for number, line in enumerate(text.split("\n")):
        begins = _BEGIN.match(line)
        if filled and begins:
            yield begun, "\n".join(lines)
            begun, lines, filled = number, [], False
        lines.append(line)
        said = line[3:].strip() if begins else line.strip()
        if filled and _END.match(line):
            yield begun, "\n".join(lines)
            begun, lines, filled = number + 1, [], False
        elif said and said[0] not in "#%":
            filled = True
    if filled:
        yield begun, "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class _Node:
    """A value with what its parent needs to know.

    :param size: how many values it has when it is expanded.
    :param text: the text of a scalar in the file.
    :param merges: whether it is the key ``<<``.
    """

    value: Value
    size: int
    text: str | None = None
    merges: bool = False


class _Reader:
    """Makes values of the documents of one file, up to the limit."""

    def __init__(self) -> None:
        import yaml

        self._yaml = yaml
        self._loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._scalars = yaml.constructor.SafeConstructor()
        self._resolve: Callable[..., str] = yaml.resolver.Resolver().resolve
        self._read = 0

    @property
    def exhausted(self) -> bool:
        """Whether the file has more values than the limit."""
        return self._read > MOST_VALUES

    def documents(self, before: int, text: str) -> Iterator[Value]:
        """The values of a text that is one document, or several of which all but one are empty.

        :param before: the number of lines of the file before it.
        :raises UnreadableError: a part of it cannot be read.
        """
        self._before, self._text = before, text
        unprintable = self._yaml.reader.Reader.NON_PRINTABLE.search(text)
        if unprintable:
            line = text[: unprintable.start()].count("\n") + before + 1
            raise UnreadableError(line, "This is not YAML: there is a control character.")
        self._events: Iterator[Any] = self._yaml.parse(text, self._loader)
        try:
            for event in self._events:
                if isinstance(event, self._yaml.NodeEvent):
                    self._anchors: dict[str, _Node | None] = {}  # None while it is read
                    value = self._node(event, 1).value
                    if value.data is not None:
                        yield value
        except self._yaml.YAMLError as error:
            raise self._template() or self._broken(error) from None

    def _template(self) -> UnreadableError | None:
        marked = find_template(self._text)
        return template(self._before + marked) if marked else None

    def _broken(self, error: Any) -> UnreadableError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or "something is wrong"
        return UnreadableError(
            self._before + mark.line + 1 if mark is not None else 0, f"This is not YAML: {visible(what, _QUOTED)}."
        )

    def _count(self, line: int, values: int) -> None:
        self._read += values
        if self.exhausted:
            raise UnreadableError(
                line, f"More than {MOST_VALUES} values are in the file up to here; give only what deploys this"
                " application.",
            )  # fmt: skip

    def _grown(self, size: int, child: _Node, line: int) -> int:
        if size + child.size > MOST_VALUES:
            raise UnreadableError(
                line, f"With its aliases expanded the document has more than {MOST_VALUES} values up to here."
            )
        return size + child.size

    def _node(self, event: Any, depth: int) -> _Node:
        line = self._before + event.start_mark.line + 1
        self._count(line, 1)
        if depth > DEEPEST:
            raise UnreadableError(line, f"This is nested more than {DEEPEST} levels deep.")
        if isinstance(event, self._yaml.AliasEvent):
            return self._aliased(event.anchor, line)
        if isinstance(event, self._yaml.ScalarEvent):
            node = self._scalar(event, line)
        else:
            if event.anchor is not None:
                self._anchors[event.anchor] = None
            sequence = isinstance(event, self._yaml.SequenceStartEvent)
            node = self._sequence(line, depth) if sequence else self._mapping(line, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _aliased(self, anchor: Any, line: int) -> _Node:
        if anchor not in self._anchors:
            raise UnreadableError(line, f"This is not YAML: found undefined alias '{visible(anchor, _QUOTED)}'.")
        node = self._anchors[anchor]
        if node is None:
            raise UnreadableError(line, f"'*{visible(anchor, _QUOTED)}' is inside its own value; remove it.")
        return node

    def _sequence(self, line: int, depth: int) -> _Node:
        values, size = [], 1
        while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
            child = self._node(event, depth + 1)
            size = self._grown(size, child, child.value.line)
            values.append(child.value)
        return _Node(Value(line, values), size)

    def _mapping(self, line: int, depth: int) -> _Node:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        size = 1
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            at = self._before + event.start_mark.line + 1
            if key.text is None:
                raise self._template() or UnreadableError(at, "The key that begins here is not a text.")
            child = self._node(next(self._events), depth + 1)
            size = self._grown(size, child, at)
            if key.merges:
                self._merge(merged, child.value)
            elif key.text in own:
                raise UnreadableError(
                    at, f"The key '{visible(key.text, _QUOTED)}' appears twice, first on line {own[key.text].line};"
                        " remove one of them.",
                )  # fmt: skip
            else:
                # The line of the key: the value may begin on the next line.
                own[key.text] = Value(at, child.value.data)
        return _Node(Value(line, merged | own), size)

    def _merge(self, merged: dict[str, Value], value: Value) -> None:
        """Add the keys that ``<<`` brings; of several mappings the first counts."""
        for each in value.data if isinstance(value.data, list) else [value]:
            if not isinstance(each.data, dict):
                raise UnreadableError(value.line, "'<<' must be an alias of a mapping, or a list of them.")
            self._count(value.line, len(each.data))
            for name, child in each.data.items():
                merged.setdefault(name, child)

    def _scalar(self, event: Any, line: int) -> _Node:
        text, tag = event.value, event.tag
        long = len(text) > _LONGEST_NUMBER
        if tag is None or tag == "!":
            tag = "" if long else self._resolve(self._yaml.ScalarNode, text, event.implicit)
        if tag not in _SCALARS:
            return _Node(Value(line, text), 1, text, tag == _MERGE)
        try:
            if long:
                raise ValueError(text)
            node = self._yaml.ScalarNode(tag, text)
            return _Node(Value(line, self._scalars.yaml_constructors[tag](self._scalars, node)), 1, text)
        except (ValueError, KeyError, IndexError, OverflowError):  # "!!int x", and text that only looks like a number
            raise UnreadableError(line, f"'{visible(text, _QUOTED)}' is not a valid value of its type.") from None
