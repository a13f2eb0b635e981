"""Erasing is already a handful of row operations: the torch backend runs the specification."""

import torch
from torch import Tensor

from sede_kernels import reference
from sede_kernels.backends.torch._blocks import compute_dtype


def erase(
    attention: Tensor,
    lengths: Tensor | None,
    *,
    rule: str,
    threshold: float,
    low: bool,
    keep_min: int,
    renormalize: bool,
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.erase``."""
    out, mask = reference.attention_erase(
        attention.to(compute_dtype(attention)),
        rule=rule,
        threshold=threshold,
        erase="low" if low else "high",
        keep_min=keep_min,
        lengths=lengths,
        renormalize=renormalize,
    )
    return out.to(attention.dtype).contiguous(), mask.contiguous()


def erase_backward(
    grad_out: Tensor, attention: Tensor, mask: Tensor, *, renormalize: bool
) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    dtype = compute_dtype(attention)
    grad = grad_out.to(dtype).masked_fill(~mask, 0.0)
    if renormalize:
        kept = attention.to(dtype).masked_fill(~mask, 0.0)
        total = kept.sum(dim=-1, keepdim=True)
        total = torch.where(total == 0, torch.inf, total)
        inner = (grad * kept).sum(dim=-1, keepdim=True) / total
        # A row whose kept attention sums to zero was passed through unscaled.
        grad = torch.where(total == torch.inf, grad, ((grad - inner) / total).masked_fill(~mask, 0))
    return grad.to(attention.dtype).contiguous()
