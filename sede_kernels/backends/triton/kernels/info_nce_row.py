# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Rows of the weighted InfoNCE: the sums of their segments, their losses and derivatives.

The arithmetic of csrc/info_nce_row.h in fp32; what loses digits there (log(1 + y), 1 - e^{-x}) has
series. Names: it = 1 / tau, L(c) a log-sum-exp, M(c) its mean similarity. Shapes: [B] rows.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import (
    LOG2E,
    NEG_INF,
    exp,
    log2_base,
    positive,
)


@triton.jit
def log1p(y):
    """log(1 + y) for y in [0, 1], as 2 artanh(y / (2 + y)): small y keep their digits."""
    z = y / (2.0 + y)
    w = z * z
    r = 1.0 / 15
    r = r * w + 1.0 / 13
    r = r * w + 1.0 / 11
    r = r * w + 1.0 / 9
    r = r * w + 1.0 / 7
    r = r * w + 1.0 / 5
    r = r * w + 1.0 / 3
    return 2.0 * z * (r * w + 1.0)


@triton.jit
def one_minus_exp(x):
    """1 - e^{-x} for x >= 0; below 1/2 by the series."""
    r = 1.0 - x / 9.0
    r = 1.0 - x / 8.0 * r
    r = 1.0 - x / 7.0 * r
    r = 1.0 - x / 6.0 * r
    r = 1.0 - x / 5.0 * r
    r = 1.0 - x / 4.0 * r
    r = 1.0 - x / 3.0 * r
    r = 1.0 - x / 2.0 * r
    return tl.where(x < 0.5, x * r, 1.0 - exp(-x))


@triton.jit
def log_add(a, b):
    """log(e^a + e^b), of -inf too; NaN where one of them is."""
    difference = tl.where(a == b, 0.0, a) - tl.where(a == b, 0.0, b)
    return tl.maximum(a, b) + log1p(exp(-tl.abs(difference)))


@triton.jit
def softplus(x):
    """log(1 + e^x): a loss near 0 keeps its digits."""
    return tl.maximum(x, 0.0) + log1p(exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + e^{-x})."""
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def share_of(part, total):
    """e^{part - total}: what a segment holds of a sum; 0 where it has none."""
    none = part == NEG_INF
    return tl.where(none, 0.0, exp(part - tl.where(none, 0.0, total)))


@triton.jit
def dots(
    query, key, rows, keep, D, stride_qb, stride_qd, stride_kb, stride_kd,
    BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[B] q . k in fp32."""
    found = tl.zeros((BLOCK_B,), tl.float32)
    row = rows.to(tl.int64)[:, None]
    for first in range(0, D, BLOCK_D):
        d = (first + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
        inside = keep[:, None] & (d < D)
        q = tl.load(query + row * stride_qb + d * stride_qd, mask=inside, other=0.0)
        k = tl.load(key + row * stride_kb + d * stride_kd, mask=inside, other=0.0)
        found += tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)
    return found


@triton.jit
def _exponent(
    total, moment, scales, peak, best, part, side, S, B, rows, there, e,
    E: tl.constexpr, MOMENTS: tl.constexpr,
):  # fmt: skip
    """L, M and the sum relative to the base of ``best``, of exponent ``e`` of the parts."""
    c2 = positive(tl.load(scales + e) * LOG2E)
    base = log2_base(best, c2)
    weight = tl.where(peak == NEG_INF, 0.0, tl.exp2(log2_base(peak, c2) - base[None, :]))
    at = ((side * S + part).to(tl.int64) * E + e) * B + rows[None, :]
    found = tl.sum(tl.load(total + at, mask=there, other=0.0) * weight, 0)
    some = tl.where(found == 0.0, 1.0, found)
    lse = tl.where(found == 0.0, NEG_INF, (base + tl.log2(some)) / LOG2E)
    mean = found * 0.0
    if MOMENTS:
        mean = tl.sum(tl.load(moment + at, mask=there, other=0.0) * weight, 0) / some
    return lse, mean, some


@triton.jit
def segment_sums(
    peak,  # [sides, (S,) B]
    total,  # [sides, (S,) E, B]: log-sum-exps, or sums of parts
    moment,  # [sides, (S,) E, B]
    count,  # [sides, (S,) B] int64
    index,  # [sides, (S,) B] int64, or None: its rows have none
    scales,  # [E]
    side,
    S,
    B,
    rows,
    keep,
    PARTS: tl.constexpr,  # 0: no segment; 1: its sums; else sums of at most so many parts of it
    E: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """(L, L_1, M, M_1, n, largest similarity, its index, best, sum) of a segment.

    The last two say what the accumulators of parts are relative to.
    """
    lse = tl.full((BLOCK_B,), NEG_INF, tl.float32)
    lse_1 = tl.full((BLOCK_B,), NEG_INF, tl.float32)
    mean = tl.zeros((BLOCK_B,), tl.float32)
    mean_1 = tl.zeros((BLOCK_B,), tl.float32)
    n = tl.zeros((BLOCK_B,), tl.int64)
    top = tl.full((BLOCK_B,), NEG_INF, tl.float32)
    at = tl.full((BLOCK_B,), -1, tl.int64)
    best = top
    some = mean
    if PARTS == 1:
        first = side * E * B + rows
        lse = tl.load(total + first, mask=keep, other=NEG_INF)
        if E == 2:
            lse_1 = tl.load(total + first + B, mask=keep, other=NEG_INF)
        if MOMENTS:
            mean = tl.load(moment + first, mask=keep, other=0.0)
            if E == 2:
                mean_1 = tl.load(moment + first + B, mask=keep, other=0.0)
        n = tl.load(count + side * B + rows, mask=keep, other=0)
        if HARDEST:
            top = tl.load(peak + side * B + rows, mask=keep, other=NEG_INF)
            if index is not None:
                at = tl.load(index + side * B + rows, mask=keep, other=-1)
    elif PARTS > 1:
        part = tl.arange(0, PARTS)[:, None]
        there = (part < S) & keep[None, :]
        row = (side * S + part).to(tl.int64) * B + rows[None, :]
        peaks = tl.load(peak + row, mask=there, other=NEG_INF)
        best = tl.max(peaks, 0)
        n = tl.sum(tl.load(count + row, mask=there, other=0), 0)
        lse, mean, some = _exponent(
            total, moment, scales, peaks, best, part, side, S, B, rows, there, 0, E, MOMENTS
        )
        bad = some * 0.0
        if E == 2:
            lse_1, mean_1, other = _exponent(
                total, moment, scales, peaks, best, part, side, S, B, rows, there, 1, E, MOMENTS
            )
            bad += other * 0.0
        if HARDEST:
            top = tl.where(bad != bad, bad, best)
            if index is not None:
                slot = tl.load(index + row, mask=there, other=-1)
                known = (peaks == best[None, :]) & (slot >= 0)
                lowest = tl.min(tl.where(known, slot, 9223372036854775807), 0)
                at = tl.where((lowest == 9223372036854775807) | (bad != bad), -1, lowest)
    return lse, lse_1, mean, mean_1, n, top, at, best, some


@triton.jit
def debiased(log_negatives, logit, n, it, log_tau_plus, log_rest):
    """LN without its false negatives, and its derivatives by LN, the positive's logit and it.

    ``log_tau_plus`` is log tau_plus, ``log_rest`` log(1 - tau_plus).
    """
    log_n = tl.log(tl.maximum(n, 1.0))
    floor = log_n - it
    below = logit + log_n + log_tau_plus - log_negatives
    x = tl.where(below < 0.0, -below, 1.0)
    rest = one_minus_exp(x)  # the share that stays
    corrected = log_negatives + tl.log(rest) - log_rest
    some = n > 0.0
    counts = some & (below < 0.0) & (corrected >= floor)
    unknown = log_negatives != log_negatives
    value = tl.where(some, tl.where(counts, corrected, floor), NEG_INF)
    value = tl.where(unknown, log_negatives, value)
    by_negatives = tl.where(unknown, 1.0, tl.where(counts, 1.0 / rest, 0.0))
    by_positive = tl.where(counts, -exp(-x) / rest, 0.0)
    by_inverse = tl.where(some & (counts == 0) & (unknown == 0), -1.0, 0.0)
    return value, by_negatives, by_positive, by_inverse


@triton.jit
def row_loss(
    s,
    it,
    beta,
    lse,
    lse_1,
    mean,
    mean_1,
    n,
    further_lse,
    further_mean,
    further_mean_0,
    further,
    log_tau_plus,
    log_rest,
    E: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DETACHED: tl.constexpr,
    DEBIASED: tl.constexpr,
    FURTHER: tl.constexpr,  # rows may have further positives
):
    """(loss, LN, by s+, by it, by beta, by L and L_1, by the two sums of further positives).

    Derivatives by a log-sum-exp are times what replaces its exponent in the query's gradient.
    """
    logit = it * s
    log_negatives = lse
    if E == 2:
        log_negatives = tl.log(tl.maximum(n, 1.0)) + lse - lse_1
        log_negatives = tl.where(n == 0.0, NEG_INF, log_negatives)
    by_negatives = s * 0.0 + 1.0
    by_positive = tl.zeros_like(s)
    by_inverse = by_positive
    if DEBIASED:
        log_negatives, by_negatives, by_positive, by_inverse = debiased(
            log_negatives, logit, n, it, log_tau_plus, log_rest
        )
    own = 1.0
    log_positives = logit
    attracted = s
    if FURTHER:
        own = sigmoid(logit - further_lse)
        log_positives = log_add(logit, further_lse)
        attracted = own * s + (1.0 - own) * further_mean
    above = log_negatives - log_positives
    pi = sigmoid(above)
    loss = softplus(above)
    by_s = it * pi * (by_positive - own)
    by_it = pi * (by_negatives * mean + by_positive * s + by_inverse - attracted)
    outer = pi * by_negatives if DEBIASED else pi
    by_beta = tl.zeros_like(s)
    if WEIGHTED:
        by_beta = outer * (mean - mean_1)
    first = outer * it
    second = tl.zeros_like(s)
    if not DETACHED:
        first = outer * (it + beta)
        if E == 2:
            second = -outer * beta
    toward = tl.zeros_like(s)
    mean_row = toward
    if FURTHER:
        more = further > 0.0
        average = (s + further * further_mean_0) / (1.0 + further)
        loss += tl.where(more, log_positives - it * average, 0.0)
        by_s += tl.where(more, it * (own - 1.0 / (1.0 + further)), 0.0)
        by_it += tl.where(more, attracted - average, 0.0)
        toward = tl.where(more, it * sigmoid(-above) * sigmoid(further_lse - logit), 0.0)
        mean_row = tl.where(more, -it * further / (1.0 + further), 0.0)
    return loss, log_negatives, by_s, by_it, by_beta, first, second, toward, mean_row


@triton.jit
def power(loss, most, focus):
    """((1 - e^{-loss}) / most)^focus; NaN of NaN."""
    base = one_minus_exp(loss) / most
    none = base <= 0.0
    return tl.where(none, 0.0, tl.exp2(focus * tl.log2(tl.where(none, 1.0, base))))
