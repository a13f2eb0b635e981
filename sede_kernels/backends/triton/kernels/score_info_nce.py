# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The weighted InfoNCE of given scores: one pass over a block of rows, its arithmetic behind it.

Logits and scores of a row are relative to its hardest negative, see docs/method.md. Shapes: R rows
of a program, J columns of a step.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import LOG2E, NEG_INF, exp


@triton.jit
def _log_of_one_more(x):
    """log(1 + x) for x >= 0, with the digits of a small x."""
    one_more = 1.0 + x
    added = one_more - 1.0
    share = tl.div_rn(x, tl.where(added == 0.0, 1.0, added))  # of x in what was added
    return tl.where(added == 0.0, x, tl.log(one_more) * share)


@triton.jit
def _softplus(x):
    """log(1 + e^x)."""
    return tl.maximum(x, 0.0) + _log_of_one_more(exp(-tl.abs(x)))


@triton.jit
def _sigmoid(x):
    return tl.div_rn(tl.zeros_like(x) + 1.0, 1.0 + exp(-x))


@triton.jit
def _chosen(
    scores,
    valid,
    key_ids,
    row,
    col,
    row_ids,  # [R]
    B,
    N,
    stride_sr,
    stride_sc,
    stride_vr,
    stride_vc,
    OWN: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """[R, J] scores, the negatives among them, and the keys of the query's id."""
    inside = (row < B)[:, None] & (col < N)[None, :]
    wide_row, wide_col = row.to(tl.int64)[:, None], col.to(tl.int64)[None, :]
    at = wide_row * stride_sr + wide_col * stride_sc
    s = tl.load(scores + at, mask=inside, other=NEG_INF).to(tl.float32)
    counts = s != NEG_INF
    if HAS_VALID:
        at = wide_row * stride_vr + wide_col * stride_vc
        counts = counts & (tl.load(valid + at, mask=inside, other=0) != 0)
    if OWN:
        counts = counts & (row[:, None] != col[None, :])
    same = counts
    if HAS_KEYS:
        key = tl.load(key_ids + col, mask=col < N, other=-1)
        counts = counts & (key != -1)[None, :]
        if HAS_IDS and not KEEP:
            equal = row_ids[:, None] == key[None, :]
            same = counts & equal
            counts = counts & (equal == 0)
    return s, counts, same


@triton.jit
def _raised(total, moment, step, exponent):
    """Sums of e^{c (s - old)} and of those times s - old, relative to a reference that rose."""
    factor = tl.exp2(step * exponent)
    # Before the first score both sums are 0 and the step is -inf.
    moment = tl.where(step == NEG_INF, 0.0, factor * (moment + total * step))
    return tl.where(step == NEG_INF, 0.0, factor * total), moment


@triton.jit
def _add(s, counts, most, number, total, moment, other, other_moment, exponent, other_exponent):
    """Adds the chosen of a step to the sums at two exponents, which are in powers of two."""
    kept = tl.where(counts, s, NEG_INF)
    raised = tl.maximum(most, tl.max(kept, 1))
    step = tl.where(most == raised, 0.0, most - raised)
    total, moment = _raised(total, moment, step, exponent)
    other, other_moment = _raised(other, other_moment, step, other_exponent)
    base = tl.where(raised == NEG_INF, 0.0, raised)
    below = tl.where(counts, s - base[:, None], 0.0)
    weight = tl.where(counts, tl.exp2(below * exponent), 0.0)
    total += tl.sum(weight, 1)
    moment += tl.sum(weight * below, 1)
    weight = tl.where(counts, tl.exp2(below * other_exponent), 0.0)
    other += tl.sum(weight, 1)
    other_moment += tl.sum(weight * below, 1)
    number += tl.sum(tl.where(counts, 1.0, 0.0), 1).to(tl.int32)  # a sum of bits packs them
    return raised, number, total, moment, other, other_moment


@triton.jit(do_not_specialize=["weight"])
def _score_fwd_kernel(
    scores,  # [B, N]
    positive,  # [B]
    valid,  # [B, N] uint8
    ids,  # [B]
    key_ids,  # [N]
    temperature,  # one number
    hardness,  # one number, where WEIGHTED
    table,  # [15, B]
    negatives,  # [B]
    hardest_column,  # [B]
    B,
    N,
    stride_sr,
    stride_sc,
    stride_p,
    stride_vr,
    stride_vc,
    weight,
    OWN: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    KEEP: tl.constexpr,
    FURTHER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    DETACH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Program i: BLOCK_R rows of the table; ``weight`` is that of a row in the loss."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = row < B
    inverse = tl.div_rn(1.0, tl.load(temperature).to(tl.float32))
    beta = inverse * 0.0
    if WEIGHTED:
        beta = tl.load(hardness).to(tl.float32)
    first, second = (inverse + beta) * LOG2E, beta * LOG2E
    row_ids = row.to(tl.int64)
    if HAS_IDS:
        row_ids = tl.load(ids + row, mask=real, other=-1)

    zero = tl.zeros((BLOCK_R,), tl.float32)
    most, number, column = zero + NEG_INF, tl.zeros((BLOCK_R,), tl.int32), row * 0 - 1
    total, moment, norm, norm_moment = zero, zero, zero, zero
    extra_most, extra_number = zero + NEG_INF, tl.zeros((BLOCK_R,), tl.int32)
    extra, extra_moment, plain, plain_moment = zero, zero, zero, zero
    for start in range(0, N, BLOCK_J):
        col = start + tl.arange(0, BLOCK_J)
        s, counts, same = _chosen(
            scores, valid, key_ids, row, col, row_ids, B, N, stride_sr, stride_sc, stride_vr,
            stride_vc, OWN, HAS_VALID, HAS_IDS, HAS_KEYS, KEEP,
        )  # fmt: skip
        before = most
        most, number, total, moment, norm, norm_moment = _add(
            s, counts, most, number, total, moment, norm, norm_moment, first, second
        )
        place = tl.argmax(tl.where(counts, s, NEG_INF), 1).to(tl.int32)
        column = tl.where(most > before, start + place, column)
        if FURTHER:
            extra_most, extra_number, extra, extra_moment, plain, plain_moment = _add(
                s, same, extra_most, extra_number, extra, extra_moment, plain, plain_moment,
                inverse * LOG2E, inverse * 0.0,
            )  # fmt: skip

    at = row.to(tl.int64)
    if OWN:
        right = tl.load(scores + at * (stride_sr + stride_sc), mask=real, other=0.0)
    else:
        right = tl.load(positive + at * stride_p, mask=real, other=0.0)
    right = right.to(tl.float32)
    some = number > 0
    most = tl.where(total == total, most, total)  # a NaN among them
    base = tl.where(some, most, right)
    gap = right - base
    safe = tl.where(some, total, 1.0)
    shift, mean = tl.log(safe), tl.div_rn(moment, safe)
    log_negatives = shift
    by_weights = mean + base
    shift_1 = zero
    if WEIGHTED:
        if NORMALIZE:
            safe = tl.where(some, norm, 1.0)
            shift_1 = tl.log(safe)
            by_weights = mean - tl.div_rn(norm_moment, safe)
            count = tl.maximum(number, 1).to(tl.float32)
            log_negatives = tl.log(count) + shift - shift_1
        else:
            log_negatives = shift + beta * base
    log_negatives = tl.where(some, log_negatives, NEG_INF)

    logit = inverse * gap
    own, share, attracted, plain_mean = zero + 1.0, zero + 1.0, gap, gap
    log_positives, more, ahead, extra_shift = logit, zero > 1.0, zero, zero
    if FURTHER:
        more = extra_number > 0
        extra_most = tl.where(more, extra_most, 0.0)
        ahead = tl.where(more, extra_most - base, 0.0)
        safe = tl.where(more, extra, 1.0)
        extra_shift = tl.log(safe)
        extra_total = tl.where(more, inverse * ahead + extra_shift, NEG_INF)
        own = _sigmoid(logit - extra_total)
        log_positives = tl.where(more, extra_total + _softplus(logit - extra_total), logit)
        attracted = own * gap + (1.0 - own) * (ahead + tl.div_rn(extra_moment, safe))
        count = extra_number.to(tl.float32)
        share = tl.div_rn(zero + 1.0, 1.0 + count)
        together = gap + count * ahead + plain_moment
        plain_mean = tl.where(more, together * share, gap)
        attracted = tl.where(more, attracted, gap)
    above = log_negatives - log_positives
    pi = _sigmoid(above)
    loss = _softplus(above)
    by_inverse = pi * (mean - attracted)
    if FURTHER:
        loss += tl.where(more, log_positives - inverse * plain_mean, 0.0)
        by_inverse += attracted - plain_mean

    out = table + at
    step = B
    tl.store(out, loss, mask=real)
    tl.store(out + step, right, mask=real)
    tl.store(out + 2 * step, log_negatives + inverse * base, mask=real)
    tl.store(out + 3 * step, most, mask=real)
    tl.store(out + 4 * step, weight * inverse * (own - share - pi * own), mask=real)
    tl.store(out + 5 * step, -inverse * inverse * weight * by_inverse, mask=real)
    tl.store(out + 6 * step, tl.where(some, weight * pi * by_weights, 0.0), mask=real)
    tl.store(out + 7 * step, shift, mask=real)
    tl.store(out + 8 * step, shift_1, mask=real)
    grad = pi * inverse
    grad_1 = zero
    if WEIGHTED and not DETACH:
        grad = pi * (inverse + beta)
        if NORMALIZE:
            grad_1 = -pi * beta
    tl.store(out + 9 * step, weight * grad, mask=real)
    tl.store(out + 10 * step, weight * grad_1, mask=real)
    tl.store(out + 11 * step, extra_most, mask=real)
    tl.store(out + 12 * step, extra_shift, mask=real)
    extra_grad = tl.where(more, weight * inverse * _sigmoid(-above) * (1.0 - own), 0.0)
    tl.store(out + 13 * step, extra_grad, mask=real)
    tl.store(out + 14 * step, tl.where(more, -weight * inverse * share, 0.0), mask=real)
    tl.store(negatives + at, number.to(tl.int64), mask=real)
    tl.store(hardest_column + at, column.to(tl.int64), mask=real)


@triton.jit
def _term(s, factor, most, shift, exponent):
    """[R, J] factor e^{c (s - most) - shift}; the exponent is in powers of two."""
    below = (s - most[:, None]) * exponent - (shift * LOG2E)[:, None]
    return factor[:, None] * tl.exp2(below)


@triton.jit
def _score_bwd_kernel(
    grad,  # [B] or one
    table,  # [15, B]
    scores,  # [B, N]
    valid,  # [B, N] uint8
    ids,  # [B]
    key_ids,  # [N]
    temperature,  # one number
    hardness,  # one number, where WEIGHTED
    scores_grad,  # [B, N]
    positive_grad,  # [B]
    B,
    N,
    blocks,  # of columns
    stride_g,
    stride_sr,
    stride_sc,
    stride_vr,
    stride_vc,
    stride_or,
    stride_oc,
    OWN: tl.constexpr,
    HAS_VALID: tl.constexpr,
    HAS_IDS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    KEEP: tl.constexpr,
    FURTHER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SECOND: tl.constexpr,
    SCORES: tl.constexpr,
    POSITIVE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Program i: one tile of the gradient; those of the first columns write that of positive."""
    pid = tl.program_id(0)
    row = (pid // blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    col = (pid % blocks) * BLOCK_J + tl.arange(0, BLOCK_J)
    real = row < B
    at = row.to(tl.int64)
    kept = table + at
    step = B
    upstream = tl.load(grad + at * stride_g, mask=real, other=0.0)
    by_positive = upstream * tl.load(kept + 4 * step, mask=real, other=0.0)
    if POSITIVE:
        if pid % blocks == 0:
            tl.store(positive_grad + at, by_positive.to(positive_grad.dtype.element_ty), mask=real)
    if SCORES:
        inverse = tl.div_rn(1.0, tl.load(temperature).to(tl.float32))
        beta = inverse * 0.0
        if WEIGHTED:
            beta = tl.load(hardness).to(tl.float32)
        row_ids = at
        if HAS_IDS:
            row_ids = tl.load(ids + row, mask=real, other=-1)
        s, counts, same = _chosen(
            scores, valid, key_ids, row, col, row_ids, B, N, stride_sr, stride_sc, stride_vr,
            stride_vc, OWN, HAS_VALID, HAS_IDS, HAS_KEYS, KEEP,
        )  # fmt: skip
        most = tl.load(kept + 3 * step, mask=real, other=0.0)
        shift = tl.load(kept + 7 * step, mask=real, other=0.0)
        factor = upstream * tl.load(kept + 9 * step, mask=real, other=0.0)
        found = _term(s, factor, most, shift, (inverse + beta) * LOG2E)
        if SECOND:
            shift = tl.load(kept + 8 * step, mask=real, other=0.0)
            factor = upstream * tl.load(kept + 10 * step, mask=real, other=0.0)
            found += _term(s, factor, most, shift, beta * LOG2E)
        found = tl.where(counts, found, 0.0)
        if FURTHER:
            most = tl.load(kept + 11 * step, mask=real, other=0.0)
            shift = tl.load(kept + 12 * step, mask=real, other=0.0)
            factor = upstream * tl.load(kept + 13 * step, mask=real, other=0.0)
            plain = upstream * tl.load(kept + 14 * step, mask=real, other=0.0)
            further = _term(s, factor, most, shift, inverse * LOG2E) + plain[:, None]
            found = tl.where(same, further, found)
        if OWN:
            found = tl.where(row[:, None] == col[None, :], by_positive[:, None], found)
        place = at[:, None] * stride_or + col.to(tl.int64)[None, :] * stride_oc
        inside = real[:, None] & (col < N)[None, :]
        tl.store(scores_grad + place, found.to(scores_grad.dtype.element_ty), mask=inside)
