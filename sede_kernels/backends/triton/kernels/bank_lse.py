# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Variant A: one pass over the bank, attention with K = V, and the pass without weighted rows.

Exponents come sorted so that the one with an accumulator is first: number n of the kernel is the
exponent ``SCALE_n`` of the call. All of them share one maximum of s, for they are >= 0: the
running one, or (``STATIC``) 1, the most that unit vectors reach, so that sums add up without a new
base. Weights are summed twice: as they are for the log-sum-exp, and as rounded to the operand dtype
for the mean of rows, whose product takes them so. Two banks of one shape (images and texts) go in
one launch, half of the programs each.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import (
    LOG2E,
    NEG_INF,
    count_valid,
    has_holes,
    known_from_here,
    load_filled,
    load_tile,
    log2_base,
    matmul,
    positive,
    rebase,
    rounded,
    similarity,
    valid_slots,
)


@triton.jit
def _add_exponent(
    s,
    peak,
    new_peak,
    c2,
    total,
    moment,
    MOMENTS: tl.constexpr,
    STATIC: tl.constexpr,
):
    """fp32 weights p of a tile, and the running sums with the tile in them.

    Masked s are -inf and weigh exp2(-inf) = 0: no mask is kept, registers are short.
    """
    if STATIC:
        shrink = total
        p = tl.exp2(s * c2 - tl.ceil(c2))
    else:
        base = log2_base(new_peak, c2)
        shrink = rebase(peak, base, c2)
        p = tl.exp2(s * c2 - base[:, None])
        total *= shrink
        moment *= shrink
    total += tl.sum(p, 1)
    if MOMENTS:
        moment += tl.sum(tl.where(s == NEG_INF, 0.0, p * s), 1)
    return p, shrink, total, moment


@triton.jit
def _scan(
    q,
    query,
    query_desc,
    bank,
    bank_desc,
    row_scale,
    bank_ids,
    row_ids,
    row_limit,
    rows,
    first_row,
    last_row,
    K,
    D,
    stride_qb,
    stride_qd,
    stride_mk,
    stride_md,
    first_tile,
    last_tile,
    c2_0,
    c2_1,
    c2_2,
    E: tl.constexpr,
    A: tl.constexpr,
    SELECT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    HAS_COL_IDS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    IN_BATCH: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    STATIC: tl.constexpr,
    SCALED: tl.constexpr,
    HOLES: tl.constexpr,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sums of BLOCK_B rows, at ``first_row`` of the queries, over tiles of the bank."""
    FILLED: tl.constexpr = HOLES == "without"
    peak = tl.full((BLOCK_B,), 1.0 if STATIC else NEG_INF, tl.float32)
    total_0 = tl.zeros((BLOCK_B,), tl.float32)
    total_1 = tl.zeros((BLOCK_B,), tl.float32)
    total_2 = tl.zeros((BLOCK_B,), tl.float32)
    mass = tl.zeros((BLOCK_B,), tl.float32)
    moment_0 = tl.zeros((BLOCK_B,), tl.float32)
    moment_1 = tl.zeros((BLOCK_B,), tl.float32)
    moment_2 = tl.zeros((BLOCK_B,), tl.float32)
    # An accumulator that is not wanted shrinks to one column.
    acc = tl.zeros((BLOCK_B, BLOCK_D if A else 1), tl.float32)
    count = tl.zeros((BLOCK_B,), tl.int32)
    index = tl.full((BLOCK_B,), -1, tl.int32)
    for tile_number in range(first_tile, last_tile):
        first = tile_number * BLOCK_K
        cols = first + tl.arange(0, BLOCK_K)
        col_ids = cols.to(tl.int64)
        scale = tl.full((BLOCK_K,), 1.0, tl.float32)
        if HAS_COL_IDS:
            if FILLED:
                col_ids = tl.load(bank_ids + tl.minimum(cols, K - 1))
            else:
                col_ids = tl.load(bank_ids + cols, mask=cols < K, other=-1)
        if SCALED:
            scale = tl.load(row_scale + cols, mask=cols < K, other=0.0)
            if HAS_COL_IDS:
                scale = tl.where(col_ids == -1, 0.0, scale)
        if A:
            if HOLES == "with":
                tile = load_filled(
                    bank, bank_desc, first, 0, col_ids, D, stride_mk, stride_md, DESC, OPERAND,
                    BLOCK_K, BLOCK_D,
                )  # fmt: skip
            else:
                tile = load_tile(
                    bank, bank_desc, first, 0, K, D, stride_mk, stride_md, DESC, OPERAND,
                    BLOCK_K, BLOCK_D,
                )  # fmt: skip
            s = matmul(q, tl.trans(tile), tl.zeros((BLOCK_B, BLOCK_K), tl.float32), PRECISION)
        else:
            s = similarity(
                query, query_desc, bank, bank_desc, first_row, first, last_row, K, D,
                stride_qb, stride_qd, stride_mk, stride_md, DESC, OPERAND, PRECISION,
                BLOCK_B, BLOCK_K, BLOCK_D,
            )  # fmt: skip
        if SCALED:
            s = s * scale[None, :]
        valid = valid_slots(
            rows, cols, K, row_ids, col_ids, HAS_ROW_IDS, HAS_COL_IDS, SELECT, IN_BATCH, FILLED
        )
        s = tl.where(valid, s, NEG_INF)
        if A and BLOCK_D >= 512:
            # Says what is said already, in a branch between the two products: without one the
            # compiler gives both the same warps, of which 64 rows feed half.
            if first + BLOCK_K > K:
                s = tl.where((cols < K)[None, :], s, NEG_INF)
        if HAS_LIMIT:
            s = tl.where(s <= row_limit[:, None], s, NEG_INF)
        # Counted from s: a mask itself would be worked out again in another layout.
        count += count_valid(s)
        new_peak = peak
        if not STATIC:
            highest = tl.max(s, 1)
            new_peak = tl.maximum(peak, highest)
        if HARDEST:
            # Seldom after the first tiles, and the search is kept out of the way of the rest.
            if tl.max((highest > peak).to(tl.int32), 0) > 0:
                at = tl.min(tl.where(s == highest[:, None], cols[None, :], K), 1)
                index = tl.where(highest > peak, at, index)
        p, shrink, total_0, moment_0 = _add_exponent(
            s, peak, new_peak, c2_0, total_0, moment_0, MOMENTS, STATIC
        )
        if A:
            if not STATIC:
                acc *= shrink[:, None]
            if SCALED:
                # The scale of an 8-bit row goes into its weight, never into the row.
                weight = rounded(p * scale[None, :], OPERAND)
            else:
                weight = rounded(p, OPERAND)
                if not STATIC:
                    mass *= shrink
                mass += tl.sum(weight.to(tl.float32), 1)
            acc = matmul(weight, tile, acc, PRECISION)
        if E >= 2:
            p, shrink, total_1, moment_1 = _add_exponent(
                s, peak, new_peak, c2_1, total_1, moment_1, MOMENTS, STATIC
            )
        if E >= 3:
            p, shrink, total_2, moment_2 = _add_exponent(
                s, peak, new_peak, c2_2, total_2, moment_2, MOMENTS, STATIC
            )
        peak = new_peak
    # Of rounded weights the mean divides by their own sum; an 8-bit row's carry its scale besides.
    if SCALED:
        mass = total_0
    return peak, total_0, total_1, total_2, mass, moment_0, moment_1, moment_2, acc, count, index


@triton.jit
def _write_exponent(
    lse_out,
    moment_out,
    slot,
    exponent,
    rows,
    B,
    E,
    c2,
    peak,
    total,
    moment,
    MOMENTS: tl.constexpr,
    FINAL: tl.constexpr,
):
    """Results of one exponent, or its unnormalised sums as one part of a split bank."""
    row = slot.to(tl.int64) * E + exponent
    keep = rows < B
    some = tl.where(total == 0.0, 1.0, total)
    value = total
    if FINAL:
        lse = (log2_base(peak, c2) + tl.log2(some)) / LOG2E
        value = tl.where(total == 0.0, NEG_INF, lse)
    tl.store(lse_out + row * B + rows, value, mask=keep)
    if MOMENTS:
        tl.store(moment_out + row * B + rows, moment / some if FINAL else moment, mask=keep)


@triton.jit
def _bank_lse_fwd_kernel(
    query,  # [SIDES B, D]
    query_desc,
    bank,  # [K, D]
    bank_desc,
    row_scale,  # [K]
    bank_ids,  # [K]
    other_bank,  # the same of the second side
    other_desc,
    other_scale,
    other_ids,
    scales,  # [E]
    query_ids,  # [B]
    limit,  # [SIDES B]
    peak_out,  # [SIDES S, B]
    lse_out,  # [SIDES S, E, B]
    moment_out,  # [SIDES S, E, B]
    acc_out,  # [SIDES S, A, B, D]
    count_out,  # [SIDES S, B] int64
    index_out,  # [SIDES S, B] int64
    B,
    K,
    D,
    stride_qb,
    stride_qd,
    stride_mk,
    stride_md,
    tiles_per_part,
    SIDES: tl.constexpr,  # 2: two banks of one shape, each with B queries of its own
    E: tl.constexpr,
    A: tl.constexpr,  # 1: a tile holds whole rows; 0: rows are walked in steps of BLOCK_D
    SCALE_0: tl.constexpr,
    SCALE_1: tl.constexpr,
    SCALE_2: tl.constexpr,
    SELECT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    HAS_COL_IDS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    IN_BATCH: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    STATIC: tl.constexpr,  # unit vectors: weights relative to s = 1, whatever the largest s is
    SCALED: tl.constexpr,
    DESC: tl.constexpr,
    FINAL: tl.constexpr,
    HOLES: tl.constexpr,  # this launch serves parts "with" or "without" empty slots, or any: "none"
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (i, n, side): BLOCK_B rows of a side against the n-th part of its bank."""
    part = tl.program_id(1)
    side = 0
    if SIDES == 2:
        side = tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    keep = rows < B
    first_row = side * B + tl.program_id(0) * BLOCK_B
    last_row = side * B + B
    first_tile = part * tiles_per_part
    last_tile = tl.minimum(first_tile + tiles_per_part, tl.cdiv(K, BLOCK_K))
    if SIDES == 2:
        if side == 1:
            bank = other_bank
            if DESC:
                bank_desc = other_desc
            if SCALED:
                row_scale = other_scale
            if HAS_COL_IDS:
                bank_ids = other_ids
    # A bank with ids is served by two launches of which each part heeds one: empty slots must be
    # left out of the copy, and only parts with such a slot pay for that.
    if HOLES != "none":
        holes = has_holes(bank_ids, first_tile * BLOCK_K, tl.minimum(last_tile * BLOCK_K, K))
        if (holes != 0) != (HOLES == "with"):
            return
    c2_0 = positive(tl.load(scales + SCALE_0) * LOG2E)
    c2_1 = 0.0
    c2_2 = 0.0
    if E >= 2:
        c2_1 = positive(tl.load(scales + SCALE_1) * LOG2E)
    if E >= 3:
        c2_2 = positive(tl.load(scales + SCALE_2) * LOG2E)
    row_ids = rows.to(tl.int64)
    if HAS_ROW_IDS:
        row_ids = tl.load(query_ids + rows, mask=keep, other=-1)
    row_limit = rows.to(tl.float32)
    if HAS_LIMIT:
        row_limit = tl.load(limit + side * B + rows, mask=keep, other=0.0)
    q = row_limit
    if A:
        q = load_tile(
            query, query_desc, first_row, 0, last_row, D, stride_qb, stride_qd, DESC, OPERAND,
            BLOCK_B, BLOCK_D,
        )  # fmt: skip
    peak, total_0, total_1, total_2, mass, moment_0, moment_1, moment_2, acc, count, index = _scan(
        q, query, query_desc, bank, bank_desc, row_scale, bank_ids, row_ids, row_limit, rows,
        first_row, last_row, K, D, stride_qb, stride_qd, stride_mk, stride_md, first_tile,
        last_tile, c2_0, c2_1, c2_2, E, A, SELECT, HAS_ROW_IDS, HAS_COL_IDS, HAS_LIMIT, IN_BATCH,
        MOMENTS, HARDEST, STATIC, SCALED, HOLES, DESC, OPERAND, PRECISION, BLOCK_B, BLOCK_K,
        BLOCK_D,
    )  # fmt: skip
    rows = known_from_here(tl.program_id(0) * BLOCK_B) + tl.arange(0, BLOCK_B)
    keep = rows < B
    slot = side * tl.num_programs(1) + part
    at = slot.to(tl.int64) * B + rows
    tl.store(count_out + at, count.to(tl.int64), mask=keep)
    nan = total_0 != total_0
    if HARDEST:
        tl.store(index_out + at, tl.where(nan, -1, index).to(tl.int64), mask=keep)
    if HARDEST or not FINAL:
        tl.store(peak_out + at, tl.where(nan, total_0, peak) if FINAL else peak, mask=keep)
    _write_exponent(
        lse_out, moment_out, slot, SCALE_0, rows, B, E, c2_0, peak, total_0, moment_0,
        MOMENTS, FINAL,
    )  # fmt: skip
    if E >= 2:
        _write_exponent(
            lse_out, moment_out, slot, SCALE_1, rows, B, E, c2_1, peak, total_1, moment_1,
            MOMENTS, FINAL,
        )  # fmt: skip
    if E >= 3:
        _write_exponent(
            lse_out, moment_out, slot, SCALE_2, rows, B, E, c2_2, peak, total_2, moment_2,
            MOMENTS, FINAL,
        )  # fmt: skip
    if A:
        d = tl.arange(0, BLOCK_D)
        # A part keeps its mean row times its total, so that parts are weighed by exact totals.
        part_total = 1.0 if FINAL else total_0
        acc = acc * (part_total / tl.where(mass == 0.0, 1.0, mass))[:, None]
        mask = keep[:, None] & (d < D)[None, :]
        tl.store(acc_out + at[:, None] * D + d[None, :], acc, mask=mask)
