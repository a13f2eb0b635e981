# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Region-word similarity by the Gram form: S is one tile in registers, never in memory.

A program holds one source set (N padded sources) and walks tiles of M queries, several query sets
each. Sources lie along the columns: softmax, erasing and both sums are row operations; only the
norm over the queries of a set runs down the rows.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.cross_attention_tile import (
    aggregate,
    aggregate_grad,
    attend,
    attention_grad,
    cancels,
    cosine,
    cosine_grad,
    erase,
    leaky,
    scores,
    set_at,
    set_range,
)
from sede_kernels.backends.triton.kernels.device import matmul


@triton.jit
def _gram_tile(p, index, W8):
    """(offsets [N, N], mask) of one set; W is a multiple of 8, for wide loads."""
    W = W8 * 8
    at = (p.to(tl.int64) * W + index)[:, None] * W + index[None, :]
    return at, (index < W)[:, None] & (index < W)[None, :]


@triton.jit
def _sizes_of(sizes, p, index, W8):
    """(|v| [N], sums of absolute values in a row of G [N]) of one set."""
    W = W8 * 8
    at = sizes + 2 * p.to(tl.int64) * W + index
    return (
        tl.load(at, mask=index < W, other=0.0),
        tl.load(at + W, mask=index < W, other=0.0),
    )


@triton.jit
def _gram_kernel(
    source,  # [P, R, D]
    lengths,  # [P]
    gram,  # [P, W, W] fp32
    sizes,  # [P, 2, W] fp32: |v|, and the sums of the absolute values in a row of G
    R,
    W8,
    D,
    HAS_LENGTHS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program p: G = V V^T of one set, zero in its padding."""
    p = tl.program_id(0).to(tl.int64)
    length = R
    if HAS_LENGTHS:
        length = tl.load(lengths + p).to(tl.int32)
    index = tl.arange(0, BLOCK_R)
    valid = index < length
    rows = p * R + index
    g = scores(source, source, rows, valid, rows, valid, D, PRECISION, BLOCK_D)
    at, inside = _gram_tile(p, index, W8)
    tl.store(gram + at, g, mask=inside)
    own = tl.sum(tl.where(index[:, None] == index[None, :], g, 0.0), 0)
    W = W8 * 8
    tl.store(sizes + 2 * p * W + index, tl.sqrt(tl.maximum(own, 0.0)), mask=index < W)
    tl.store(sizes + (2 * p + 1) * W + index, tl.sum(tl.abs(g), 0), mask=index < W)


@triton.jit
def _places(
    query_bounds,
    source_bounds,
    Q,
    P,
    query_bucket,
    source_bucket,
    QUERY_VARY: tl.constexpr,
    SOURCE_VARY: tl.constexpr,
    SETS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """(place of the source set, end, first place of the query sets, end) of this program.

    Programs go through GROUP source sets before the next tile of queries, which both stay in L2.
    """
    tiles = tl.cdiv(Q, SETS)
    group = tl.program_id(0) // (GROUP * tiles)
    within = tl.program_id(0) % (GROUP * tiles)
    size = tl.minimum(P - group * GROUP, GROUP)
    source_first, source_end = set_range(source_bounds, source_bucket, P, SOURCE_VARY)
    query_first, query_end = set_range(query_bounds, query_bucket, Q, QUERY_VARY)
    source_place = source_first + group * GROUP + within % size
    return source_place, source_end, query_first + (within // size) * SETS, query_end


@triton.jit
def _query_rows(
    query_place,
    query_end,
    order,
    lengths,
    L,
    VARY: tl.constexpr,
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of each row [M]: place of its set in the tile, existing, valid, row of ``query``."""
    row = tl.arange(0, BLOCK_M)
    place, fragment = row // STRIDE, row % STRIDE
    present = (place < SETS) & (query_place + place < query_end)
    q, length = set_at(query_place + place, present, order, lengths, L, VARY)
    return place, present & (fragment < L), fragment < length, q.to(tl.int64) * L + fragment


@triton.jit
def _marks(cancelled, member):
    """[G] int32: 1 for the sets in which a query's context [M] cancels."""
    return tl.max((member & cancelled[None, :]).to(tl.int32), 1)


@triton.jit(do_not_specialize=["query_bucket", "source_bucket", "threshold_high", "threshold_low",
                               "keep_min"])  # fmt: skip
def _cross_attention_fwd_kernel(
    query,  # [Q, L, D]
    source,  # [P, R, D]
    query_norm,  # [Q, L] fp32
    gram,  # [P, W, W] fp32
    sizes,  # [P, 2, W] fp32
    query_lengths,  # [Q]
    source_lengths,  # [P]
    query_order,  # [Q] sets by length
    source_order,  # [P]
    query_bounds,  # [buckets + 1] places in the order
    source_bounds,  # [buckets + 1]
    out,  # [P, Q] fp32
    lost,  # [P, Q] int8: a context cancels, and the similarity is to be computed with contexts
    Q,
    L,
    P,
    R,
    W8,
    D,
    stride_op,
    stride_oq,
    query_bucket,
    source_bucket,
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
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program i: one tile of SETS query sets against one source set."""
    source_place, source_end, query_place, query_end = _places(
        query_bounds, source_bounds, Q, P, query_bucket, source_bucket, QUERY_VARY, SOURCE_VARY,
        SETS, GROUP,
    )  # fmt: skip
    if (source_place >= source_end) | (query_place >= query_end):
        return
    p, source_length = set_at(
        source_place, source_place < source_end, source_order, source_lengths, R, SOURCE_VARY
    )
    index = tl.arange(0, BLOCK_N)
    col_valid = index < source_length
    place, _, row_valid, rows = _query_rows(
        query_place, query_end, query_order, query_lengths, L, QUERY_VARY, SETS, STRIDE, BLOCK_M
    )
    cols = p.to(tl.int64) * R + index
    s = scores(query, source, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    a, _ = attend(leaky(s), col_valid, place, smoothing, SETS, STRIDE, BLOCK_G)
    if RULE != "":
        a, _, _ = erase(
            a, col_valid, source_length, threshold_high, threshold_low, keep_min, RULE, LOW,
            RENORMALIZE,
        )  # fmt: skip
    norm = tl.load(query_norm + rows, mask=row_valid, other=0.0)
    at, inside = _gram_tile(p, index, W8)
    g = tl.load(gram + at, mask=inside, other=0.0)
    # The sizes are loaded after the product: with them in registers it spilled.
    sim, square, _ = cosine(s, a, g, norm, PRECISION)
    of_source, masses = _sizes_of(sizes, p, index, W8)
    cancelled = cancels(square, a, of_source, masses)
    n = tl.arange(0, BLOCK_G)
    member = (n[:, None] == place[None, :]) & row_valid[None, :]
    total = aggregate(sim, member, scale, AGGREGATE)
    some = (tl.sum(member.to(tl.int32), 1) > 0) & (source_length > 0)
    there = (n < SETS) & (query_place + n < query_end)
    columns, _ = set_at(query_place + n, there, query_order, query_lengths, L, QUERY_VARY)
    at = out + p.to(tl.int64) * stride_op + columns.to(tl.int64) * stride_oq
    tl.store(at, tl.where(some, total, 0.0), mask=there)
    marks = _marks(cancelled, member & (source_length > 0))
    tl.store(lost + p.to(tl.int64) * Q + columns, marks.to(tl.int8), mask=there)


@triton.jit(do_not_specialize=["query_bucket", "source_bucket", "threshold_high", "threshold_low",
                               "keep_min"])  # fmt: skip
def _cross_attention_bwd_kernel(
    grad,  # [P, Q] fp32
    query,  # [Q, L, D]
    source,  # [P, W, D]
    query_norm,  # [Q, L] fp32
    gram,  # [P, W, W] fp32
    query_lengths,  # [Q]
    source_lengths,  # [P]
    query_order,  # [Q]
    source_order,  # [P]
    query_bounds,  # [buckets + 1]
    source_bounds,  # [buckets + 1]
    d_scores,  # [Q, L, P, W] in the operand dtype, zero at first
    attention,  # [Q, L, P, W] likewise
    d_norm,  # [P, Q, L] fp32: d total / d |query|, over |query|; zero at first
    d_square,  # [P, Q, L] fp32: d total / d |context|^2; zero at first
    lost,  # [P, Q] int8, from the forward: such pairs give zeros
    Q,
    L,
    P,
    R,
    W8,
    D,
    stride_gp,
    stride_gq,
    query_bucket,
    source_bucket,
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
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program i: dS of one tile, as in the forward; also what the gradient of G needs."""
    source_place, source_end, query_place, query_end = _places(
        query_bounds, source_bounds, Q, P, query_bucket, source_bucket, QUERY_VARY, SOURCE_VARY,
        SETS, GROUP,
    )  # fmt: skip
    if (source_place >= source_end) | (query_place >= query_end):
        return
    p, source_length = set_at(
        source_place, source_place < source_end, source_order, source_lengths, R, SOURCE_VARY
    )
    index = tl.arange(0, BLOCK_N)
    col_valid = index < source_length
    place, exists, row_valid, rows = _query_rows(
        query_place, query_end, query_order, query_lengths, L, QUERY_VARY, SETS, STRIDE, BLOCK_M
    )
    W = W8 * 8
    cols = p.to(tl.int64) * W + index
    s = scores(query, source, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    softmax, norm = attend(leaky(s), col_valid, place, smoothing, SETS, STRIDE, BLOCK_G)
    a, keep, divisor = softmax, softmax, place  # erasing gives the last two a meaning
    if RULE != "":
        a, keep, divisor = erase(
            a, col_valid, source_length, threshold_high, threshold_low, keep_min, RULE, LOW,
            RENORMALIZE,
        )  # fmt: skip
    at = (rows * P + p)[:, None] * W + index[None, :]
    inside = exists[:, None] & (index < W)[None, :]
    valid = row_valid[:, None] & col_valid[None, :]
    tl.store(attention + at, tl.where(valid, a, 0.0).to(query.dtype.element_ty), mask=inside)
    size_of_query = tl.load(query_norm + rows, mask=row_valid, other=0.0)
    gram_at, gram_inside = _gram_tile(p, index, W8)
    g = tl.load(gram + gram_at, mask=gram_inside, other=0.0)
    sim, square, gram_a = cosine(s, a, g, size_of_query, PRECISION)
    context = tl.sqrt(tl.maximum(square, 0.0))
    n = tl.arange(0, BLOCK_G)
    member = (n[:, None] == place[None, :]) & row_valid[None, :] & (source_length > 0)
    there = (n < SETS) & (query_place + n < query_end)
    columns, queries = set_at(query_place + n, there, query_order, query_lengths, L, QUERY_VARY)
    marks = tl.load(lost + p.to(tl.int64) * Q + columns, mask=there, other=0).to(tl.int32)
    grad_at = grad + p.to(tl.int64) * stride_gp + columns.to(tl.int64) * stride_gq
    d_total = tl.where(marks > 0, 0.0, tl.load(grad_at, mask=there, other=0.0))
    d_sim = aggregate_grad(d_total, sim, member, scale, AGGREGATE)
    d_dot, d_own, free = cosine_grad(d_sim, sim, context, size_of_query)
    # d sim / d |context|^2 = -sim / (2 |context|^2)
    radial = tl.where(free, d_sim * sim, 0.0)
    d_context = -0.5 * radial / tl.where(free, context * context, 1.0)
    d_a = d_dot[:, None] * s + (2.0 * d_context)[:, None] * gram_a
    d_s = d_dot[:, None] * a + attention_grad(
        d_a, s, softmax, norm, a, keep, divisor, queries == 1, place, smoothing, RULE, RENORMALIZE,
        SETS, STRIDE, BLOCK_G,
    )  # fmt: skip
    row_at = p.to(tl.int64) * Q * L + rows
    tl.store(d_norm + row_at, d_own, mask=row_valid)
    tl.store(d_square + row_at, d_context, mask=row_valid)
    tl.store(d_scores + at, tl.where(valid, d_s, 0.0).to(query.dtype.element_ty), mask=inside)


@triton.jit
def _gram_bwd_kernel(
    attention,  # [N, P, W] of N queries
    d_square,  # [P, N]
    d_gram,  # [P, W, W] fp32
    N,
    P,
    W8,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program p: dG of one set, the sum over all queries of d_square a a^T."""
    p = tl.program_id(0).to(tl.int64)
    W = W8 * 8
    index = tl.arange(0, BLOCK_R)
    query = tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_R, BLOCK_R), tl.float32)
    for first in range(0, N, BLOCK_N):
        there = query < N - first
        at = ((query + first).to(tl.int64) * P + p)[:, None] * W + index[None, :]
        a = tl.load(attention + at, mask=there[:, None] & (index < W)[None, :], other=0.0)
        weight = tl.load(d_square + p * N + first + query, mask=there, other=0.0)
        weighted = (a.to(tl.float32) * weight[:, None]).to(a.dtype)
        # The sum is symmetric, and so ``a``, which is copied ahead, is the operand that a product
        # reads from shared memory as a whole.
        total = matmul(tl.trans(a), weighted, total, PRECISION)
    at, inside = _gram_tile(p, index, W8)
    tl.store(d_gram + at, total, mask=inside)
