"""Files as values that know their line.

Files may be broken, huge, binary or hostile, and each of that is one sentence. YAML is composed by PyYAML's own parser
and not constructed by it: its nodes become :class:`Value`, of which only mappings, lists and scalars of the JSON kind
exist, so that no tag makes an object. An alias is the same value once more, and never a copy; what would be vast if it
were written out (a "billion laughs") or contains itself is refused all the same, as the tools that read the file next
may not be so careful.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from .._record import NamedTuple
from .._remote import visible

if TYPE_CHECKING:
    import yaml

# Some hundred objects of the usual size, which take a few seconds to read.
LIMIT = 512 * 1024
# A rendered chart has some thousand values.
MOST_VALUES = 100_000
# Nothing that is deployed is nested deeper; PyYAML's parser and ours are recursive.
DEEPEST = 100

_TEMPLATE = re.compile(r"\{\{|\{%")
_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


class UnreadableError(Exception):
    """A file cannot be read.

    :param line: where; 0 for the file as a whole.
    """

    def __init__(self, line: int, sentence: str) -> None:
        super().__init__(sentence)
        self.line = line


class Value(NamedTuple):
    """A value and the line at which it begins: a mapping or list of others, or a scalar."""

    line: int
    data: Any

    def get(self, *keys: str) -> Value | None:
        """What is at a path of keys; ``None`` if it is not there, or null."""
        value: Value | None = self
        for key in keys:
            value = value.data.get(key) if value is not None and isinstance(value.data, dict) else None
        return None if value is None or value.data is None else value

    def entries(self, *keys: str) -> list[Value]:
        """The elements of the list at a path of keys; none if there is no list."""
        value = self.get(*keys)
        return list(value.data) if value is not None and isinstance(value.data, list) else []

    def fields(self, *keys: str) -> dict[str, Value]:
        """The mapping at a path of keys; an empty one if there is none."""
        value = self.get(*keys)
        return dict(value.data) if value is not None and isinstance(value.data, dict) else {}

    def text(self, *keys: str) -> str:
        """The text at a path of keys; empty if there is no scalar.

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

    :raises UnreadableError: it is not there, is no text, is empty or is too large.
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


def _decoded(raw: bytes) -> str:
    if len(raw) > LIMIT:
        raise UnreadableError(0, f"The file is larger than {LIMIT // 1024} KiB; give the parts that deploy this alone.")
    try:
        text = raw.decode("utf-8-sig")
        wrong = raw.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        raise UnreadableError(raw[:wrong].count(b"\n") + 1, "This is no text in UTF-8, but binary.")
    if not text.strip():
        raise UnreadableError(0, "The file is empty.")
    return text


def template(line: int) -> UnreadableError:
    """What is said of a file that something has to be filled into first."""
    return UnreadableError(
        line,
        "This is a template that is not filled in yet; render it ('helm template', Jinja) and give what comes out.",
    )


def find_template(text: str) -> int:
    """The line of the first mark of a template that is in no comment; 0 if there is none."""
    for number, line in enumerate(text.split("\n"), 1):
        found = _TEMPLATE.search(line)
        if found and not line.lstrip().startswith("#"):
            return number
    return 0


# -- YAML ---------------------------------------------------------------------------------------------------------


def parse_yaml(text: str) -> list[Value]:
    """The documents of a YAML file.

    :raises UnreadableError: it is none, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise UnreadableError(
            0, "PyYAML is not installed, which reading YAML needs; install flask_lifecycle[doctor]."
        ) from None
    try:
        nodes = _compose(text)
    except yaml.YAMLError as error:
        marked = find_template(text)
        raise template(marked) if marked else _broken(text, error) from None
    tree = _Tree(text)
    return [value for node in nodes if node is not None and (value := tree.value(node)).data is not None]


def _compose(text: str) -> list[Any]:
    """The nodes of all documents, none of them nested so deeply that a recursive parser breaks."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            self.depth += 1
            if self.depth > DEEPEST:
                line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]  # its stubs have none
                raise UnreadableError(line, f"This is nested more than {DEEPEST} levels deep, as nothing deployed is.")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return list(yaml.compose_all(text, Loader))


def _broken(text: str, error: yaml.YAMLError) -> UnreadableError:
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        what = getattr(error, "problem", None) or "something is wrong"
        return UnreadableError(mark.line + 1, f"This is no YAML: {visible(what)}.")
    line = text[: getattr(error, "position", 0)].count("\n") + 1
    return UnreadableError(line, "This is no YAML: there is a control character.")


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


class _Tree:
    """Makes values of the nodes of one file; what is aliased is made once."""

    def __init__(self, text: str) -> None:
        from yaml.constructor import SafeConstructor

        self._text = text
        self._scalars = SafeConstructor()
        self._made: dict[int, tuple[Value, int]] = {}  # and how many values it is when written out
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> Value:
        return self._sized(node)[0]

    def _sized(self, node: yaml.Node) -> tuple[Value, int]:
        if id(node) in self._made:
            return self._made[id(node)]
        line = _line(node)
        if id(node) in self._open:
            raise UnreadableError(line, "The value that begins here contains itself; remove the alias within it.")
        self._open.add(id(node))
        value, size = self._make(node, line)
        self._open.discard(id(node))
        if size > MOST_VALUES:
            raise UnreadableError(
                line, f"What begins here is more than {MOST_VALUES} values when its aliases are written out."
            )
        self._made[id(node)] = value, size
        return value, size

    def _make(self, node: Any, line: int) -> tuple[Value, int]:
        if node.id == "scalar":
            return Value(line, self._scalar(node, line)), 1
        if node.id == "sequence":
            pairs = [self._sized(child) for child in node.value]
            return Value(line, [value for value, _ in pairs]), 1 + sum(size for _, size in pairs)
        return self._mapping(node, line)

    def _mapping(self, node: Any, line: int) -> tuple[Value, int]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        total = 1
        for key, child in node.value:
            name, at = self._key(key), _line(key)
            value, size = self._sized(child)
            total += size
            if key.tag == _MERGE:
                self._merge(merged, value)
                continue
            if name in own:
                raise UnreadableError(
                    at, f"The key '{visible(name)}' is there twice, first on line {own[name].line}; remove one of them."
                )
            # The line of the key: a value may begin on the next one.
            own[name] = Value(at, value.data)
        return Value(line, merged | own), total

    def _key(self, key: Any) -> str:
        if key.id == "scalar":
            return str(key.value)
        marked = find_template(self._text)
        raise template(marked) if marked else UnreadableError(_line(key), "The key that begins here is not a text.")

    def _merge(self, merged: dict[str, Value], value: Value) -> None:
        """What ``<<`` brings; of several mappings the first one counts."""
        for each in value.data if isinstance(value.data, list) else [value]:
            if not isinstance(each.data, dict):
                raise UnreadableError(value.line, "'<<' has to be an alias of a mapping, or a list of such.")
            for name, child in each.data.items():
                merged.setdefault(name, child)

    def _scalar(self, node: Any, line: int) -> Any:
        if node.tag not in _SCALARS:
            return str(node.value)
        try:
            return self._scalars.construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError):  # "!!int x", and what only looks like a number
            raise UnreadableError(line, f"'{visible(str(node.value))}' is no value of its kind.") from None
