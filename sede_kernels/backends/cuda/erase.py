"""Attention-guided erasing, one launch each way: a warp a row, a block where it is long."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native

#: Rule of csrc/cuda/args.h.
RULE_CODES = {"mean": 0, "prob": 1, "absolute": 2, "relative": 3, "topk": 4, "quantile": 5}


def _rows(tensor: Tensor) -> Tensor:
    """(N, L) contiguous."""
    return tensor.contiguous().view(-1, tensor.shape[-1])


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
    out = torch.empty(attention.shape, dtype=attention.dtype, device=attention.device)
    mask = torch.empty(attention.shape, dtype=torch.bool, device=attention.device)
    if attention.numel() == 0:
        return out, mask
    rows = _rows(attention)
    call = _native.Call(attention.device)
    call.launch(
        _native.module().erase,
        call.matrix(rows),
        call.array("lengths", lengths, torch.int64, rows.shape[0]),
        call.result(out),
        call.result(mask),
        RULE_CODES[rule],
        threshold,
        low,
        min(keep_min, rows.shape[1]),
        renormalize,
    )
    return out, mask


def erase_backward(
    grad_out: Tensor, attention: Tensor, mask: Tensor, *, renormalize: bool
) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    grad = torch.empty(attention.shape, dtype=attention.dtype, device=attention.device)
    if attention.numel() == 0:
        return grad
    call = _native.Call(attention.device)
    call.launch(
        _native.module().erase_backward,
        call.matrix(_rows(grad_out.to(attention.dtype))),
        call.result(_rows(attention)),
        call.result(_rows(mask)),
        call.result(grad),
        renormalize,
    )
    return grad
