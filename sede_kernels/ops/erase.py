"""Attention-guided erasing: which fragments stay, and their attention, renormalised or not."""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve
from sede_kernels.ops.transforms import once


@torch.library.custom_op("sede::erase", mutates_args=())
def erase(
    attention: Tensor,
    lengths: Tensor | None,
    rule: str,
    threshold: float,
    low: bool,
    keep_min: int,
    renormalize: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(attention after erasing, mask that is True where a fragment is kept)."""
    run = resolve("erase", backend, attention)
    out, mask = run(
        attention,
        lengths,
        rule=rule,
        threshold=threshold,
        low=low,
        keep_min=keep_min,
        renormalize=renormalize,
    )
    return out, mask


@erase.register_fake
def _(
    attention: Tensor,
    lengths: Tensor | None,
    rule: str,
    threshold: float,
    low: bool,
    keep_min: int,
    renormalize: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    out = attention.new_empty(attention.shape)
    return out, attention.new_empty(attention.shape, dtype=torch.bool)


@torch.library.custom_op("sede::erase_backward", mutates_args=())
def erase_backward(
    grad_out: Tensor, attention: Tensor, mask: Tensor, renormalize: bool, backend: str
) -> Tensor:
    """H (g - sum(g out)) / sum(a H), or H g without renormalisation; the mask is constant."""
    run = resolve("erase_backward", backend, grad_out)
    grad: Tensor = run(grad_out, attention, mask, renormalize=renormalize)
    return grad


@erase_backward.register_fake
def _(grad_out: Tensor, attention: Tensor, mask: Tensor, renormalize: bool, backend: str) -> Tensor:
    return attention.new_empty(attention.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    attention, _, _, _, _, _, renormalize, backend = inputs
    _, mask = output
    ctx.mark_non_differentiable(mask)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(attention, mask)
    ctx.renormalize = renormalize
    ctx.backend = backend


def _backward(ctx, grad_out, _):  # type: ignore[no-untyped-def]
    attention, mask = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 8
    if grad_out is not None:
        grad = erase_backward(grad_out.contiguous(), attention, mask, ctx.renormalize, ctx.backend)
        # Without renormalisation the result is linear in the attention.
        grads[0] = once("erase", grad, grad_out, attention if ctx.renormalize else None)
    return tuple(grads)


erase.register_autograd(_backward, setup_context=_setup_context)
