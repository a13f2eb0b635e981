# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""What the passes of a weighted InfoNCE start from: exponents, and the limits of a margin."""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.info_nce_row import dots
from sede_kernels.backends.triton.kernels.info_nce_table import (
    BETA_AT,
    EXTRA_AT,
)


@triton.jit
def _info_nce_start_kernel(
    query,  # [B, D], these four; both sides have the same layouts
    key,
    other_query,
    other_key,
    temperature,  # [], these three: None for the number
    hardness,
    margin,
    numbers,  # [8]: exponents of the passes; at EXTRA_AT 1 / tau and 0; at BETA_AT beta
    similarity,  # [sides, B] s+, or None: no margin
    limit,  # [sides, B]
    B,
    D,
    stride_qb,
    stride_qd,
    stride_kb,
    stride_kd,
    inverse,  # 1 / tau
    beta,
    first,  # the first exponent
    most,  # the margin
    SIDES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program i: BLOCK_B rows' limits; the first one writes the numbers."""
    if tl.program_id(0) == 0:
        if temperature is not None or (hardness is not None and WEIGHTED):
            it = tl.full((), inverse, tl.float64)
            b = tl.full((), beta, tl.float64)
            if temperature is not None:
                it = 1.0 / tl.load(temperature).to(tl.float64)
            if hardness is not None and WEIGHTED:
                b = tl.load(hardness).to(tl.float64)
            inverse = it.to(tl.float32)
            beta = b.to(tl.float32)
            first = (it + b).to(tl.float32)
        tl.store(numbers, first)
        tl.store(numbers + 1, beta)
        tl.store(numbers + EXTRA_AT, inverse)
        tl.store(numbers + EXTRA_AT + 1, 0.0)
        tl.store(numbers + BETA_AT, beta)
    if similarity is not None:
        rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
        keep = rows < B
        if margin is not None:
            most = tl.load(margin).to(tl.float32)
        for side in tl.static_range(SIDES):
            if side == 0:
                s = dots(
                    query, key, rows, keep, D, stride_qb, stride_qd, stride_kb, stride_kd,
                    BLOCK_B, BLOCK_D,
                )  # fmt: skip
            else:
                s = dots(
                    other_query, other_key, rows, keep, D, stride_qb, stride_qd, stride_kb,
                    stride_kd, BLOCK_B, BLOCK_D,
                )  # fmt: skip
            tl.store(similarity + side * B + rows, s, mask=keep)
            tl.store(limit + side * B + rows, s + most, mask=keep)
