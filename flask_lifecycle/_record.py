"""``typing.NamedTuple`` for small records, without what it costs at import.

``typing``'s compiles every annotation that is a string to look whether it is a type, and with ``from __future__ import
annotations`` all of them are strings. For the records of this package that takes longer than all else of its import but
for the checks. Type checkers see ``typing``'s, whose rules hold: fields with their defaults, and methods.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:

    class _Making(type):
        """Makes a named tuple of a class statement."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            fields = body["__annotations__"]
            defaults = [body[field] for field in fields if field in body]
            made = collections.namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in fields and key not in ("__module__", "__qualname__"):
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_Making, "NamedTuple", (), {})
