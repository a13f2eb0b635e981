# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The gradients of a weighted InfoNCE: what its forward left, times the incoming gradient."""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.info_nce_table import (
    AT_HARDNESS_GRAD,
    AT_POSITIVE_GRAD,
    AT_TEMPERATURE_GRAD,
    TABLE_ROWS,
)


@triton.jit
def _scaled_side(
    g, unit, added_query, added_key, query, coefficient, to_query, to_key, side, B, D, rows, d,
    inside, stride_b, stride_d,
):  # fmt: skip
    """Gradients of one side's queries and keys, in their dtypes."""
    place = rows.to(tl.int64)[:, None] * D + d[None, :]
    ours = side.to(tl.int64) * B * D + place
    if to_query is not None:
        value = tl.load(unit + ours, mask=inside, other=0.0) * g[:, None]
        if added_query is not None:
            value += tl.load(added_query + ours, mask=inside, other=0.0)
        tl.store(to_query + place, value.to(to_query.dtype.element_ty), mask=inside)
    if to_key is not None:
        at = rows.to(tl.int64)[:, None] * stride_b + d.to(tl.int64)[None, :] * stride_d
        q = tl.load(query + at, mask=inside, other=0.0).to(tl.float32)
        value = q * (coefficient * g)[:, None]
        if added_key is not None:
            value += tl.load(added_key + ours, mask=inside, other=0.0)
        tl.store(to_key + place, value.to(to_key.dtype.element_ty), mask=inside)


@triton.jit
def _info_nce_scale_kernel(
    upstream,  # [B], or [] with a step of 0
    table,  # [sides, 16, B]
    unit,  # [sides, B, D] gradients of the queries for an upstream gradient of 1
    added_query,  # [sides, B, D] those through in-batch negatives, or None
    added_key,
    query,  # [B, D]
    other_query,
    to_query,  # [B, D], these four: None where nobody asks
    to_key,
    to_other_query,
    to_other_key,
    to_temperature,  # [], these two likewise
    to_hardness,
    B,
    D,
    step,
    stride_qb,
    stride_qd,
    SIDES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (i, n): BLOCK_B rows, columns n BLOCK_D and on; the last i: temperature, hardness."""
    if tl.program_id(0) * BLOCK_B < B:
        rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
        keep = rows < B
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = keep[:, None] & (d < D)[None, :]
        g = tl.load(upstream + rows * step, mask=keep, other=0.0)
        p = tl.load(table + AT_POSITIVE_GRAD * B + rows, mask=keep, other=0.0)
        zero = tl.program_id(0) * 0
        _scaled_side(
            g, unit, added_query, added_key, query, p, to_query, to_key, zero, B, D, rows, d,
            inside, stride_qb, stride_qd,
        )  # fmt: skip
        if SIDES == 2:
            p = tl.load(table + (TABLE_ROWS + AT_POSITIVE_GRAD) * B + rows, mask=keep, other=0.0)
            _scaled_side(
                g, unit, added_query, added_key, other_query, p, to_other_query, to_other_key,
                zero + 1, B, D, rows, d, inside, stride_qb, stride_qd,
            )  # fmt: skip
    elif tl.program_id(1) == 0:
        by_tau = tl.zeros((BLOCK,), tl.float64)
        by_beta = tl.zeros((BLOCK,), tl.float64)
        for side in range(SIDES):
            start = table + side * TABLE_ROWS * B
            for first in range(0, B, BLOCK):
                at = first + tl.arange(0, BLOCK)
                keep = at < B
                g = tl.load(upstream + at * step, mask=keep, other=0.0).to(tl.float64)
                tau = tl.load(start + AT_TEMPERATURE_GRAD * B + at, mask=keep, other=0.0)
                beta = tl.load(start + AT_HARDNESS_GRAD * B + at, mask=keep, other=0.0)
                by_tau += tau.to(tl.float64) * g
                by_beta += beta.to(tl.float64) * g
        if to_temperature is not None:
            tl.store(to_temperature, tl.sum(by_tau, 0).to(tl.float32))
        if to_hardness is not None:
            tl.store(to_hardness, tl.sum(by_beta, 0).to(tl.float32))
