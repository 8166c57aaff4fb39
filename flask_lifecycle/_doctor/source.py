"""Reads files into values that know their line.

A file that is broken, huge, binary or hostile is an error of one sentence. YAML becomes :class:`Value`: mappings, lists
and scalars of the JSON types, so no tag creates an object. Nothing behind broken YAML is read.

A file of a megabyte is read within a few seconds and 200 MB, or rejected: its values are counted as if its aliases and
merges (``<<``) were expanded.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from typing import Any

from .._core.text import visible

# Bytes; enough for a thousand objects of the usual size.
LIMIT = 1_000_000
# Characters of a text that is taken apart, and of a file that is no YAML: some ways to do so take quadratic time.
LONGEST = 64_000
_SLOW_LIMIT = LIMIT // 4  # without libyaml: PyYAML's own parser is about four times slower
# In real files a value takes four characters or more, so they meet LIMIT first.
MOST_VALUES = 250_000
# Characters of a number. PyYAML takes quadratic time for some, such as 59:59:59.
_LONGEST_NUMBER = 100
# Characters of a text in a sentence.
_QUOTED = 100

_TEMPLATE = re.compile(r"\{\{|\{%")
_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


class UnreadableError(Exception):
    """A file cannot be read; line 0 stands for the whole file."""

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

        :raises UnreadableError: it is a template, or too long.
        """
        value = self.get(*keys)
        if value is None or isinstance(value.data, (dict, list)):
            return ""
        text = check_length(str(value.data), value.line)
        if _TEMPLATE.search(text):
            raise template(value.line)
        return text


def check_length(text: str, line: int = 0) -> str:
    """The text; :exc:`UnreadableError` if it is too long."""
    if len(text) > LONGEST:
        raise UnreadableError(
            line, f"This is longer than {LONGEST} characters; give only what deploys this application."
        )
    return text


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
    if len(raw) > LIMIT:
        text = f"The file is larger than {LIMIT // 1000} kB; give only what deploys this application."
        raise UnreadableError(0, text)
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
    return UnreadableError(line, "This is a template; render it ('helm template', Jinja) and give the result.")


def find_template(text: str, after: int = 0) -> int:
    """The line of the first template mark outside of comments and after a line; 0 without one."""
    lines = enumerate(text.split("\n")[after:], after + 1)
    return next((number for number, line in lines if _TEMPLATE.search(line) and line.lstrip()[:1] != "#"), 0)


def joined(text: str, comments: str) -> Iterator[tuple[int, str]]:
    """The lines that are neither empty nor comments, with their numbers; joined where one ends in a backslash."""
    begun, parts = 0, list[str]()
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line[0] in comments:
            continue
        begun = begun if parts else number
        parts.append(line.removesuffix("\\").rstrip())
        if not line.endswith("\\"):
            yield begun, " ".join(parts)
            parts = []
    if parts:
        yield begun, " ".join(parts)


# -- YAML ---------------------------------------------------------------------------------------------------------


def parse_yaml(text: str) -> Iterator[Value | UnreadableError]:
    """The documents of a YAML file that are not empty; an error in place of each that cannot be read.

    :raises UnreadableError: PyYAML is missing, or the file is too large for it.
    """
    try:
        import yaml
    except ImportError:
        raise UnreadableError(0, "PyYAML is needed to read YAML; install flask_lifecycle[doctor].") from None
    if not hasattr(yaml, "CSafeLoader") and len(text) > _SLOW_LIMIT:
        raise UnreadableError(0, f"Without libyaml, PyYAML is too slow for more than {_SLOW_LIMIT // 1000} kB.")
    if text.count(",") + text.count("\n") > MOST_VALUES:  # each value takes a kilobyte before we can count it
        raise UnreadableError(
            0, f"The file has more than {MOST_VALUES} values; give only what deploys this application."
        )
    end = 0  # the line at which the last document ended
    try:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        reader = _Reader(loader)
        while reader.count <= MOST_VALUES and loader.check_node():
            node = loader.get_node()
            end = node.end_mark.line
            try:
                value = reader.document(node)
                if value.data is not None:
                    yield value
            except UnreadableError as error:
                yield error
    except yaml.YAMLError as error:
        marked = find_template(text, end)
        yield template(marked) if marked else _broken(error)
    except RecursionError:
        yield UnreadableError(0, "This is nested too deeply.")


def _broken(error: Any) -> UnreadableError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "something is wrong"
    return UnreadableError(mark.line + 1 if mark is not None else 0, f"This is not YAML: {visible(what, _QUOTED)}.")


class _Reader:
    """Makes values of the nodes of PyYAML. The aliases of a node share its value."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.count = 0  # of the values in the file so far
        self._known: dict[int, tuple[Value, int] | None] = {}  # with its size, by the node's id; None while it is read

    def document(self, node: Any) -> Value:
        self._known.clear()
        return self._value(node)

    def _value(self, node: Any) -> Value:
        line, before = node.start_mark.line + 1, self.count
        if id(node) not in self._known:
            self._known[id(node)] = None
            self._count(1, line)
            data = {"scalar": self._scalar, "sequence": self._sequence, "mapping": self._mapping}[node.id](node)
            value = Value(line, data)
            self._known[id(node)] = value, self.count - before
            return value
        known = self._known[id(node)]
        if known is None:
            raise UnreadableError(line, "An alias is inside its own value; remove it.")
        self._count(known[1], line)
        return known[0]

    def _count(self, more: int, line: int) -> None:
        self.count += more
        if self.count > MOST_VALUES:
            text = f"With its aliases expanded, the file has more than {MOST_VALUES} values up to here"
            raise UnreadableError(line, f"{text}; give only what deploys this application.")

    def _sequence(self, node: Any) -> list[Value]:
        return [self._value(child) for child in node.value]

    def _mapping(self, node: Any) -> dict[str, Value]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key, child in node.value:
            line, text = key.start_mark.line + 1, key.value
            if key.id == "mapping":
                raise template(line)  # "{{ a }}" is a mapping with a mapping as its key
            if key.id != "scalar":
                raise UnreadableError(line, "The key that begins here is not a text.")
            value = self._value(child)
            if key.tag == _MERGE:
                self._merge(merged, value)
            elif text in own:
                text = f"The key '{visible(text, _QUOTED)}' appears twice, first on line {own[text].line}"
                raise UnreadableError(line, f"{text}; remove one of them.")
            else:
                # The line of the key: the value may begin on the next line.
                own[text] = Value(line, value.data)
        return merged | own

    def _merge(self, merged: dict[str, Value], value: Value) -> None:
        """Add the keys that ``<<`` brings; of several mappings the first counts."""
        for each in value.data if isinstance(value.data, list) else [value]:
            if not isinstance(each.data, dict):
                raise UnreadableError(value.line, "'<<' must be an alias of a mapping, or a list of them.")
            self._count(len(each.data), value.line)
            for name, child in each.data.items():
                merged.setdefault(name, child)

    def _scalar(self, node: Any) -> Any:
        if node.tag not in _SCALARS:
            return node.value
        try:
            if len(node.value) > _LONGEST_NUMBER:
                raise ValueError(node.value)
            return self._loader.yaml_constructors[node.tag](self._loader, node)
        except (ValueError, KeyError, IndexError, OverflowError):  # "!!int x", and text that only looks like a number
            text = f"'{visible(node.value, _QUOTED)}' is not a valid value of its type."
            raise UnreadableError(node.start_mark.line + 1, text) from None
