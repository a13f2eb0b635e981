# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Device functions of the region-word similarity: one tile of query sets against one source set.

Shapes: M rows of a tile (queries of several sets), N sources of one set (padded), G sets of a tile
(padded). A set takes STRIDE rows of a tile, its first ``length`` ones valid.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import LOG2E, NEG_INF, matmul
from sede_kernels.backends.triton.kernels.erase import keep_mask

NORM_EPS = tl.constexpr(1e-8)
COSINE_EPS = tl.constexpr(1e-8)
#: |context|^2 as a^T G a counts while what cancelled in it was at most so many times as large.
CANCELLED = tl.constexpr(16.0)


@triton.jit
def finite_or_zero(peak):
    """The maximum to subtract: 0 where nothing is valid."""
    return tl.where(peak == NEG_INF, 0.0, peak)


@triton.jit
def leaky(s):
    """Leaky ReLU of slope 0.1; NaN stays."""
    return tl.where(s > 0, s, 0.1 * s)


@triton.jit
def set_range(bounds, bucket, total, VARY: tl.constexpr):
    """(first, end) places of a bucket of sets in their order."""
    first, end = 0, total
    if VARY:
        first = tl.load(bounds + bucket).to(tl.int32)
        end = tl.load(bounds + bucket + 1).to(tl.int32)
    return first, end


@triton.jit
def set_at(place, present, order, lengths, fragments, VARY: tl.constexpr):
    """(set, its length) at a place of the order; length 0 where there is none."""
    found = place
    length = tl.where(present, fragments, 0)
    if VARY:
        found = tl.load(order + place, mask=present, other=0).to(tl.int32)
        length = tl.load(lengths + found, mask=present, other=0).to(tl.int32)
    return found, length


@triton.jit
def set_sums(
    x,  # [M, N]
    place,  # [M] which set of the tile a row belongs to
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
    G: tl.constexpr,
):
    """[G, N] sums over the rows of each set."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    if SETS * STRIDE == M:
        return tl.sum(tl.reshape(x, (SETS, STRIDE, N)), 1)
    total = tl.zeros((G, N), tl.float32)
    n = tl.arange(0, G)
    for g in tl.static_range(SETS):
        own = tl.sum(tl.where((place == g)[:, None], x, 0.0), 0)
        total = tl.where((n == g)[:, None], own[None, :], total)
    return total


@triton.jit
def spread(
    y,  # [G, N]
    place,  # [M]
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """[M, N]: the row of its set in every row of a tile."""
    M: tl.constexpr = place.shape[0]
    G: tl.constexpr = y.shape[0]
    N: tl.constexpr = y.shape[1]
    if SETS * STRIDE == M:
        return tl.reshape(tl.broadcast_to(y[:, None, :], (SETS, STRIDE, N)), (M, N))
    rows = tl.zeros((M, N), tl.float32)
    n = tl.arange(0, G)
    for g in tl.static_range(SETS):
        own = tl.sum(tl.where((n == g)[:, None], y, 0.0), 0)
        rows = tl.where((place == g)[:, None], own[None, :], rows)
    return rows


@triton.jit
def scores(
    query,  # [Q L, D]
    source,  # [P R, D]
    rows,  # [M] int64 row of ``query``
    row_valid,  # [M]
    cols,  # [N] int64 row of ``source``
    col_valid,  # [N]
    D,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[M, N] fp32: S of the tile, 0 in padding whatever that holds."""
    M: tl.constexpr = rows.shape[0]
    N: tl.constexpr = cols.shape[0]
    depth = tl.arange(0, BLOCK_D)
    x_at = query + (rows * D)[:, None] + depth[None, :]
    y_at = source + (cols * D)[:, None] + depth[None, :]
    s = tl.zeros((M, N), tl.float32)
    for d in range(0, D, BLOCK_D):
        inside = (depth < D - d)[None, :]
        x = tl.load(x_at + d, mask=row_valid[:, None] & inside, other=0.0)
        y = tl.load(y_at + d, mask=col_valid[:, None] & inside, other=0.0)
        s = matmul(x, tl.trans(y), s, PRECISION)
    return s


@triton.jit
def attend(
    x,  # [M, N] clipped
    col_valid,  # [N]
    place,  # [M]
    smoothing,
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
    G: tl.constexpr,
):
    """(softmax over the sources [M, N], norm over the queries of a set [G, N])."""
    norm = tl.sqrt(set_sums(x * x, place, SETS, STRIDE, G))
    sharpness = spread(smoothing / (norm + NORM_EPS), place, SETS, STRIDE)
    logits = tl.where(col_valid[None, :], x * sharpness, NEG_INF)
    peak = finite_or_zero(tl.max(logits, 1))
    p = tl.exp2((logits - peak[:, None]) * LOG2E)
    total = tl.sum(p, 1)
    return p / tl.where(total == 0.0, 1.0, total)[:, None], norm


@triton.jit
def erase(
    p,  # [M, N]
    col_valid,  # [N]
    length,
    threshold_high,
    threshold_low,
    keep_min,
    RULE: tl.constexpr,
    LOW: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    """(attention after erasing [M, N], kept [M, N], divisor [M])."""
    M: tl.constexpr = p.shape[0]
    N: tl.constexpr = p.shape[1]
    valid = tl.broadcast_to(col_valid[None, :], (M, N))
    count = tl.zeros((M, 1), tl.int32) + length
    if RULE == "prob":
        # The cut goes in as a threshold of each row: fp64 roots would take half the registers.
        root = tl.sqrt_rn(p).to(tl.float64)
        total = tl.sum(root, 1)
        cut = tl.sum(p.to(tl.float64) * root, 1) / tl.where(total == 0.0, 1.0, total)
        bits = cut.to(tl.int64, bitcast=True)[:, None]
        high, low = (bits >> 32).to(tl.int32), bits.to(tl.int32)
        keep = keep_mask(p, valid, count, high, low, keep_min, "absolute", LOW)
    else:
        keep = keep_mask(p, valid, count, threshold_high, threshold_low, keep_min, RULE, LOW)
    kept = tl.where(keep, p, 0.0)
    divisor = tl.full((M,), 1.0, tl.float32)
    if RENORMALIZE:
        total = tl.sum(kept, 1)
        divisor = tl.where(total == 0.0, 1.0, total)
    return kept / divisor[:, None], keep, divisor


@triton.jit
def cosine(
    s,  # [M, N]
    a,  # [M, N]
    gram,  # [N, N]
    query_norm,  # [M]
    PRECISION: tl.constexpr,
):
    """(similarity [M], |context|^2 [M], G a [M, N])."""
    gram_a = matmul(a, gram, tl.zeros_like(s), PRECISION)
    square = tl.sum(a * gram_a, 1)
    # Rounding can leave a tiny negative square.
    context = tl.sqrt(tl.maximum(square, 0.0))
    size = tl.maximum(query_norm * context, COSINE_EPS)
    return tl.sum(a * s, 1) / size, square, gram_a


@triton.jit
def cancels(
    square,  # [M] a^T G a
    a,  # [M, N]
    lengths,  # [N]
    masses,  # [N]
):
    """[M]: |context|^2 is small beside what a^T G a adds up; NaN is not.

    That is bounded by (sum a |v|)^2, closely where the sources point the same way, and by
    sum_r a_r^2 sum_k |g_rk|, closely where they are nearly orthogonal.
    """
    reach = tl.sum(a * lengths[None, :], 1)
    mass = tl.sum(a * a * masses[None, :], 1)
    return square * CANCELLED < tl.minimum(reach * reach, mass)


@triton.jit
def weights(
    sim,  # [M]
    member,  # [G, M] rows of a set
    scale,
    AGGREGATE: tl.constexpr,
):
    """(weight of a query in its set's aggregate [G, M], peak [G])."""
    peak = tl.max(tl.where(member, sim[None, :], NEG_INF), 1)
    # The maximum leaves NaN out: a set with one becomes NaN.
    peak += 0.0 * tl.sum(tl.where(member, sim[None, :], 0.0), 1)
    if AGGREGATE == "lse":
        shifted = sim[None, :] - finite_or_zero(peak)[:, None]
        return tl.where(member, tl.exp2(shifted * scale * LOG2E), 0.0), peak
    if AGGREGATE == "max":
        member = member & (sim[None, :] == peak[:, None])
    return tl.where(member, 1.0, 0.0), peak


@triton.jit
def aggregate(
    sim,  # [M]
    member,  # [G, M]
    scale,
    AGGREGATE: tl.constexpr,
):
    """[G] aggregate of each set; any value for sets without queries."""
    weight, peak = weights(sim, member, scale, AGGREGATE)
    if AGGREGATE == "max":
        return peak
    if AGGREGATE == "lse":
        return peak + tl.log2(tl.sum(weight, 1)) / (scale * LOG2E)
    total = tl.sum(tl.where(member, sim[None, :], 0.0), 1)
    if AGGREGATE == "mean":
        total = total / tl.maximum(tl.sum(weight, 1), 1.0)
    return total


@triton.jit
def aggregate_grad(
    grad,  # [G]
    sim,  # [M]
    member,  # [G, M]
    scale,
    AGGREGATE: tl.constexpr,
):
    """[M] gradient of each query's similarity."""
    weight, _ = weights(sim, member, scale, AGGREGATE)
    if AGGREGATE != "sum":
        total = tl.sum(weight, 1)
        grad = grad / tl.where(total == 0.0, 1.0, total)
    return tl.sum(tl.where(member, weight * grad[:, None], 0.0), 0)


@triton.jit
def cosine_grad(
    d_sim,  # [M]
    sim,  # [M]
    context,  # [M] |context|
    query_norm,  # [M]
):
    """Of each query [M]: (d total / d query.context, that of |query| over |query|, norms count)."""
    both = query_norm * context
    free = both > COSINE_EPS
    d_dot = d_sim / tl.where(free, both, COSINE_EPS)
    # d sim / d |query| = -sim / |query|
    radial = tl.where(free, d_sim * sim, 0.0)
    d_own = -radial / tl.where(free, query_norm * query_norm, 1.0)
    return d_dot, d_own, free


@triton.jit
def attention_grad(
    d_a,  # [M, N]
    s,  # [M, N]
    softmax,  # [M, N]
    norm,  # [G, N] of ``attend``
    a,  # [M, N] after erasing
    keep,  # [M, N] kept by erasing
    divisor,  # [M] of erasing
    single,  # [G] sets of one query
    place,  # [M]
    smoothing,
    RULE: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SETS: tl.constexpr,
    STRIDE: tl.constexpr,
    G: tl.constexpr,
):
    """[M, N]: what the gradient of the attention gives that of S.

    The norm takes away all that goes along with it: of a single query nearly everything, which is
    told exactly and not by a difference.
    """
    if RULE != "":
        if RENORMALIZE:
            d_a = d_a - tl.sum(d_a * a, 1)[:, None]
        d_a = tl.where(keep, d_a / divisor[:, None], 0.0)
    d_x = smoothing * softmax * (d_a - tl.sum(softmax * d_a, 1)[:, None])
    x = leaky(s)
    unit = 1.0 / (norm + NORM_EPS)
    inner = set_sums(d_x * x, place, SETS, STRIDE, G) * unit * unit
    inner = inner / tl.where(norm == 0.0, float("inf"), norm)
    inner = tl.where(single[:, None], 0.0, inner)
    unit = tl.where(single[:, None], unit * unit * NORM_EPS, unit)
    d_x = d_x * spread(unit, place, SETS, STRIDE) - x * spread(inner, place, SETS, STRIDE)
    return tl.where(s > 0, d_x, 0.1 * d_x)
