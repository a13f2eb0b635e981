"""One description of an op gives its schema, its fake, its dispatch and its gradients.

    @op(decides=("query", "bank_rows"), differentiable=("lse",))
    def bank_lse(query: Tensor, bank: Bank, ..., want: Want, backend: str) -> Sums:
        ...  # the shapes of the results, from those of the arguments

The body is the fake. The real run is the function of that name in the backend that serves the
call; it takes the same parameters but ``backend``, which is the last one. A NamedTuple parameter is
one value on both sides and is flattened for torch: ``bank`` becomes ``bank_rows``,
``bank_row_scale``, ``bank_ids``. Gradients are given by name:

    @bank_lse.gradients(saves=("acc", "moment", "grad_scales"))
    def _(saved: Saved, grad: Sums) -> dict[str, Tensor | None]: ...

An eager call goes to the backend without torch's dispatcher, whose work costs more than a small
kernel: with gradients through a ``torch.autograd.Function`` of the same forward and backward, or
through what the op has instead (``Op.directly``). Under a compiler, a transform, a mode or a
profiler it is the op that runs.
"""

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops._arguments import Argument, argument_of
from sede_kernels.ops.transforms import goes_directly, no_view, once

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Saved:
    """What a backward has at hand: ``saved["bank_rows"]`` is what went by that flat name."""

    parameters: Sequence[Argument]
    values: dict[str, Any]  # the tensors of ``saves``, and all arguments that are no tensors
    needs: frozenset[str]  # flat names of the tensors that need a gradient

    def __getitem__(self, name: str) -> Any:
        """The value of a flat name."""
        return self.values[name]

    def take(self, name: str) -> Any:
        """The value of a NamedTuple parameter, all of whose tensors are in ``saves``."""
        parameter = next(part for part in self.parameters if part.name == name)
        return parameter.collect(iter([self.values[flat] for flat, _ in parameter.flat]))


Gradients = Callable[[Saved, Any], dict[str, Tensor | None]]


def _at(values: Sequence[Any], place: tuple[int, int]) -> Any:
    at, field = place
    return values[at] if field < 0 else values[at][field]


class Op(Generic[P, R]):
    """An op of ``torch.ops.sede``; called with the arguments of its description."""

    def __init__(
        self,
        shapes: Callable[P, R],
        decides: tuple[str, ...],
        differentiable: tuple[str, ...],
        mutates: tuple[str, ...],
        withheld: tuple[str, ...],
        run: Callable[..., Any] | None,
        check: Callable[..., None] | None,
    ) -> None:
        hints = typing.get_type_hints(shapes)
        returned = hints.pop("return")
        self.name = shapes.__name__
        self.__doc__ = shapes.__doc__
        self._shapes = shapes
        self._run = run
        self._check = check
        self._differentiable = differentiable
        self._parameters = [argument_of(name, hint) for name, hint in hints.items()]
        self._defaults = [value.default for value in signature(shapes).parameters.values()]
        self._places = [
            (at, tensors)
            for at, parameter in enumerate(self._parameters)
            if (tensors := parameter.tensors()) is not None
        ]
        self._flat = [pair for parameter in self._parameters for pair in parameter.flat]
        self._names = [name for name, _ in self._flat]
        self._tensors = [at for at, (_, kind) in enumerate(self._flat) if "Tensor" in kind]
        self._decides = [self._place(name) for name in decides]
        self._mutates = [self._place(name) for name in mutates]
        last = len(self._parameters) if run else -1
        self._passed = [
            at for at, part in enumerate(self._parameters[:last]) if part.name not in withheld
        ]
        self._returned = returned if hasattr(returned, "_fields") else None
        self._outputs = tuple(returned._fields) if self._returned else ("out",)
        self._op = torch.library.custom_op(
            f"sede::{self.name}",
            self._run_flat,
            mutates_args=mutates,
            schema=self._schema(returned, mutates),
        )
        self._op.register_fake(self._fake_flat)
        self._formula: Gradients | None = None
        self._saves: tuple[str, ...] = ()
        self._depends: Callable[[dict[str, Any]], tuple[str, ...]] = lambda _: ()
        self._direct: Callable[..., Any] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the op: directly where nothing but autograd looks on, else through the dispatcher."""
        values = self._bind(args, kwargs)
        tensors: list[Tensor | None] = []
        for at, fields in self._places:
            value = values[at]
            if not fields:
                tensors.append(value)
            elif value is not None:
                tensors.extend([value[field] for field in fields])
        if not goes_directly(tensors):
            return self._wrap(self._op(*self._flatten(values)))
        if not torch.is_grad_enabled():
            return self._run_directly(values)
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                break
        else:
            return self._run_directly(values)
        if self._direct is not None:
            return self._direct(*values)  # type: ignore[no-any-return]
        with torch.no_grad():
            return self._run_directly(values)

    def flat(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
        """The arguments as ``torch.ops.sede`` takes them."""
        return tuple(self._flatten(self._bind(args, kwargs)))

    def gradients(
        self,
        saves: tuple[str, ...],
        depends: tuple[str, ...] | Callable[[dict[str, Any]], tuple[str, ...]] | None = None,
    ) -> Callable[[Gradients], Gradients]:
        """Decorator of the backward. Its results have no derivative: to ask for one raises.

        It runs without a graph. Each gradient is brought to the dtype of its input.

        Args:
            saves: flat names of the arguments and fields of the result that it needs. Besides these
                only inputs that need a gradient are kept, so a bank may be written to between
                forward and backward.
            depends: flat names of the inputs on which the gradients depend, or a function that
                gives them from the arguments that are no tensors; None for all. A gradient is
                constant in the others.
        """

        def register(formula: Gradients) -> Gradients:
            self._formula = formula
            self._saves = saves
            names = tuple(self._names) if depends is None else depends
            self._depends = names if callable(names) else lambda _: names
            self._op.register_autograd(self._backward, setup_context=self._set_up)

            def forward(ctx: Any, *flat: Any) -> Any:
                out = self._run_flat(*flat)
                self._set_up(ctx, flat, out)
                return out

            methods = {"forward": staticmethod(forward), "backward": staticmethod(self._backward)}
            function: Any = type(self.name, (torch.autograd.Function,), methods)
            self._direct = lambda *values: self._wrap(function.apply(*self._flatten(values)))
            return formula

        return register

    def directly(self, call: Callable[P, R]) -> Callable[P, R]:
        """Decorator: what runs with gradients instead of the op where only autograd looks on."""
        self._direct = call
        return call

    def _set_up(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """What the backward needs; ``depends`` that need a gradient come after ``saves``."""
        outputs = dict(zip(self._outputs, output if self._returned else (output,), strict=True))
        constants = [value for name, value in outputs.items() if name not in self._differentiable]
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        tensors = {self._names[at]: inputs[at] for at in self._tensors}
        flat = zip(self._names, inputs, strict=True)
        ctx.arguments = {name: value for name, value in flat if name not in tensors}
        depends = (tensors.get(name) for name in self._depends(ctx.arguments))
        ties = [value for value in depends if value is not None and value.requires_grad]
        known = tensors | outputs
        ctx.save_for_backward(*(known[name] for name in self._saves), *ties)
        ctx.dtypes = [value.dtype if isinstance(value, Tensor) else None for value in inputs]

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of every flat argument, None where it has or needs none."""
        if all(grad is None for grad in grads) or self._formula is None:
            return (None,) * len(self._names)
        kept = ctx.saved_tensors
        values = ctx.arguments | dict(zip(self._saves, kept, strict=False))
        needs = zip(self._names, ctx.needs_input_grad, strict=True)
        saved = Saved(self._parameters, values, frozenset(name for name, needed in needs if needed))
        with torch.no_grad():
            found = self._formula(saved, self._returned(*grads) if self._returned else grads[0])
        ties = (*grads, *kept[len(self._saves) :])
        gradients = []
        for name, dtype in zip(self._names, ctx.dtypes, strict=True):
            gradient = found.get(name)
            cast = None if gradient is None else gradient.to(dtype)
            gradients.append(once(self.name, cast, *ties))
        return tuple(gradients)

    def _place(self, flat: str) -> tuple[int, int]:
        """Where the tensor of a flat name is: its parameter, and its field or -1."""
        for at, parameter in enumerate(self._parameters):
            if flat == parameter.name:
                return at, -1
            for field, part in enumerate(parameter.parts):
                if flat == part.name:
                    return at, field
        raise ValueError(f"{self.name}: no tensor is called {flat}.")

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

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Any]:
        if not kwargs and len(args) == len(self._parameters):
            return args
        values = list(args)
        for at in range(len(args), len(self._parameters)):
            value = kwargs.get(self._parameters[at].name, self._defaults[at])
            if value is Parameter.empty:
                raise TypeError(f"{self.name}: {self._parameters[at].name} is missing.")
            values.append(value)
        return values

    def _flatten(self, values: Sequence[Any]) -> list[Any]:
        flat: list[Any] = []
        for parameter, value in zip(self._parameters, values, strict=True):
            if parameter.group is None:
                flat.append(value)
            else:
                flat.extend(parameter.flatten(value))
        return flat

    def _collect(self, flat: Sequence[Any]) -> list[Any]:
        values = iter(flat)
        return [parameter.collect(values) for parameter in self._parameters]

    def _execute(self, values: Sequence[Any]) -> R:
        passed = [values[at] for at in self._passed]
        if self._check is not None:
            self._check(*passed)
        if self._run is not None:
            out: R = self._run(*passed)
            return out
        deciding = [_at(values, place) for place in self._decides]
        out = resolve(self.name, values[-1], *deciding)(*passed)
        return out

    def _run_directly(self, values: Sequence[Any]) -> R:
        out = self._execute(values)
        if self._mutates:
            # So that autograd sees when a tensor it saved was written to.
            written = [_at(values, place) for place in self._mutates]
            torch.autograd.graph.increment_version([one for one in written if one is not None])
        return out

    def _run_flat(self, *flat: Any) -> Any:
        out = self._unwrap(self._execute(self._collect(flat)))
        return tuple(map(no_view, out)) if self._returned else no_view(out)

    def _fake_flat(self, *flat: Any) -> Any:
        return self._unwrap(self._shapes(*self._collect(flat)))  # type: ignore[call-arg]

    def _unwrap(self, out: Any) -> Any:
        return tuple(out) if self._returned else out

    def _wrap(self, out: Any) -> R:
        result: R = self._returned(*out) if self._returned else out
        return result


def op(
    *,
    decides: tuple[str, ...] = (),
    differentiable: tuple[str, ...] = (),
    mutates: tuple[str, ...] = (),
    withheld: tuple[str, ...] = (),
    run: Callable[..., Any] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Decorator: an op from the function that gives the shapes of its results.

    Args:
        decides: flat names of the tensors that a backend looks at (device, dtype); the first one's
            device picks the order of the backends.
        differentiable: fields of the result that carry a gradient.
        mutates: flat names of the tensors that are written in place.
        withheld: parameters that only the gradients read; a backend does not get them.
        run: what runs, on every device; the op then has no ``backend`` and no ``decides``.
        check: raises where the arguments of a real run do not fit each other; it may read values.
    """

    def describe(shapes: Callable[P, R]) -> Op[P, R]:
        return Op(shapes, decides, differentiable, mutates, withheld, run, check)

    return describe
