# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Region-word similarity of chosen pairs: a program an image-caption pair.

S = E V^T and G = V V^T come from one walk over D; no other pair uses this G, so it is never stored.
The backward writes dS and dG of each pair; a kernel a side makes its gradient from them.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.cross_attention_tile import (
    aggregate,
    aggregate_grad,
    attend,
    cosine,
    erase,
    leaky,
    scores_grad,
)
from sede_kernels.backends.triton.kernels.device import matmul


@triton.jit
def _set(pair, pairs, sets, lengths, fragments, HAS_LENGTHS: tl.constexpr, BLOCK: tl.constexpr):
    """Of one side of a pair: (rows of its matrix [BLOCK] int64, which are valid, their number)."""
    at = (pair // pairs).to(tl.int64) * sets + (pair % pairs) % sets
    length = fragments
    if HAS_LENGTHS:
        length = tl.load(lengths + at).to(tl.int32)
    index = tl.arange(0, BLOCK)
    return at * fragments + index, index < length, length


@triton.jit
def _products(
    query,
    source,
    rows,  # [M]
    row_valid,  # [M]
    cols,  # [N]
    col_valid,  # [N]
    D,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(S [M, N], G [N, N], |query| [M]) in fp32, 0 in padding whatever that holds."""
    M: tl.constexpr = rows.shape[0]
    N: tl.constexpr = cols.shape[0]
    depth = tl.arange(0, BLOCK_D)
    x_at = query + (rows * D)[:, None] + depth[None, :]
    y_at = source + (cols * D)[:, None] + depth[None, :]
    s = tl.zeros((M, N), tl.float32)
    g = tl.zeros((N, N), tl.float32)
    square = tl.zeros((M,), tl.float32)
    for d in range(0, D, BLOCK_D):
        inside = (depth < D - d)[None, :]
        x = tl.load(x_at + d, mask=row_valid[:, None] & inside, other=0.0)
        y = tl.load(y_at + d, mask=col_valid[:, None] & inside, other=0.0)
        s = matmul(x, tl.trans(y), s, PRECISION)
        g = matmul(y, tl.trans(y), g, PRECISION)
        wide = x.to(tl.float32)
        square += tl.sum(wide * wide, 1)
    return s, g, tl.sqrt(square)


@triton.jit(do_not_specialize=["threshold_high", "threshold_low", "keep_min"])
def _pairs_fwd_kernel(
    query,  # [B, N or 1, L, D]
    source,  # [B, N or 1, R, D]
    query_lengths,  # [B, N or 1]
    source_lengths,  # [B, N or 1]
    out,  # [B, N] fp32
    pairs,  # N
    query_sets,  # N or 1
    source_sets,  # N or 1
    L,
    R,
    D,
    smoothing,
    scale,
    threshold_high,
    threshold_low,
    keep_min,
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    AGGREGATE: tl.constexpr,
    RULE: tl.constexpr,
    LOW: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program b N + n: query set and source set of one pair."""
    pair = tl.program_id(0)
    rows, row_valid, queries = _set(pair, pairs, query_sets, query_lengths, L, QUERY_VARY, BLOCK_M)
    cols, col_valid, sources = _set(
        pair, pairs, source_sets, source_lengths, R, SOURCE_VARY, BLOCK_N
    )
    s, g, norm = _products(query, source, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    place = tl.zeros((BLOCK_M,), tl.int32)
    a, _ = attend(leaky(s), col_valid, place, smoothing, 1, BLOCK_M, 1)
    if RULE != "":
        a, _, _ = erase(
            a, col_valid, sources, threshold_high, threshold_low, keep_min, RULE, LOW, RENORMALIZE
        )
    sim, _, _ = cosine(s, a, g, norm, PRECISION)
    total = aggregate(sim, row_valid[None, :], scale, AGGREGATE)
    some = (queries > 0) & (sources > 0)
    tl.store(out + pair + tl.arange(0, 1), tl.where(some, total, 0.0))


@triton.jit(do_not_specialize=["threshold_high", "threshold_low", "keep_min"])
def _pairs_bwd_kernel(
    grad,  # [B, N] fp32
    query,  # [B, N or 1, L, D]
    source,  # [B, N or 1, R, D]
    query_lengths,  # [B, N or 1]
    source_lengths,  # [B, N or 1]
    d_scores,  # [B, N, L, R] fp32
    d_norm,  # [B, N, L] fp32: d total / d |query|, over |query|
    d_gram,  # [B, N, R, R] fp32: twice d total / d G
    pairs,
    query_sets,
    source_sets,
    L,
    R,
    D,
    smoothing,
    scale,
    threshold_high,
    threshold_low,
    keep_min,
    FOR_SOURCE: tl.constexpr,  # d_gram is wanted
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    AGGREGATE: tl.constexpr,
    RULE: tl.constexpr,
    LOW: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program b N + n: S again, and what the gradients of both sides need, 0 in padding."""
    pair = tl.program_id(0)
    rows, row_valid, _ = _set(pair, pairs, query_sets, query_lengths, L, QUERY_VARY, BLOCK_M)
    cols, col_valid, sources = _set(
        pair, pairs, source_sets, source_lengths, R, SOURCE_VARY, BLOCK_N
    )
    s, g, norm = _products(query, source, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    place = tl.zeros((BLOCK_M,), tl.int32)
    softmax, of_set = attend(leaky(s), col_valid, place, smoothing, 1, BLOCK_M, 1)
    a, keep, divisor = softmax, softmax, norm  # erasing gives the last two a meaning
    if RULE != "":
        a, keep, divisor = erase(
            a, col_valid, sources, threshold_high, threshold_low, keep_min, RULE, LOW, RENORMALIZE
        )
    sim, context, gram_a = cosine(s, a, g, norm, PRECISION)
    member = row_valid[None, :] & (sources > 0)
    d_sim = aggregate_grad(tl.load(grad + pair + tl.arange(0, 1)), sim, member, scale, AGGREGATE)
    d_s, d_own, d_context = scores_grad(
        d_sim, s, softmax, of_set, a, keep, divisor, sim, context, gram_a, norm, place, smoothing,
        RULE, RENORMALIZE, 1, BLOCK_M, 1,
    )  # fmt: skip
    row, col = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    valid = row_valid[:, None] & col_valid[None, :]
    own = pair.to(tl.int64) * L + row
    tl.store(d_norm + own, tl.where(row_valid, d_own, 0.0), mask=row < L)
    at = d_scores + (own * R)[:, None] + col[None, :]
    tl.store(at, tl.where(valid, d_s, 0.0), mask=(row < L)[:, None] & (col < R)[None, :])
    if FOR_SOURCE:
        a = tl.where(valid, a, 0.0)
        weighted = a * (2.0 * d_context)[:, None]
        total = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
        total = matmul(tl.trans(weighted), a, total, PRECISION)
        at = d_gram + ((pair.to(tl.int64) * R + col) * R)[:, None] + col[None, :]
        tl.store(at, total, mask=(col < R)[:, None] & (col < R)[None, :])


@triton.jit
def _side_tile(side, rows, valid, depth, D):
    """[BLOCK, BLOCK_D] of a side in fp32, 0 in padding whatever that holds."""
    at = side + (rows * D)[:, None] + depth[None, :]
    return tl.load(at, mask=valid[:, None] & (depth < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _pairs_query_grad_kernel(
    d_scores,  # [B, N, L, R] fp32
    d_norm,  # [B, N, L] fp32
    query,  # [B, N or 1, L, D]
    source,  # [B, N or 1, R, D]
    query_lengths,  # [B, N or 1]
    source_lengths,  # [B, N or 1]
    d_query,  # [B, N or 1, L, D] fp32
    pairs,
    query_sets,
    source_sets,
    L,
    R,
    D,
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (set, d): BLOCK_D columns of one query set, over all pairs that share it."""
    shared = pairs // query_sets
    first = tl.program_id(0) * shared
    depth = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row, col = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside = (row < L)[:, None] & (col < R)[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    own = tl.zeros((BLOCK_M,), tl.float32)
    for n in range(0, shared):
        pair = (first + n).to(tl.int64)
        d_s = tl.load(
            d_scores + ((pair * L + row) * R)[:, None] + col[None, :], mask=inside, other=0.0
        )
        own += tl.load(d_norm + pair * L + row, mask=row < L, other=0.0)
        cols, col_valid, _ = _set(
            first + n, pairs, source_sets, source_lengths, R, SOURCE_VARY, BLOCK_N
        )
        total = matmul(d_s, _side_tile(source, cols, col_valid, depth, D), total, PRECISION)
    rows, row_valid, _ = _set(first, pairs, query_sets, query_lengths, L, QUERY_VARY, BLOCK_M)
    total += own[:, None] * _side_tile(query, rows, row_valid, depth, D)
    at = d_query + (rows * D)[:, None] + depth[None, :]
    tl.store(at, total, mask=(row < L)[:, None] & (depth < D)[None, :])


@triton.jit
def _pairs_source_grad_kernel(
    d_scores,  # [B, N, L, R] fp32
    d_gram,  # [B, N, R, R] fp32
    query,  # [B, N or 1, L, D]
    source,  # [B, N or 1, R, D]
    query_lengths,  # [B, N or 1]
    source_lengths,  # [B, N or 1]
    d_source,  # [B, N or 1, R, D] fp32
    pairs,
    query_sets,
    source_sets,
    L,
    R,
    D,
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (set, d): BLOCK_D columns of one source set, over all pairs that share it."""
    shared = pairs // source_sets
    first = tl.program_id(0) * shared
    depth = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    row, col = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    across = (col < R)[:, None] & (row < L)[None, :]
    square = (col < R)[:, None] & (col < R)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    gram = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
    for n in range(0, shared):
        pair = (first + n).to(tl.int64)
        at = d_scores + ((pair * L + row) * R)[None, :] + col[:, None]
        d_s = tl.load(at, mask=across, other=0.0)
        gram += tl.load(
            d_gram + ((pair * R + col) * R)[:, None] + col[None, :], mask=square, other=0.0
        )
        rows, row_valid, _ = _set(
            first + n, pairs, query_sets, query_lengths, L, QUERY_VARY, BLOCK_M
        )
        total = matmul(d_s, _side_tile(query, rows, row_valid, depth, D), total, PRECISION)
    cols, col_valid, _ = _set(first, pairs, source_sets, source_lengths, R, SOURCE_VARY, BLOCK_N)
    total = matmul(gram, _side_tile(source, cols, col_valid, depth, D), total, PRECISION)
    at = d_source + (cols * D)[:, None] + depth[None, :]
    tl.store(at, total, mask=(col < R)[:, None] & (depth < D)[None, :])
