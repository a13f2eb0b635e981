"""Attention-guided erasing, one launch each way."""

import struct

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._host import on_device
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.kernels.erase import _erase_bwd_kernel, _erase_fwd_kernel
from sede_kernels.fragment_types import Erase, Erased

#: Fused multiply-add would move the interpolated quantile by a rounding step.
EXACT = {"enable_fp_fusion": False}
#: Fragments that a row is padded to; a row lives in the registers of one program.
WIDTHS = (64, 256, 1024, 4096)


def _rows(tensor: Tensor) -> Tensor:
    """(N, L) contiguous."""
    return tensor.contiguous().view(-1, tensor.shape[-1])


def tile(fragments: int, device: torch.device) -> tuple[int, int, launch.Config]:
    """(rows a program, padded fragments, configuration)."""
    block_l = next(width for width in WIDTHS if width >= fragments)
    config = Problem.on(device).config("erase", str(block_l))
    return config.rows, block_l, config


def double_halves(value: float) -> tuple[int, int]:
    """A double as two signed 32-bit integers, the high half first."""
    high, low = struct.unpack(">ii", struct.pack(">d", value))
    return high, low


def erase(weights: Tensor, lengths: Tensor | None, how: Erase) -> Erased:
    """See ``sede_kernels.ops.erase``."""
    out = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    mask = torch.empty(weights.shape, dtype=torch.bool, device=weights.device)
    if weights.numel() == 0:
        return Erased(out, mask)
    rows = _rows(weights)
    block_r, block_l, config = tile(rows.shape[1], rows.device)
    with on_device(weights):
        _erase_fwd_kernel[(-(-rows.shape[0] // block_r),)](
            rows,
            None if lengths is None else lengths.contiguous(),
            out,
            mask.view(torch.uint8),
            *rows.shape,
            *double_halves(how.threshold),
            min(how.keep_min, rows.shape[1]),
            HAS_LENGTHS=lengths is not None,
            RULE=how.rule,
            LOW=how.side == "low",
            RENORMALIZE=how.renormalize,
            BLOCK_R=block_r,
            BLOCK_L=block_l,
            **config.options,
            **EXACT,
        )
    return Erased(out, mask)


def erase_backward(grad_out: Tensor, weights: Tensor, mask: Tensor, renormalize: bool) -> Tensor:
    """See ``sede_kernels.ops.erase``."""
    grad = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
    if weights.numel() == 0:
        return grad
    rows = _rows(weights)
    block_r, block_l, config = tile(rows.shape[1], rows.device)
    with on_device(weights):
        _erase_bwd_kernel[(-(-rows.shape[0] // block_r),)](
            _rows(grad_out),
            rows,
            _rows(mask).view(torch.uint8),
            grad,
            *rows.shape,
            RENORMALIZE=renormalize,
            BLOCK_R=block_r,
            BLOCK_L=block_l,
            **config.options,
        )
    return grad
