# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The weighted InfoNCE from the sums of its passes: losses, statistics, gradients of a unit loss.

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
    power,
    row_loss,
    segment_sums,
    share_of,
)
from sede_kernels.backends.triton.kernels.info_nce_table import (
    AT_EXTRA_GRAD,
    AT_EXTRA_LSE,
    AT_HARDEST,
    AT_HARDNESS_GRAD,
    AT_LOG_NEGATIVES,
    AT_LOSS,
    AT_LSE,
    AT_LSE_GRAD,
    AT_POSITIVE,
    AT_POSITIVE_GRAD,
    AT_TEMPERATURE_GRAD,
    AT_WEIGHT,
    BETA_AT,
    EXTRA_AT,
    TABLE_ROWS,
)


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
            weight *= power(loss, 1.0, focus)
        by_s *= weight
        first *= weight
        second *= weight
        toward *= weight
        mean_row *= weight
        to = table + side * TABLE_ROWS * B + rows
        tl.store(to + AT_LOSS * B, loss, mask=once)
        tl.store(to + AT_WEIGHT * B, weight, mask=once)
        tl.store(to + AT_POSITIVE * B, s, mask=once)
        tl.store(to + AT_LOG_NEGATIVES * B, log_negatives, mask=once)
        tl.store(to + AT_HARDEST * B, top, mask=once)
        tl.store(to + AT_POSITIVE_GRAD * B, by_s, mask=once)
        tl.store(to + AT_TEMPERATURE_GRAD * B, -it * it * by_it * weight, mask=once)
        tl.store(to + AT_HARDNESS_GRAD * B, by_beta * weight, mask=once)
        tl.store(to + AT_LSE * B, lse, mask=once)
        tl.store(to + AT_LSE * B + B, lse_1, mask=once)
        tl.store(to + AT_LSE_GRAD * B, first, mask=once)
        tl.store(to + AT_LSE_GRAD * B + B, second, mask=once)
        tl.store(to + AT_EXTRA_LSE * B, more, mask=once)
        tl.store(to + AT_EXTRA_LSE * B + B, more_0, mask=once)
        tl.store(to + AT_EXTRA_GRAD * B, toward, mask=once)
        tl.store(to + AT_EXTRA_GRAD * B + B, mean_row, mask=once)
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
