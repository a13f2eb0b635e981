# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The weights of a focused mean, which every row's loss decides."""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.info_nce_row import one_minus_exp, power
from sede_kernels.backends.triton.kernels.info_nce_table import (
    AT_EXTRA_GRAD,
    AT_EXTRA_LSE,
    AT_LOSS,
    AT_LSE,
    AT_LSE_GRAD,
    AT_POSITIVE_GRAD,
    AT_WEIGHT,
    TABLE_ROWS,
)


@triton.jit
def _info_nce_focus_kernel(
    table,  # [sides, 16, B], of rows that weigh 1
    grad,  # [sides, B, D], or None
    loss_out,  # []
    B,
    D,
    scale,
    focus,
    SIDES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (i, n): the weights of a focused mean for BLOCK_B rows, and columns of the gradient.

    Every program sums all losses, in one order. Bases are relative to the largest one, before the
    power: they may be subnormal or 0 where the share of a row is still well defined.
    """
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    keep = rows < B
    once = rows < tl.where(tl.program_id(1) == 0, B, 0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    reduced = tl.zeros((BLOCK,), tl.float64)
    for side in range(SIDES):
        losses = table + side * TABLE_ROWS * B + AT_LOSS * B
        largest = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, B, BLOCK):
            at = first + tl.arange(0, BLOCK)
            largest = tl.maximum(
                largest, one_minus_exp(tl.load(losses + at, mask=at < B, other=0.0))
            )
        most = tl.max(largest, 0)
        most = tl.where(most == 0.0, 1.0, most)
        total = tl.zeros((BLOCK,), tl.float64)
        weighted = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, B, BLOCK):
            at = first + tl.arange(0, BLOCK)
            loss = tl.load(losses + at, mask=at < B, other=0.0)
            share = power(loss, most, focus).to(tl.float64)
            total += share
            weighted += share * loss.to(tl.float64)
        all_of = tl.sum(total, 0)
        all_of = tl.where(all_of == 0.0, 1.0, all_of)
        reduced += weighted / all_of
        loss = tl.load(losses + rows, mask=keep, other=0.0)
        weight = power(loss, most, focus) * (scale / all_of.to(tl.float32))
        to = table + side * TABLE_ROWS * B + rows
        tl.store(to + AT_WEIGHT * B, weight, mask=once)
        for row in tl.static_range(AT_POSITIVE_GRAD, TABLE_ROWS):
            if row < AT_LSE or (row >= AT_LSE_GRAD and row < AT_EXTRA_LSE) or row >= AT_EXTRA_GRAD:
                value = tl.load(to + row * B, mask=once, other=0.0)
                tl.store(to + row * B, value * weight, mask=once)
        if grad is not None:
            place = (side * B + rows).to(tl.int64)[:, None] * D + d[None, :]
            inside = keep[:, None] & (d < D)[None, :]
            value = tl.load(grad + place, mask=inside, other=0.0)
            tl.store(grad + place, value * weight[:, None], mask=inside)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(loss_out, tl.sum(reduced, 0).to(tl.float32) * scale)
