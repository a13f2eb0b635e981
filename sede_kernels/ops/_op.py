"""One description of an op gives its schema, its fake, its dispatch and its gradients.

    @op(decides=("query", "bank_rows"), differentiable=("lse",))
    def bank_lse(query: Tensor, bank: Bank, ..., want: Want, backend: str) -> Sums:
        ...  # the shapes of the results, from those of the arguments

The body is the fake. The real run is the function of that name in the backend that serves the
call. A NamedTuple parameter is one value on both sides and is flattened for torch: ``bank`` becomes
``bank_rows``, ``bank_row_scale``, ``bank_ids``. Gradients are given by name:

    @bank_lse.gradients(saves=("acc", "moment", "grad_scales"))
    def _(saved: Saved, grad: Sums) -> dict[str, Tensor | None]: ...
"""

import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.transforms import once

P = ParamSpec("P")
R = TypeVar("R")

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


@dataclass(frozen=True, slots=True)
class Saved:
    """What a backward has at hand."""

    tensors: dict[str, Tensor | None]  # the flat names of ``saves``
    arguments: dict[str, Any]  # the other arguments, as they came, tensors left out
    needs: frozenset[str]  # flat names of the tensors that need a gradient

    def __getitem__(self, name: str) -> Any:
        """A saved tensor, or an argument."""
        return self.tensors[name] if name in self.tensors else self.arguments[name]


Gradients = Callable[[Saved, Any], dict[str, Tensor | None]]


class _Parameter(NamedTuple):
    """One parameter of a description: a plain value, or a NamedTuple of them."""

    name: str
    group: Any  # the NamedTuple class, or None
    optional: bool  # whether the group may be None
    flat: tuple[tuple[str, str], ...]  # (flat name, schema type)

    def flatten(self, value: Any) -> Iterator[Any]:
        if self.group is None:
            yield value
        elif not self.optional:
            yield from value
        else:
            yield value is not None
            yield from (_ABSENT[kind] for _, kind in self.flat[1:]) if value is None else value

    def collect(self, values: Sequence[Any]) -> Any:
        values = [
            tuple(value) if kind == "SymInt[]" else value
            for (_, kind), value in zip(self.flat, values, strict=True)
        ]
        if self.group is None:
            return values[0]
        if self.optional:
            return self.group(*values[1:]) if values[0] else None
        return self.group(*values)


def _fields(group: Any) -> dict[str, Any]:
    return {name: typing.get_type_hints(group)[name] for name in group._fields}


def _parameter(name: str, hint: Any) -> _Parameter:
    if hint in _SCHEMA_TYPES:
        return _Parameter(name, None, False, ((name, _SCHEMA_TYPES[hint]),))
    optional = isinstance(hint, types.UnionType)
    group = (
        next(part for part in typing.get_args(hint) if part is not type(None)) if optional else hint
    )
    flat = [(f"{name}_{field}", _SCHEMA_TYPES[of]) for field, of in _fields(group).items()]
    given = [(f"{name}_given", "bool")] if optional else []
    return _Parameter(name, group, optional, (*given, *flat))


class Op(Generic[P, R]):
    """An op of ``torch.ops.sede``; called with the arguments of its description."""

    def __init__(
        self,
        shapes: Callable[P, R],
        decides: tuple[str, ...],
        differentiable: tuple[str, ...],
        mutates: tuple[str, ...],
    ) -> None:
        hints = typing.get_type_hints(shapes)
        returned = hints.pop("return")
        self.name = shapes.__name__
        self.__doc__ = shapes.__doc__
        self._shapes = shapes
        self._decides = decides
        self._differentiable = differentiable
        self._parameters = [_parameter(name, hint) for name, hint in hints.items()]
        self._flat = [pair for parameter in self._parameters for pair in parameter.flat]
        self._names = [name for name, _ in self._flat]
        self._returned = returned if hasattr(returned, "_fields") else None
        self._outputs = tuple(returned._fields) if self._returned else ("out",)
        self._op = torch.library.custom_op(
            f"sede::{self.name}",
            self._run_flat,
            mutates_args=mutates,
            schema=self._schema(returned, mutates),
        )
        self._op.register_fake(self._fake_flat)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the op through the dispatcher."""
        values = self._bind(args, kwargs)
        out = self._op(*self._flatten(values))
        return self._wrap(out)

    def gradients(
        self, saves: tuple[str, ...], depends: tuple[str, ...] | None = None
    ) -> Callable[[Gradients], Gradients]:
        """Decorator of the backward. Its results have no derivative: to ask for one raises.

        Args:
            saves: flat names of the arguments and fields of the result that it needs. Besides these
                only inputs that need a gradient are kept, so a bank may be written to between
                forward and backward.
            depends: flat names of the inputs on which the gradients depend; None for all that need
                one. A gradient is constant in the others.
        """

        def register(backward: Gradients) -> Gradients:
            def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
                outputs = dict(zip(self._outputs, self._tuple(output), strict=True))
                constants = [t for name, t in outputs.items() if name not in self._differentiable]
                ctx.mark_non_differentiable(*constants)
                ctx.set_materialize_grads(False)
                flat = dict(zip(self._names, inputs, strict=True))
                tensors = {name for name, kind in self._flat if kind.startswith("Tensor")}
                inputs_of = [
                    flat[name]
                    for name in (self._names if depends is None else depends)
                    if name in tensors and flat[name] is not None and flat[name].requires_grad
                ]
                kept = (outputs.get(name, flat.get(name)) for name in saves)
                ctx.save_for_backward(*kept, *inputs_of)
                ctx.arguments = {n: v for n, v in flat.items() if n not in tensors}

            def run(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
                needs = zip(self._names, ctx.needs_input_grad, strict=True)
                wanted = frozenset(name for name, needed in needs if needed)
                found: dict[str, Tensor | None] = {}
                if any(grad is not None for grad in grads):
                    kept = ctx.saved_tensors
                    tensors = dict(zip(saves, kept, strict=False))
                    saved = Saved(tensors, ctx.arguments, wanted)
                    found = backward(saved, self._returned(*grads) if self._returned else grads[0])
                    ties = (*grads, *kept[len(saves) :])
                    found = {name: once(self.name, found[name], *ties) for name in found}
                return tuple(found.get(name) for name in self._names)

            self._op.register_autograd(run, setup_context=setup)
            return backward

        return register

    def _schema(self, returned: Any, mutates: tuple[str, ...]) -> str:
        letters = {name: f"(a{index}!)" for index, name in enumerate(mutates)}
        parts = []
        for name, kind in self._flat:
            alias = letters.get(name, "")
            parts.append(f"{kind.replace('Tensor', 'Tensor' + alias, 1)} {name}")
        many = len(self._outputs)
        results = "()" if returned is type(None) else ", ".join(["Tensor"] * many)
        if many > 1:
            results = f"({results})"
        return f"({', '.join(parts)}) -> {results}"

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        rest = self._parameters[len(args) :]
        return [*args, *(kwargs[parameter.name] for parameter in rest)]

    def _flatten(self, values: Sequence[Any]) -> list[Any]:
        pairs = zip(self._parameters, values, strict=True)
        return [flat for parameter, value in pairs for flat in parameter.flatten(value)]

    def _collect(self, flat: Sequence[Any]) -> list[Any]:
        values, start = [], 0
        for parameter in self._parameters:
            end = start + len(parameter.flat)
            values.append(parameter.collect(flat[start:end]))
            start = end
        return values

    def _run_flat(self, *flat: Any) -> Any:
        deciding = [flat[self._names.index(name)] for name in self._decides]
        *values, backend = self._collect(flat)
        run = resolve(self.name, backend, *deciding)
        return self._unwrap(run(*values))

    def _fake_flat(self, *flat: Any) -> Any:
        return self._unwrap(self._shapes(*self._collect(flat)))  # type: ignore[call-arg]

    def _unwrap(self, out: Any) -> Any:
        return tuple(out) if self._returned else out

    def _tuple(self, out: Any) -> tuple[Tensor, ...]:
        return tuple(out) if self._returned else (out,)

    def _wrap(self, out: Any) -> R:
        result: R = self._returned(*out) if self._returned else out
        return result


def op(
    *,
    decides: tuple[str, ...],
    differentiable: tuple[str, ...] = (),
    mutates: tuple[str, ...] = (),
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorator: an op from the function that gives the shapes of its results.

    Args:
        decides: flat names of the tensors that a backend looks at (device, dtype); the first one's
            device picks the order of the backends.
        differentiable: fields of the result that carry a gradient.
        mutates: flat names of the tensors that are written in place.
    """

    def describe(shapes: Callable[P, R]) -> Op[P, R]:
        return Op(shapes, decides, differentiable, mutates)

    return describe
