# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Gradients of both sides of chosen pairs, from what their backward has written.

A program adds BLOCK_D columns of one set over all pairs that share it, in order: ``number`` pairs
from ``first`` x set on, ``step`` apart. Only those that ``lost`` marks, where not all are wanted.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.cross_attention_pairs import attended, set_rows, wanted
from sede_kernels.backends.triton.kernels.device import matmul


@triton.jit
def _tile(side, rows, valid, depth, D):
    """[BLOCK, BLOCK_D] of a side, 0 in padding whatever that holds."""
    at = side + (rows * D)[:, None] + depth[None, :]
    return tl.load(at, mask=valid[:, None] & (depth < D)[None, :], other=0.0)


@triton.jit
def _some(lost, first, step, number, MARKED: tl.constexpr):
    """Whether any of the pairs is wanted, as 0 or 1."""
    found = 1
    if MARKED:
        found = 0
        for start in range(0, number, 128):
            n = start + tl.arange(0, 128)
            marks = tl.load(lost + first + n * step, mask=n < number, other=0)
            found = tl.maximum(found, tl.max(marks.to(tl.int32), 0))
    return found


@triton.jit(do_not_specialize=["first", "step", "number", "source_row", "source_step"])
def _pairs_query_grad_kernel(
    d_scores,  # [B, N, L, R] fp32
    attention,  # [B, N, L, R] fp32
    d_dot,  # [B, N, L] fp32
    d_norm,  # [B, N, L] fp32
    query,  # [query sets, L, D]
    source,  # [source sets, R, D]
    query_lengths,  # [query sets]
    source_lengths,  # [source sets]
    lost,  # [B, N] int8
    d_query,  # [query sets, L, D] fp32, added to
    pairs,
    first,
    step,
    number,
    source_row,
    source_step,
    L,
    R,
    D,
    MARKED: tl.constexpr,
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (set, d): (dS + d_dot a) V + d_norm query, summed over pairs."""
    own_set = tl.program_id(0)
    if _some(lost, own_set * first, step, number, MARKED) == 0:
        return
    depth = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row, col = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside = (row < L)[:, None] & (col < R)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    own = tl.zeros((BLOCK_M,), tl.float32)
    for i in range(0, number):
        pair = own_set * first + i * step
        if wanted(pair, lost, MARKED):
            at = pair.to(tl.int64) * L + row
            cols, col_valid, _ = set_rows(
                (pair // pairs) * source_row + (pair % pairs) * source_step, source_lengths, R,
                SOURCE_VARY, BLOCK_N,
            )  # fmt: skip
            y = _tile(source, cols, col_valid, depth, D)
            here = (at * R)[:, None] + col[None, :]
            d_s = tl.load(d_scores + here, mask=inside, other=0.0)
            a = tl.load(attention + here, mask=inside, other=0.0)
            # One product: d_dot a V is what query.context gives, the context being a V.
            d_s += tl.load(d_dot + at, mask=row < L, other=0.0)[:, None] * a
            if y.dtype == tl.float16:  # which ends at 6e-8: relative to the largest of a row
                peak = tl.max(tl.abs(d_s), 1)
                peak = tl.where(peak == 0.0, 1.0, peak)[:, None]
                part = attended(d_s / peak, y, tl.zeros_like(total), PRECISION)
                total += peak * part
            else:
                total = attended(d_s, y, total, PRECISION)
            own += tl.load(d_norm + at, mask=row < L, other=0.0)
    rows, row_valid, _ = set_rows(own_set, query_lengths, L, QUERY_VARY, BLOCK_M)
    total += own[:, None] * _tile(query, rows, row_valid, depth, D).to(tl.float32)
    at = d_query + (rows * D)[:, None] + depth[None, :]
    exists = (row < L)[:, None] & (depth < D)[None, :]
    tl.store(at, tl.load(at, mask=exists, other=0.0) + total, mask=exists)


@triton.jit(do_not_specialize=["first", "step", "number", "query_row", "query_step"])
def _pairs_source_grad_kernel(
    d_scores,  # [B, N, L, R] fp32
    attention,  # [B, N, L, R] fp32
    d_dot,  # [B, N, L] fp32
    along,  # [B, N, L] fp32
    query,  # [query sets, L, D]
    source,  # [source sets, R, D]
    query_lengths,  # [query sets]
    source_lengths,  # [source sets]
    lost,  # [B, N] int8
    d_source,  # [source sets, R, D] fp32, added to
    pairs,
    first,
    step,
    number,
    query_row,
    query_step,
    L,
    R,
    D,
    MARKED: tl.constexpr,
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (set, d): dS^T E + a^T d_dot (query - along context), summed over pairs."""
    own_set = tl.program_id(0)
    if _some(lost, own_set * first, step, number, MARKED) == 0:
        return
    depth = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row, col = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside = (row < L)[:, None] & (col < R)[None, :]
    cols, col_valid, _ = set_rows(own_set, source_lengths, R, SOURCE_VARY, BLOCK_N)
    y = _tile(source, cols, col_valid, depth, D)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for i in range(0, number):
        pair = own_set * first + i * step
        if wanted(pair, lost, MARKED):
            at = pair.to(tl.int64) * L + row
            rows, row_valid, _ = set_rows(
                (pair // pairs) * query_row + (pair % pairs) * query_step, query_lengths, L,
                QUERY_VARY, BLOCK_M,
            )  # fmt: skip
            x = _tile(query, rows, row_valid, depth, D).to(tl.float32)
            here = (at * R)[:, None] + col[None, :]
            d_s = tl.load(d_scores + here, mask=inside, other=0.0)
            total = matmul(tl.trans(d_s), x, total, PRECISION)
            a = tl.load(attention + here, mask=inside, other=0.0)
            context = attended(a, y, tl.zeros((BLOCK_M, BLOCK_D), tl.float32), PRECISION)
            of_dot = tl.load(d_dot + at, mask=row < L, other=0.0)
            of_size = tl.load(along + at, mask=row < L, other=0.0)
            d_context = of_dot[:, None] * (x - of_size[:, None] * context)
            total = matmul(tl.trans(a), d_context, total, PRECISION)
    at = d_source + (cols * D)[:, None] + depth[None, :]
    exists = (col < R)[:, None] & (depth < D)[None, :]
    tl.store(at, tl.load(at, mask=exists, other=0.0) + total, mask=exists)
