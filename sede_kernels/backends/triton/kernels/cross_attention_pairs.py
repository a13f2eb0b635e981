# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Region-word similarity of chosen pairs: a program an image-caption pair, its contexts formed.

Pair b N + n has the query set b query_row + n query_step, and a source set likewise. ``lost`` marks
the pairs that are wanted, where not all are. Contexts go by BLOCK_D columns and never leave the
chip; the backward writes dS and the attention, from which a kernel a side makes its gradient
(``kernels.cross_attention_sides``).
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.cross_attention_tile import (
    COSINE_EPS,
    aggregate,
    aggregate_grad,
    attend,
    attention_grad,
    cosine_grad,
    erase,
    leaky,
    scores,
)
from sede_kernels.backends.triton.kernels.device import matmul


@triton.jit
def set_rows(at, lengths, fragments, VARY: tl.constexpr, BLOCK: tl.constexpr):
    """Of set ``at``: (rows of its side's matrix [BLOCK] int64, which are valid, their number)."""
    length = fragments
    if VARY:
        length = tl.load(lengths + at).to(tl.int32)
    index = tl.arange(0, BLOCK)
    return at.to(tl.int64) * fragments + index, index < length, length


@triton.jit
def attended(a, y, acc, PRECISION: tl.constexpr):
    """A y + acc with all digits of ``a`` (fp32): a 16-bit y meets it in parts of its own type."""
    if y.dtype == tl.float32:
        acc = matmul(a, y, acc, PRECISION)
    else:
        PARTS: tl.constexpr = 3 if y.dtype == tl.bfloat16 else 2
        for _ in tl.static_range(PARTS):
            part = a.to(y.dtype)
            acc = matmul(part, y, acc, PRECISION)
            a = a - part.to(tl.float32)
    return acc


@triton.jit
def _sides_at(query, source, rows, cols, D, BLOCK_D: tl.constexpr):
    """Pointers to the first columns of both sets, and the columns [BLOCK_D]."""
    depth = tl.arange(0, BLOCK_D)
    x_at = query + (rows * D)[:, None] + depth[None, :]
    y_at = source + (cols * D)[:, None] + depth[None, :]
    return x_at, y_at, depth


@triton.jit
def _cosine(
    query,
    source,
    a,  # [M, N]
    rows,  # [M]
    row_valid,  # [M]
    cols,  # [N]
    col_valid,  # [N]
    D,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(similarity [M], |context| [M], |query| [M]) from the contexts a V."""
    M: tl.constexpr = rows.shape[0]
    x_at, y_at, depth = _sides_at(query, source, rows, cols, D, BLOCK_D)
    dot = tl.zeros((M,), tl.float32)
    square = tl.zeros((M,), tl.float32)
    own = tl.zeros((M,), tl.float32)
    for d in range(0, D, BLOCK_D):
        inside = (depth < D - d)[None, :]
        x = tl.load(x_at + d, mask=row_valid[:, None] & inside, other=0.0).to(tl.float32)
        y = tl.load(y_at + d, mask=col_valid[:, None] & inside, other=0.0)
        context = attended(a, y, tl.zeros((M, BLOCK_D), tl.float32), PRECISION)
        dot += tl.sum(context * x, 1)
        square += tl.sum(context * context, 1)
        own += tl.sum(x * x, 1)
    size, norm = tl.sqrt(square), tl.sqrt(own)
    return dot / tl.maximum(norm * size, COSINE_EPS), size, norm


@triton.jit
def _attention_grad_of_contexts(
    query,
    source,
    a,  # [M, N]
    along,  # [M] see ``pull``
    rows,  # [M]
    row_valid,  # [M]
    cols,  # [N]
    col_valid,  # [N]
    D,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[M, N]: d query.context / d a less what the norm of the context takes away."""
    M: tl.constexpr = rows.shape[0]
    N: tl.constexpr = cols.shape[0]
    x_at, y_at, depth = _sides_at(query, source, rows, cols, D, BLOCK_D)
    d_a = tl.zeros((M, N), tl.float32)
    for d in range(0, D, BLOCK_D):
        inside = (depth < D - d)[None, :]
        x = tl.load(x_at + d, mask=row_valid[:, None] & inside, other=0.0).to(tl.float32)
        y = tl.load(y_at + d, mask=col_valid[:, None] & inside, other=0.0)
        context = attended(a, y, tl.zeros((M, BLOCK_D), tl.float32), PRECISION)
        d_a = attended(x - along[:, None] * context, tl.trans(y), d_a, PRECISION)
    return d_a


@triton.jit
def wanted(pair, lost, MARKED: tl.constexpr):
    """Whether a pair is to be computed."""
    if MARKED:
        return tl.load(lost + pair).to(tl.int32) > 0
    return pair >= 0


@triton.jit(do_not_specialize=["query_row", "query_step", "source_row", "source_step",
                               "threshold_high", "threshold_low", "keep_min"])  # fmt: skip
def _pairs_fwd_kernel(
    query,  # [query sets, L, D]
    source,  # [source sets, R, D]
    query_lengths,  # [query sets]
    source_lengths,  # [source sets]
    lost,  # [B, N] int8
    out,  # [B, N] fp32
    pairs,  # N
    query_row,
    query_step,
    source_row,
    source_step,
    L,
    R,
    D,
    stride_ob,
    stride_on,
    smoothing,
    scale,
    threshold_high,
    threshold_low,
    keep_min,
    MARKED: tl.constexpr,
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
    """Program b N + n: one pair, if it is wanted."""
    pair = tl.program_id(0)
    if not wanted(pair, lost, MARKED):
        return
    b, n = pair // pairs, pair % pairs
    rows, row_valid, queries = set_rows(
        b * query_row + n * query_step, query_lengths, L, QUERY_VARY, BLOCK_M
    )
    cols, col_valid, sources = set_rows(
        b * source_row + n * source_step, source_lengths, R, SOURCE_VARY, BLOCK_N
    )
    s = scores(query, source, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    place = tl.zeros((BLOCK_M,), tl.int32)
    a, _ = attend(leaky(s), col_valid, place, smoothing, 1, BLOCK_M, 1)
    if RULE != "":
        a, _, _ = erase(
            a, col_valid, sources, threshold_high, threshold_low, keep_min, RULE, LOW,
            RENORMALIZE,
        )  # fmt: skip
    sim, _, _ = _cosine(query, source, a, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    total = aggregate(sim, row_valid[None, :], scale, AGGREGATE)
    some = (queries > 0) & (sources > 0)
    at = out + b.to(tl.int64) * stride_ob + n.to(tl.int64) * stride_on
    tl.store(at + tl.arange(0, 1), tl.where(some, total, 0.0))


@triton.jit(do_not_specialize=["query_row", "query_step", "source_row", "source_step",
                               "threshold_high", "threshold_low", "keep_min"])  # fmt: skip
def _pairs_bwd_kernel(
    grad,  # [B, N] fp32
    query,  # [query sets, L, D]
    source,  # [source sets, R, D]
    query_lengths,  # [query sets]
    source_lengths,  # [source sets]
    lost,  # [B, N] int8
    d_scores,  # [B, N, L, R] fp32, without what query.context gives
    attention,  # [B, N, L, R] fp32
    d_dot,  # [B, N, L] fp32: d total / d query.context
    along,  # [B, N, L] fp32: d |context| takes so many times the context from the query
    d_norm,  # [B, N, L] fp32: d total / d |query|, over |query|
    pairs,
    query_row,
    query_step,
    source_row,
    source_step,
    L,
    R,
    D,
    stride_gb,
    stride_gn,
    smoothing,
    scale,
    threshold_high,
    threshold_low,
    keep_min,
    MARKED: tl.constexpr,
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
    """Program b N + n: S again, and what the gradients of both sides need, 0 in padding.

    ``d_scores`` holds S while the contexts are formed.
    """
    pair = tl.program_id(0)
    if not wanted(pair, lost, MARKED):
        return
    b, n = pair // pairs, pair % pairs
    rows, row_valid, queries = set_rows(
        b * query_row + n * query_step, query_lengths, L, QUERY_VARY, BLOCK_M
    )
    cols, col_valid, sources = set_rows(
        b * source_row + n * source_step, source_lengths, R, SOURCE_VARY, BLOCK_N
    )
    row, col = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    own = pair.to(tl.int64) * L + row
    at = (own * R)[:, None] + col[None, :]
    inside = (row < L)[:, None] & (col < R)[None, :]
    s = scores(query, source, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D)
    tl.store(d_scores + at, s, mask=inside)
    place = tl.zeros((BLOCK_M,), tl.int32)
    a, _ = attend(leaky(s), col_valid, place, smoothing, 1, BLOCK_M, 1)
    if RULE != "":
        a, _, _ = erase(
            a, col_valid, sources, threshold_high, threshold_low, keep_min, RULE, LOW,
            RENORMALIZE,
        )  # fmt: skip
    valid = row_valid[:, None] & col_valid[None, :]
    tl.store(attention + at, tl.where(valid, a, 0.0), mask=inside)
    sim, size, norm = _cosine(
        query, source, a, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D
    )
    member = row_valid[None, :] & (sources > 0)
    grad_at = grad + b.to(tl.int64) * stride_gb + n.to(tl.int64) * stride_gn
    d_sim = aggregate_grad(tl.load(grad_at + tl.arange(0, 1)), sim, member, scale, AGGREGATE)
    of_dot, of_norm, free = cosine_grad(d_sim, sim, size, norm)
    # d query.context is that of a vector x - along context: at right angles to the context.
    of_size = tl.where(free, sim * norm, 0.0) / tl.where(free, size, 1.0)
    d_a = of_dot[:, None] * _attention_grad_of_contexts(
        query, source, a, of_size, rows, row_valid, cols, col_valid, D, PRECISION, BLOCK_D
    )
    # S and the attention come back from memory: kept through two walks they would spill.
    tl.debug_barrier()
    s = tl.load(d_scores + at, mask=inside, other=0.0)
    a = tl.load(attention + at, mask=inside, other=0.0)
    tl.debug_barrier()
    softmax, of_set = attend(leaky(s), col_valid, place, smoothing, 1, BLOCK_M, 1)
    # What erasing kept and is 0 has no gradient either.
    keep, divisor = a != 0.0, tl.full((BLOCK_M,), 1.0, tl.float32)
    if RENORMALIZE:
        total = tl.sum(tl.where(keep, softmax, 0.0), 1)
        divisor = tl.where(total == 0.0, 1.0, total)
    single = tl.zeros((1,), tl.int32) + queries == 1
    d_s = attention_grad(
        d_a, s, softmax, of_set, a, keep, divisor, single, place, smoothing, RULE,
        RENORMALIZE, 1, BLOCK_M, 1,
    )  # fmt: skip
    tl.store(d_dot + own, tl.where(row_valid, of_dot, 0.0), mask=row < L)
    tl.store(along + own, tl.where(row_valid, of_size, 0.0), mask=row < L)
    tl.store(d_norm + own, tl.where(row_valid, of_norm, 0.0), mask=row < L)
    tl.store(d_scores + at, tl.where(valid, d_s, 0.0), mask=inside)
