"""Kernels have one derivative, backwards; what else is asked of them is refused, never dropped.

Forward mode and ``torch.func`` are refused before a kernel runs (``check_transforms``), gradients
of gradients when they are asked for (``once``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _refusal(name: str, what: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name}: the kernels have no {what}; pass backend='reference', which is plain autograd."
    )


def _has_tangent(tensor: Tensor) -> bool:
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def check_transforms(name: str, *inputs: object) -> None:
    """Raise where a transform that no kernel follows acts on one of the inputs.

    Costs two look-ups where there is no transform. ``vmap`` alone is served, one call an element.

    Raises:
        NotImplementedError: an input carries a tangent, or is inside torch.func.grad or jvp.
    """
    forward = forward_ad._current_level >= 0
    transformed = (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )
    if not forward and not transformed:
        return
    for value in inputs:
        if not isinstance(value, Tensor):
            continue
        if forward and _has_tangent(value):
            raise _refusal(name, "forward-mode derivative (jvp, jacfwd)")
        inner = value
        while transformed and torch._C._functorch.is_functorch_wrapped_tensor(inner):
            if inner.requires_grad and torch._C._functorch.is_gradtrackingtensor(inner):
                raise _refusal(name, "derivative inside torch.func (grad, vjp, jvp, jacrev)")
            inner = torch._C._functorch.get_unwrapped(inner)
            if forward and _has_tangent(inner):
                raise _refusal(name, "forward-mode derivative (jvp, jacfwd)")


_PLAIN = (Tensor, torch.nn.Parameter)
is_batched = torch._C._functorch.is_legacy_batchedtensor


def goes_directly(tensors: Sequence[Tensor | None]) -> bool:
    """Whether an eager call may run without torch's dispatcher; asked in half a microsecond.

    Only where nothing but autograd looks on: no compiler or tracer, no transform, no dispatch mode
    and no profiler. Subclasses, tensors without data and those whose sign waits to be applied (the
    imaginary part of a conjugate) take the dispatcher too, and so do many gradients at once
    (``is_grads_batched``), which an op has as its first tensor.
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta or tensor.is_neg()):
            return False
    if tensors[0] is not None and is_batched(tensors[0]):
        return False
    return only_autograd_looks_on()


def nothing_looks_on() -> bool:
    """``goes_directly`` for a caller that looks at the tensors itself."""
    return not torch.compiler.is_compiling() and only_autograd_looks_on()


def only_autograd_looks_on() -> bool:
    """Whether no transform, mode, profiler or tracer wants to see the ops of an eager call."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not torch._C._autograd._profiler_enabled()
        and torch._C._get_tracing_state() is None
    )


class _Once(torch.autograd.Function):
    """A gradient that depends on tensors through a kernel, hence cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *depends: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _refusal(ctx.name, "second derivative")

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _refusal(ctx.name, "second derivative")


def once(name: str, gradient: Tensor | None, *depends: Tensor | None) -> Tensor | None:
    """The gradient, tied to what it depends on where a graph of it is made (``create_graph``).

    A penalty on the gradient then raises where it would be a constant.

    Args:
        name: the op, for the message.
        gradient: what the backward returns for one input.
        depends: the incoming gradients and the differentiable inputs of the op.
    """
    if gradient is None or not torch.is_grad_enabled():
        return gradient
    constant = gradient.detach()
    tied = [tensor for tensor in depends if tensor is not None and tensor.requires_grad]
    if not tied:
        return constant
    result: Tensor = _Once.apply(name, constant, *tied)  # type: ignore[no-untyped-call]
    return result


#: Stands for the gradients that nobody asked for, in a backward that the op does not run.
SPARE = torch.empty(0, device="cpu")


def returned(
    name: str,
    found: Sequence[Tensor],
    needs: Sequence[bool],
    grad: Tensor,
    learned: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """What the backward of a ``torch.autograd.Function`` returns, from all gradients of an op."""
    wanted = [value if need else None for value, need in zip(found, needs, strict=True)]
    if not torch.is_grad_enabled():
        return wanted
    return [once(name, value, grad, *learned) for value in wanted]


def no_view(out: Any) -> Any:
    """A result that a backend has reshaped, as a tensor that may be changed in place.

    Autograd refuses that for a view which a ``torch.autograd.Function`` returns.
    """
    if isinstance(out, Tensor) and out._is_view():
        return torch.ops.aten._unsafe_view.default(out, out.shape)
    return out


def apply_of(function: type[torch.autograd.Function]) -> Any:
    """``function.apply`` without what only torch.func needs, where nothing of it looks on."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]
