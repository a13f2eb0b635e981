"""The parameters of an op's description, and how torch sees them: flat.

A NamedTuple is one value of a description and several of a schema, ``bank_rows``, ``bank_ids``.
"""

import typing
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, NamedTuple

from torch import Tensor

_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    str: "str",
    bool: "bool",
    int: "SymInt",
    float: "float",
    tuple[int, ...]: "SymInt[]",
}
_ABSENT = {"str": "", "bool": False, "SymInt": 0, "float": 0.0, "SymInt[]": (), "Tensor?": None}


class Argument(NamedTuple):
    """One parameter of a description: a plain value, or a NamedTuple of parameters."""

    name: str
    kind: str  # schema type of a plain value, empty for a group
    group: Any = None  # the NamedTuple class
    optional: bool = False  # whether the group may be None
    parts: tuple[Any, ...] = ()  # the fields of the group, parameters too
    nested: bool = False  # whether one of them is a group
    flat: tuple[tuple[str, str], ...] = ()  # (flat name, schema type) of each value

    def tensors(self) -> tuple[int, ...] | None:
        """Indices of the fields that hold tensors; () for a tensor itself, None without any."""
        if self.group is None:
            return () if "Tensor" in self.kind else None
        return tuple(at for at, part in enumerate(self.parts) if part.tensors() is not None) or None

    def flatten(self, value: Any) -> Sequence[Any]:
        """The values of the flat names."""
        if self.group is None:
            return (value,)
        if not self.optional and not self.nested:
            return value  # type: ignore[no-any-return]
        found: list[Any] = [value is not None] if self.optional else []
        if value is None:
            return [*found, *(_ABSENT[kind] for _, kind in self.flat[1:])]
        for part, field in zip(self.parts, value, strict=True):
            found.extend(part.flatten(field))
        return found

    def collect(self, values: Iterator[Any]) -> Any:
        """The inverse of ``flatten``; takes what belongs to this parameter."""
        if self.group is None:
            value = next(values)
            return tuple(value) if self.kind == "SymInt[]" else value
        given = next(values) if self.optional else True
        fields = [part.collect(values) for part in self.parts]
        return self.group(*fields) if given else None


def argument_of(name: str, hint: Any, *, within_optional: bool = False) -> Argument:
    if hint in _SCHEMA_TYPES:
        kind = _SCHEMA_TYPES[hint]
        kind = "Tensor?" if kind == "Tensor" and within_optional else kind
        return Argument(name, kind, flat=((name, kind),))
    optional = isinstance(hint, UnionType)
    group = (
        next(part for part in typing.get_args(hint) if part is not type(None)) if optional else hint
    )
    fields = typing.get_type_hints(group)
    parts = tuple(
        argument_of(f"{name}_{field}", fields[field], within_optional=optional or within_optional)
        for field in group._fields
    )
    nested = any(part.group is not None for part in parts)
    flat = [(f"{name}_given", "bool")] if optional else []
    flat.extend(pair for part in parts for pair in part.flat)
    return Argument(name, "", group, optional, parts, nested, tuple(flat))
