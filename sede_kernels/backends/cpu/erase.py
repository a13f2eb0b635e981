"""Erasing in native code: each row read once and written once, see csrc/kernels/erase.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.types import Erase, Erased

#: Rule of csrc/kernels/erase_api.h.
RULE_CODES = {"mean": 0, "prob": 1, "absolute": 2, "relative": 3, "topk": 4, "quantile": 5}


def erase(weights: Tensor, lengths: Tensor | None, how: Erase) -> Erased:
    """See ``sede_kernels.ops.erase``. Memory: the results and a few rows a thread."""
    a = weights.contiguous()
    fragments = a.shape[-1]
    rows = a.numel() // max(fragments, 1)
    counts = None
    if lengths is not None:
        counts = _native.counts("attention_erase", lengths, a.shape[:-1], fragments)
    out = _native.empty(*a.shape, dtype=a.dtype)
    mask = _native.empty(*a.shape, dtype=torch.bool)
    _native.module().erase(
        _native.address("attention", a, a.dtype, a.numel()),
        _native.address(
            "lengths", counts, torch.int64, counts.numel() if counts is not None else 0
        ),
        rows,
        fragments,
        _native.DTYPE_CODES[a.dtype],
        RULE_CODES[how.rule],
        how.threshold,
        how.keep_min,
        how.side == "low",
        how.renormalize,
        out.data_ptr(),
        mask.data_ptr(),
    )
    return Erased(out, mask)


def erase_backward(grad_out: Tensor, weights: Tensor, mask: Tensor, renormalize: bool) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    a = weights.contiguous()
    grad = _native.contiguous(grad_out, a.dtype)
    kept = mask.contiguous()
    out = _native.empty(*a.shape, dtype=a.dtype)
    fragments = a.shape[-1]
    _native.module().erase_backward(
        _native.address("grad", grad, a.dtype, a.numel()),
        _native.address("attention", a, a.dtype, a.numel()),
        _native.address("mask", kept, torch.bool, a.numel()),
        a.numel() // max(fragments, 1),
        fragments,
        _native.DTYPE_CODES[a.dtype],
        renormalize,
        out.data_ptr(),
    )
    return out
