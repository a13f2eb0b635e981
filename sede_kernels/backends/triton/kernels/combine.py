# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The parts of a split bank become one result, always in the same order."""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import LOG2E, NEG_INF, log2_base, positive


@triton.jit
def _part_weight(peak, base, c2):
    """From the base of each part to the common one, 0 for a part without a valid slot."""
    return tl.where(peak == NEG_INF, 0.0, tl.exp2(log2_base(peak, c2) - base))


@triton.jit
def _bank_lse_combine_kernel(
    scales,  # [E]
    peak_in,  # [sides, S, B]; the others have a leading sides too
    total_in,  # [S, E, B]
    moment_in,  # [S, E, B]
    mass_in,  # [S, A, B]
    acc_in,  # [S, A, B, D]
    count_in,  # [S, B] int64
    index_in,  # [S, B] int64
    lse_out,  # [E, B]
    moment_out,  # [E, B]
    acc_out,  # [A, B, D]
    count_out,  # [B] int64
    top_out,  # [B]
    index_out,  # [B] int64
    S,
    B,
    D,
    E: tl.constexpr,
    A: tl.constexpr,
    ACC_0: tl.constexpr,
    ACC_1: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    MASS: tl.constexpr,  # rows are divided by sums of their own, not by the totals; one side
    PARTS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (b, n, side): row b, columns n BLOCK_D and on of its accumulators."""
    b = tl.program_id(0)
    side = tl.program_id(2).to(tl.int64)
    peak_in += side * S * B
    total_in += side * S * E * B
    moment_in += side * S * E * B
    acc_in += side * S * A * B * D
    count_in += side * S * B
    index_in += side * S * B
    lse_out += side * E * B
    moment_out += side * E * B
    acc_out += side * A * B * D
    count_out += side * B
    top_out += side * B
    index_out += side * B
    first_d = tl.program_id(1) * BLOCK_D
    part = tl.arange(0, PARTS)
    there = part < S
    row = part.to(tl.int64) * B + b
    peak = tl.load(peak_in + row, mask=there, other=NEG_INF)
    best = tl.max(peak, 0)
    if tl.program_id(1) == 0:
        count = tl.sum(tl.load(count_in + row, mask=there, other=0), 0)
        tl.store(count_out + b, count)
        bad = 0.0
        for e in tl.static_range(E):
            c2 = positive(tl.load(scales + e) * LOG2E)
            base = log2_base(best, c2)
            weight = _part_weight(peak, base, c2)
            at = (part.to(tl.int64) * E + e) * B + b
            total = tl.sum(tl.load(total_in + at, mask=there, other=0.0) * weight, 0)
            bad += total * 0.0
            some = tl.where(total == 0.0, 1.0, total)
            lse = tl.where(total == 0.0, NEG_INF, (base + tl.log2(some)) / LOG2E)
            tl.store(lse_out + e * B + b, lse)
            if MOMENTS:
                moment = tl.sum(tl.load(moment_in + at, mask=there, other=0.0) * weight, 0)
                tl.store(moment_out + e * B + b, moment / some)
        if HARDEST:
            found = tl.load(index_in + row, mask=there, other=-1)
            first = tl.where((peak == best) & (found >= 0), found, 9223372036854775807)
            index = tl.min(first, 0)
            index = tl.where((index == 9223372036854775807) | (bad != bad), -1, index)
            tl.store(index_out + b, index)
            tl.store(top_out + b, tl.where(bad != bad, bad, best))
    d = first_d + tl.arange(0, BLOCK_D)
    for a in tl.static_range(A):
        e = ACC_0 if a == 0 else ACC_1
        c2 = positive(tl.load(scales + e) * LOG2E)
        base = log2_base(best, c2)
        acc = tl.zeros((BLOCK_D,), tl.float32)
        total = 0.0
        for first in range(0, S, BLOCK_S):
            s = first + tl.arange(0, BLOCK_S)
            here = s < S
            block_peak = tl.load(peak_in + s.to(tl.int64) * B + b, mask=here, other=NEG_INF)
            weight = _part_weight(block_peak, base, c2)
            if MASS:
                sums = tl.load(mass_in + (s.to(tl.int64) * A + a) * B + b, mask=here, other=0.0)
            else:
                sums = tl.load(total_in + (s.to(tl.int64) * E + e) * B + b, mask=here, other=0.0)
            total += tl.sum(sums * weight, 0)
            offset = ((s.to(tl.int64) * A + a) * B + b)[:, None] * D + d[None, :]
            block = tl.load(acc_in + offset, mask=here[:, None] & (d < D)[None, :], other=0.0)
            acc += tl.sum(block * weight[:, None], 0)
        some = tl.where(total == 0.0, 1.0, total)
        tl.store(acc_out + (a * B + b).to(tl.int64) * D + d, acc / some, mask=d < D)
