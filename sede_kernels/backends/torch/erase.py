"""Erasing is already a handful of row operations: the torch backend runs the specification."""

import torch
from torch import Tensor

from sede_kernels import reference_erase
from sede_kernels.fragment_types import Erase, Erased
from sede_kernels.types import result_dtype


def erase(weights: Tensor, lengths: Tensor | None, how: Erase) -> Erased:
    """See ``sede_kernels.ops.erase``."""
    out, mask = reference_erase.attention_erase(
        weights.to(result_dtype(weights)),
        rule=how.rule,
        threshold=how.threshold,
        erase=how.side,
        keep_min=how.keep_min,
        lengths=lengths,
        renormalize=how.renormalize,
    )
    return Erased(out.to(weights.dtype).contiguous(), mask.contiguous())


def erase_backward(grad_out: Tensor, weights: Tensor, mask: Tensor, renormalize: bool) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    dtype = result_dtype(weights)
    grad = grad_out.to(dtype).masked_fill(~mask, 0.0)
    if renormalize:
        kept = weights.to(dtype).masked_fill(~mask, 0.0)
        total = kept.sum(dim=-1, keepdim=True)
        total = torch.where(total == 0, torch.inf, total)
        inner = (grad * kept).sum(dim=-1, keepdim=True) / total
        # A row whose kept attention sums to zero was passed through unscaled.
        grad = torch.where(total == torch.inf, grad, ((grad - inner) / total).masked_fill(~mask, 0))
    return grad.to(weights.dtype).contiguous()
