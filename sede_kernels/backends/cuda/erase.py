"""Attention-guided erasing, one launch each way: a warp a row, a block where it is long."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native
from sede_kernels.fragment_types import Erase, Erased

#: Rule of csrc/cuda/args.h.
RULE_CODES = {"mean": 0, "prob": 1, "absolute": 2, "relative": 3, "topk": 4, "quantile": 5}


def _rows(tensor: Tensor) -> Tensor:
    """(N, L) contiguous."""
    return tensor.contiguous().view(-1, tensor.shape[-1])


def erase(weights: Tensor, lengths: Tensor | None, how: Erase) -> Erased:
    """See ``sede_kernels.ops.erase``."""
    found = Erased(
        torch.empty(weights.shape, dtype=weights.dtype, device=weights.device),
        torch.empty(weights.shape, dtype=torch.bool, device=weights.device),
    )
    if weights.numel() == 0:
        return found
    rows = _rows(weights)
    call = _native.Call(weights.device)
    call.launch(
        _native.module().erase,
        call.matrix(rows),
        call.array("lengths", lengths, torch.int64, rows.shape[0]),
        *(call.result(result) for result in found),
        RULE_CODES[how.rule],
        how.threshold,
        how.side == "low",
        min(how.keep_min, rows.shape[1]),
        how.renormalize,
    )
    return found


def erase_backward(grad_out: Tensor, weights: Tensor, mask: Tensor, renormalize: bool) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    grad = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if weights.numel() == 0:
        return grad
    call = _native.Call(weights.device)
    call.launch(
        _native.module().erase_backward,
        call.matrix(_rows(grad_out.to(weights.dtype))),
        call.result(_rows(weights)),
        call.result(_rows(mask)),
        call.result(grad),
        renormalize,
    )
    return grad
