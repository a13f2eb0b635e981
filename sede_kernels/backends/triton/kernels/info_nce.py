# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The weighted InfoNCE around its passes: scalars, ``finish``, focused weights, ``backward``.

A table of a side is [16, B], as ``sede_kernels.types.TABLE`` names its rows. The reduced loss is a
sum in the order of the rows: each program leaves the sum of its own, and the last one that comes
adds them up. They pass through atomic exchanges, so that no program reads what another stores.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import LOG2E, NEG_INF, log2_base, positive
from sede_kernels.backends.triton.kernels.info_nce_row import (
    dots,
    log_add,
    one_minus_exp,
    row_loss,
    segment_sums,
    share_of,
)
from sede_kernels.types import TABLE

_ROWS = tl.constexpr(len(TABLE))
_LOSS = tl.constexpr(TABLE.index("loss"))
_WEIGHT = tl.constexpr(TABLE.index("weight"))
_POSITIVE = tl.constexpr(TABLE.index("positive"))
_LOG_NEGATIVES = tl.constexpr(TABLE.index("log_negatives"))
_HARDEST = tl.constexpr(TABLE.index("hardest"))
_POSITIVE_GRAD = tl.constexpr(TABLE.index("positive_grad"))
_TEMPERATURE_GRAD = tl.constexpr(TABLE.index("temperature_grad"))
_HARDNESS_GRAD = tl.constexpr(TABLE.index("hardness_grad"))
_LSE = tl.constexpr(TABLE.index("lse"))
_LSE_GRAD = tl.constexpr(TABLE.index("lse_grad"))
_EXTRA_LSE = tl.constexpr(TABLE.index("extra_lse"))
_EXTRA_GRAD = tl.constexpr(TABLE.index("extra_grad"))
#: Where ``numbers`` has the exponents of further positives, and beta; those of the passes lead.
EXTRA_AT = tl.constexpr(4)
BETA_AT = tl.constexpr(6)


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


@triton.jit
def _row_means(
    acc,  # [sides, (S,) A, B, D]
    peak,
    best,
    some,
    c2,
    side,
    a,
    S,
    B,
    D,
    rows,
    keep,
    d,
    PARTS: tl.constexpr,
    A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """[B, D] weighted mean rows of a segment."""
    if PARTS == 1:
        at = ((side * A + a) * B + rows).to(tl.int64)[:, None] * D + d[None, :]
        found = tl.load(acc + at, mask=keep[:, None] & (d < D)[None, :], other=0.0)
    else:
        base = log2_base(best, c2)
        found = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
        for first in range(0, S, BLOCK_S):
            part = first + tl.arange(0, BLOCK_S)
            there = (part < S)[:, None] & keep[None, :]
            at = (side * S + part).to(tl.int64)[:, None] * B + rows[None, :]
            peaks = tl.load(peak + at, mask=there, other=NEG_INF)
            weight = tl.where(peaks == NEG_INF, 0.0, tl.exp2(log2_base(peaks, c2) - base[None, :]))
            tile = tl.load(
                acc + at[:, :, None] * D + d[None, None, :],
                mask=there[:, :, None] & (d < D)[None, None, :],
                other=0.0,
            )
            found += tl.sum(tile * weight[:, :, None], 0)
        found = found / some[:, None]
    return found


@triton.jit
def _power(loss, most, focus):
    """((1 - e^{-loss}) / most)^focus; NaN of NaN."""
    base = one_minus_exp(loss) / most
    none = base <= 0.0
    return tl.where(none, 0.0, tl.exp2(focus * tl.log2(tl.where(none, 1.0, base))))


@triton.jit
def _info_nce_finish_kernel(
    query,  # [B, D], these four; both sides have the same layouts
    key,
    other_query,
    other_key,
    bank_peak,  # the sums of the bank, see segment_sums
    bank_total,
    bank_moment,
    bank_acc,  # [sides, (S,) A, B, D]
    bank_count,
    bank_index,
    batch_peak,  # and of the batch
    batch_total,
    batch_moment,
    batch_count,
    further_lse,  # [sides, 2, B] of further positives in the bank, at 1 / tau and 0
    further_moment,
    further_acc,  # [sides, 2, B, D]
    further_count,  # [sides, B]
    batch_further_lse,  # and in the batch
    batch_further_moment,
    batch_further_count,
    numbers,  # [8]
    flag,  # [] whether the batch counts, or None: it does
    similarity,  # [sides, B] s+, or None
    loss_out,  # [] or [B]
    table,  # [sides, 16, B]
    grad,  # [sides, B, D], or None
    count_out,  # [sides, B]
    index_out,  # [sides, B]
    slots,  # [1 + programs] int32, the first one 0 and left so
    bank_parts,
    batch_parts,
    B,
    D,
    stride_qb,
    stride_qd,
    stride_kb,
    stride_kd,
    scale,  # of every row's weight
    focus,
    log_tau_plus,
    log_rest,
    SIDES: tl.constexpr,
    E: tl.constexpr,
    A: tl.constexpr,
    BANK: tl.constexpr,  # PARTS of segment_sums
    BATCH: tl.constexpr,
    FURTHER_BANK: tl.constexpr,
    FURTHER_BATCH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DETACHED: tl.constexpr,
    DEBIASED: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    FOCUS: tl.constexpr,  # rows weigh by their own loss
    REDUCTION: tl.constexpr,  # none, sum, or "": the loss is written elsewhere
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Program (i, n): BLOCK_B rows of every side; columns n BLOCK_D and on of their gradient."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    keep = rows < B
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    once = rows < tl.where(tl.program_id(1) == 0, B, 0)
    it = tl.load(numbers + EXTRA_AT)
    beta = tl.load(numbers + BETA_AT)
    FURTHER: tl.constexpr = FURTHER_BANK + FURTHER_BATCH > 0
    weighted = tl.zeros((BLOCK_B,), tl.float32)
    for side in range(SIDES):
        q = query
        k = key
        if SIDES == 2:
            if side == 1:
                q = other_query
                k = other_key
        if similarity is not None:
            s = tl.load(similarity + side * B + rows, mask=keep, other=0.0)
        else:
            s = dots(
                q, k, rows, keep, D, stride_qb, stride_qd, stride_kb, stride_kd, BLOCK_B, BLOCK_D
            )
        bank_0, bank_1, mean, mean_1, n, top, index, best, some = segment_sums(
            bank_peak, bank_total, bank_moment, bank_count, bank_index, numbers, side, bank_parts,
            B, rows, keep, BANK, E, MOMENTS, HARDEST, BLOCK_B,
        )  # fmt: skip
        lse = bank_0
        lse_1 = bank_1
        if BATCH:
            batch_0, batch_1, batch_mean, batch_mean_1, batch_n, batch_top, _, _, _ = segment_sums(
                batch_peak, batch_total, batch_moment, batch_count, None, numbers, side,
                batch_parts, B, rows, keep, BATCH, E, MOMENTS, HARDEST, BLOCK_B,
            )  # fmt: skip
            if flag is not None:
                counts = tl.load(flag) != 0
                batch_0 = tl.where(counts, batch_0, NEG_INF)
                batch_1 = tl.where(counts, batch_1, NEG_INF)
                batch_top = tl.where(counts, batch_top, NEG_INF)
                batch_n = tl.where(counts, batch_n, 0)
            n += batch_n
            lse = log_add(bank_0, batch_0)
            mean = share_of(bank_0, lse) * mean + share_of(batch_0, lse) * batch_mean
            if E == 2:
                lse_1 = log_add(bank_1, batch_1)
                mean_1 = share_of(bank_1, lse_1) * mean_1 + share_of(batch_1, lse_1) * batch_mean_1
            if HARDEST:
                higher = (batch_top > top) | (batch_top != batch_top)
                index = tl.where(higher, -1, index)
                top = tl.where(higher, batch_top, top)
        more, more_0, more_mean, more_mean_0, further, _, _, _, _ = segment_sums(
            None, further_lse, further_moment, further_count, None, numbers, side, 1, B, rows, keep,
            FURTHER_BANK, 2, True, False, BLOCK_B,
        )  # fmt: skip
        in_bank = more
        in_bank_0 = more_0
        if FURTHER_BATCH:
            more_b, more_b0, mean_b, mean_b0, further_b, _, _, _, _ = segment_sums(
                None, batch_further_lse, batch_further_moment, batch_further_count, None, numbers,
                side, 1, B, rows, keep, FURTHER_BATCH, 2, True, False, BLOCK_B,
            )  # fmt: skip
            if flag is not None:
                counts = tl.load(flag) != 0
                more_b = tl.where(counts, more_b, NEG_INF)
                more_b0 = tl.where(counts, more_b0, NEG_INF)
                further_b = tl.where(counts, further_b, 0)
            more = log_add(in_bank, more_b)
            more_0 = log_add(in_bank_0, more_b0)
            more_mean = share_of(in_bank, more) * more_mean + share_of(more_b, more) * mean_b
            more_mean_0 = share_of(in_bank_0, more_0) * more_mean_0 + (
                share_of(more_b0, more_0) * mean_b0
            )
            further += further_b
        loss, log_negatives, by_s, by_it, by_beta, first, second, toward, mean_row = row_loss(
            s, it, beta, lse, lse_1, mean, mean_1, n.to(tl.float32), more, more_mean, more_mean_0,
            further.to(tl.float32), log_tau_plus, log_rest, E, WEIGHTED, DETACHED, DEBIASED,
            FURTHER,
        )  # fmt: skip
        weight = tl.zeros((BLOCK_B,), tl.float32) + scale
        if FOCUS:
            weight *= _power(loss, 1.0, focus)
        by_s *= weight
        first *= weight
        second *= weight
        toward *= weight
        mean_row *= weight
        to = table + side * _ROWS * B + rows
        tl.store(to + _LOSS * B, loss, mask=once)
        tl.store(to + _WEIGHT * B, weight, mask=once)
        tl.store(to + _POSITIVE * B, s, mask=once)
        tl.store(to + _LOG_NEGATIVES * B, log_negatives, mask=once)
        tl.store(to + _HARDEST * B, top, mask=once)
        tl.store(to + _POSITIVE_GRAD * B, by_s, mask=once)
        tl.store(to + _TEMPERATURE_GRAD * B, -it * it * by_it * weight, mask=once)
        tl.store(to + _HARDNESS_GRAD * B, by_beta * weight, mask=once)
        tl.store(to + _LSE * B, lse, mask=once)
        tl.store(to + _LSE * B + B, lse_1, mask=once)
        tl.store(to + _LSE_GRAD * B, first, mask=once)
        tl.store(to + _LSE_GRAD * B + B, second, mask=once)
        tl.store(to + _EXTRA_LSE * B, more, mask=once)
        tl.store(to + _EXTRA_LSE * B + B, more_0, mask=once)
        tl.store(to + _EXTRA_GRAD * B, toward, mask=once)
        tl.store(to + _EXTRA_GRAD * B + B, mean_row, mask=once)
        if HARDEST:
            tl.store(count_out + side * B + rows, n, mask=once)
            tl.store(index_out + side * B + rows, index, mask=once)
        weighted += tl.where(keep, loss * weight, 0.0)
        if grad is not None:
            inside = keep[:, None] & (d < D)[None, :]
            place = rows.to(tl.int64)[:, None] * stride_kb + d.to(tl.int64)[None, :] * stride_kd
            total = tl.load(k + place, mask=inside, other=0.0).to(tl.float32) * by_s[:, None]
            if BANK:
                c2 = positive(tl.load(numbers) * LOG2E)
                means = _row_means(
                    bank_acc, bank_peak, best, some, c2, side, 0, bank_parts, B, D, rows, keep, d,
                    BANK, A, BLOCK_B, BLOCK_D, BLOCK_S,
                )  # fmt: skip
                total += means * (first * share_of(bank_0, lse))[:, None]
                if A == 2:
                    means = _row_means(
                        bank_acc, bank_peak, best, some, c2, side, 1, bank_parts, B, D, rows, keep,
                        d, BANK, A, BLOCK_B, BLOCK_D, BLOCK_S,
                    )  # fmt: skip
                    total += means * (second * share_of(bank_1, lse_1))[:, None]
            if FURTHER_BANK:
                means = _row_means(
                    further_acc, None, best, some, 0.0, side, 0, 1, B, D, rows, keep, d, 1, 2,
                    BLOCK_B, BLOCK_D, BLOCK_S,
                )  # fmt: skip
                total += means * (toward * share_of(in_bank, more))[:, None]
                means = _row_means(
                    further_acc, None, best, some, 0.0, side, 1, 1, B, D, rows, keep, d, 1, 2,
                    BLOCK_B, BLOCK_D, BLOCK_S,
                )  # fmt: skip
                total += means * (mean_row * share_of(in_bank_0, more_0))[:, None]
            place = (side * B + rows).to(tl.int64)[:, None] * D + d[None, :]
            tl.store(grad + place, total, mask=inside)
    if REDUCTION == "none":
        tl.store(loss_out + rows, weighted, mask=once)
    elif REDUCTION == "sum":
        if tl.program_id(1) == 0:
            _add_up(loss_out, slots, tl.sum(weighted, 0))


@triton.jit
def _add_up(loss_out, slots, part):
    """Leave a part of the loss; the last program adds them all up, in order, in fp64."""
    programs = tl.num_programs(0)
    tl.atomic_xchg(slots + 1 + tl.program_id(0), part.to(tl.int32, bitcast=True))
    if tl.atomic_add(slots, 1) == programs - 1:
        total = tl.zeros((128,), tl.float64)
        for first in range(0, programs, 128):
            at = first + tl.arange(0, 128)
            bits = tl.atomic_add(slots + 1 + at, at * 0, mask=at < programs)
            value = bits.to(tl.float32, bitcast=True)
            total += tl.where(at < programs, value, 0.0).to(tl.float64)
        tl.store(loss_out, tl.sum(total, 0).to(tl.float32))
        tl.atomic_xchg(slots, 0)


@triton.jit
def _info_nce_focus_kernel(
    table,  # [sides, 16, B], of rows that weigh 1
    grad,  # [sides, B, D], or None
    loss_out,  # []
    B,
    D,
    scale,
    focus,
    SIDES: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (i, n): the weights of a focused mean for BLOCK_B rows, and columns of the gradient.

    Every program sums all losses, in one order. Bases are relative to the largest one, before the
    power: they may be subnormal or 0 where the share of a row is still well defined.
    """
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    keep = rows < B
    once = rows < tl.where(tl.program_id(1) == 0, B, 0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    reduced = tl.zeros((BLOCK,), tl.float64)
    for side in range(SIDES):
        losses = table + side * _ROWS * B + _LOSS * B
        largest = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, B, BLOCK):
            at = first + tl.arange(0, BLOCK)
            largest = tl.maximum(
                largest, one_minus_exp(tl.load(losses + at, mask=at < B, other=0.0))
            )
        most = tl.max(largest, 0)
        most = tl.where(most == 0.0, 1.0, most)
        total = tl.zeros((BLOCK,), tl.float64)
        weighted = tl.zeros((BLOCK,), tl.float64)
        for first in range(0, B, BLOCK):
            at = first + tl.arange(0, BLOCK)
            loss = tl.load(losses + at, mask=at < B, other=0.0)
            power = _power(loss, most, focus).to(tl.float64)
            total += power
            weighted += power * loss.to(tl.float64)
        all_of = tl.sum(total, 0)
        all_of = tl.where(all_of == 0.0, 1.0, all_of)
        reduced += weighted / all_of
        loss = tl.load(losses + rows, mask=keep, other=0.0)
        weight = _power(loss, most, focus) * (scale / all_of.to(tl.float32))
        to = table + side * _ROWS * B + rows
        tl.store(to + _WEIGHT * B, weight, mask=once)
        for row in tl.static_range(_POSITIVE_GRAD, _ROWS):
            if row < _LSE or (row >= _LSE_GRAD and row < _EXTRA_LSE) or row >= _EXTRA_GRAD:
                value = tl.load(to + row * B, mask=once, other=0.0)
                tl.store(to + row * B, value * weight, mask=once)
        if grad is not None:
            place = (side * B + rows).to(tl.int64)[:, None] * D + d[None, :]
            inside = keep[:, None] & (d < D)[None, :]
            value = tl.load(grad + place, mask=inside, other=0.0)
            tl.store(grad + place, value * weight[:, None], mask=inside)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(loss_out, tl.sum(reduced, 0).to(tl.float32) * scale)


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
        p = tl.load(table + _POSITIVE_GRAD * B + rows, mask=keep, other=0.0)
        zero = tl.program_id(0) * 0
        _scaled_side(
            g, unit, added_query, added_key, query, p, to_query, to_key, zero, B, D, rows, d,
            inside, stride_qb, stride_qd,
        )  # fmt: skip
        if SIDES == 2:
            p = tl.load(table + (_ROWS + _POSITIVE_GRAD) * B + rows, mask=keep, other=0.0)
            _scaled_side(
                g, unit, added_query, added_key, other_query, p, to_other_query, to_other_key,
                zero + 1, B, D, rows, d, inside, stride_qb, stride_qd,
            )  # fmt: skip
    elif tl.program_id(1) == 0:
        by_tau = tl.zeros((BLOCK,), tl.float64)
        by_beta = tl.zeros((BLOCK,), tl.float64)
        for side in range(SIDES):
            start = table + side * _ROWS * B
            for first in range(0, B, BLOCK):
                at = first + tl.arange(0, BLOCK)
                keep = at < B
                g = tl.load(upstream + at * step, mask=keep, other=0.0).to(tl.float64)
                tau = tl.load(start + _TEMPERATURE_GRAD * B + at, mask=keep, other=0.0)
                beta = tl.load(start + _HARDNESS_GRAD * B + at, mask=keep, other=0.0)
                by_tau += tau.to(tl.float64) * g
                by_beta += beta.to(tl.float64) * g
        if to_temperature is not None:
            tl.store(to_temperature, tl.sum(by_tau, 0).to(tl.float32))
        if to_hardness is not None:
            tl.store(to_hardness, tl.sum(by_beta, 0).to(tl.float32))
