# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Backward of the in-batch sums: one kernel for queries and keys, one launch for two batches.

Rows are those whose gradient is summed, columns the others. With w_ij = sum_e g_ei P_eij
(i a query, j a key) the queries take w k and, transposed, the keys w^T q.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import (
    LOG2E,
    NEG_INF,
    known_from_here,
    matmul,
    rounded,
    valid_slots,
)


@triton.jit
def _matrix_tile(
    pointer, r, c, rows, cols, stride_row, stride_col, OPERAND: tl.constexpr
):  # fmt: skip
    """[r, c] of a matrix in the operand dtype, zero outside."""
    offset = r.to(tl.int64)[:, None] * stride_row + c.to(tl.int64)[None, :] * stride_col
    mask = (r < rows)[:, None] & (c < cols)[None, :]
    return tl.load(pointer + offset, mask=mask, other=0.0).to(OPERAND)


@triton.jit
def _batch_lse_bwd_kernel(
    own,  # [B, D]
    other,  # [B, D]
    own_2,  # those of the second batch, of the same layouts
    other_2,
    factor,  # [E, B] g r, of the queries
    lse,  # [E, B]
    upstream,  # [B], or [] with a step of 0: factors are times this; or None
    flag,  # [] whether the batch counts, or None: it does
    scales,  # [E]
    ids,  # [B]
    limit,  # [sides, B]
    grad,  # [sides, B, D] of ``own``
    B,
    D,
    stride_xr,
    stride_xd,
    stride_yr,
    stride_yd,
    side_step,  # from the factors and log-sum-exps of one batch to those of the next
    step,
    SIDES: tl.constexpr,
    E: tl.constexpr,
    SELECT: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SLICE_D: tl.constexpr,
):
    """Program (i, n, side): BLOCK_R rows of the gradient, its columns n SLICE_D and on."""
    side = 0
    if SIDES == 2:
        side = tl.program_id(2)
        factor += side * side_step
        lse += side * side_step
        if side == 1:
            own = own_2
            other = other_2
    columns = B
    if flag is not None:
        columns = tl.where(tl.load(flag) != 0, B, 0)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    slice_cols = tl.program_id(1) * SLICE_D + tl.arange(0, SLICE_D)
    row_ids = rows.to(tl.int64)
    if HAS_IDS:
        row_ids = tl.load(ids + rows, mask=rows < B, other=-1)
    x = rows
    if WHOLE:
        x = _matrix_tile(own, rows, slice_cols, B, D, stride_xr, stride_xd, OPERAND)
    acc = tl.zeros((BLOCK_R, SLICE_D), tl.float32)
    for first in range(0, columns, BLOCK_C):
        cols = first + tl.arange(0, BLOCK_C)
        y = _matrix_tile(other, cols, slice_cols, B, D, stride_yr, stride_yd, OPERAND)
        if WHOLE:
            s = matmul(x, tl.trans(y), tl.zeros((BLOCK_R, BLOCK_C), tl.float32), PRECISION)
        else:
            s = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
            for d in range(0, D, BLOCK_D):
                depth = d + tl.arange(0, BLOCK_D)
                part = _matrix_tile(own, rows, depth, B, D, stride_xr, stride_xd, OPERAND)
                across = _matrix_tile(other, cols, depth, B, D, stride_yr, stride_yd, OPERAND)
                s = matmul(part, tl.trans(across), s, PRECISION)
        col_ids = cols.to(tl.int64)
        if HAS_IDS:
            col_ids = tl.load(ids + cols, mask=cols < B, other=-1)
        # An unknown id (-1) is a key's matter: valid_slots looks at its second argument.
        if TRANSPOSED:
            valid = tl.trans(
                valid_slots(cols, rows, B, col_ids, row_ids, HAS_IDS, HAS_IDS, SELECT, True)
            )
        else:
            valid = valid_slots(rows, cols, B, row_ids, col_ids, HAS_IDS, HAS_IDS, SELECT, True)
        queries = cols if TRANSPOSED else rows
        if HAS_LIMIT:
            most = tl.load(limit + side * B + queries, mask=queries < B, other=0.0)
            valid = valid & (s <= (most[None, :] if TRANSPOSED else most[:, None]))
        weight = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for e in tl.static_range(E):
            at = e * B + queries
            base = tl.load(lse + at, mask=queries < B, other=0.0)
            base = tl.where(base == NEG_INF, 0.0, base)
            share = tl.load(factor + at, mask=queries < B, other=0.0)
            if upstream is not None:
                share *= tl.load(upstream + queries * step, mask=queries < B, other=0.0)
            c = tl.load(scales + e)
            if TRANSPOSED:
                p = tl.exp2((s * c - base[None, :]) * LOG2E) * share[None, :]
            else:
                p = tl.exp2((s * c - base[:, None]) * LOG2E) * share[:, None]
            weight += p
        weight = tl.where(valid & (queries < B)[None, :] if TRANSPOSED else valid, weight, 0.0)
        acc = matmul(rounded(weight, OPERAND), y, acc, PRECISION)
    rows = known_from_here(tl.program_id(0) * BLOCK_R) + tl.arange(0, BLOCK_R)
    offset = (side * B + rows).to(tl.int64)[:, None] * D + slice_cols[None, :]
    tl.store(grad + offset, acc, mask=(rows < B)[:, None] & (slice_cols < D)[None, :])
