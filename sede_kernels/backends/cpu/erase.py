"""Erasing in native code: each row read once and written once, see csrc/kernels/erase.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.fragment_types import Erase, Erased

_DIMENSIONS = 8  # of a tensor, at most, in csrc/bind_tensors.h
#: Rule of csrc/kernels/erase_api.h.
RULE_CODES = {"mean": 0, "prob": 1, "absolute": 2, "relative": 3, "topk": 4, "quantile": 5}


def lengths_fit(lengths: Tensor, shape: tuple[int, ...], most: int) -> bool:
    """Whether these are dense int64 numbers of that shape, each in [0, most]."""
    fit: bool = _native.module().lengths_fit(lengths, shape, most)
    return fit


def erase(weights: Tensor, lengths: Tensor | None, how: Erase) -> Erased:
    """See ``sede_kernels.ops.erase``. Memory: the results and a few rows a thread."""
    a, run = weights.contiguous(), _native.module().erase
    found = Erased(torch.empty_like(a), torch.empty_like(a, dtype=torch.bool))
    settings = RULE_CODES[how.rule], how.threshold, how.keep_min, how.side == "low", how.renormalize
    if run(a, lengths, *settings, *found):
        return found
    if lengths is not None:
        lengths = _native.counts("attention_erase", lengths, a.shape[:-1], a.shape[-1])
        lengths = lengths.flatten() if a.ndim > _DIMENSIONS else lengths
    if not run(_rows(a), lengths, *settings, *map(_rows, found)):
        raise _refused("erase")
    return found


def erase_backward(grad_out: Tensor, weights: Tensor, mask: Tensor, renormalize: bool) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    a = weights.contiguous()
    out = torch.empty_like(a)
    run = _native.module().erase_backward
    grad, kept = grad_out.to(a.dtype).contiguous(), mask.contiguous()
    if not run(_rows(grad), _rows(a), _rows(kept), renormalize, _rows(out)):
        raise _refused("erase_backward")
    return out


def _rows(tensor: Tensor) -> Tensor:
    """(rows, L) of more dimensions than native code looks at."""
    return tensor.flatten(0, -2) if tensor.ndim > _DIMENSIONS else tensor


def _refused(name: str) -> ValueError:
    return ValueError(
        f"cpu backend: {name} takes (..., L) weights and what is of their shape, dense and on the "
        "CPU; something else came."
    )
