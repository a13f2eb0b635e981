"""One pass over the bank, attention with K = V: log-sum-exps, weighted row sums, the hardest row.

Exponents come sorted so that those with an accumulator are first: slot n of the kernel is the
exponent ``SCALE_n`` of the call. All of them share one running maximum of s, for they are >= 0.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton._device import (
    LOG2E,
    NEG_INF,
    finite_or_zero,
    matmul,
    positive,
    shrink_factor,
    to_operand,
    valid_slots,
)


@triton.jit
def _load_tile(
    pointer,
    desc,
    first_row,
    first_col,
    rows,
    cols,
    stride_row,
    stride_col,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """[BLOCK_R, BLOCK_C] from (first_row, first_col) in OPERAND, zero outside rows x cols."""
    if DESC:
        tile = desc.load([first_row, first_col])
    else:
        r = first_row + tl.arange(0, BLOCK_R)
        c = first_col + tl.arange(0, BLOCK_C)
        offset = r.to(tl.int64)[:, None] * stride_row + c.to(tl.int64)[None, :] * stride_col
        tile = tl.load(pointer + offset, mask=(r < rows)[:, None] & (c < cols)[None, :], other=0.0)
    return to_operand(tile, OPERAND)


@triton.jit
def _add_exponent(s, peak, base, c2, total, moment, OPERAND: tl.constexpr, MOMENTS):
    """Weights p of a tile in the operand dtype, and the running sums with the tile in them.

    Masked s are -inf and weigh exp2(-inf) = 0: no mask is kept, registers are short.
    """
    p = tl.exp2((s - base[:, None]) * c2)
    # The row sum takes the rounded weights, which the second product uses.
    p = p.to(OPERAND)
    shrink = shrink_factor(peak, base, c2)
    total = total * shrink + tl.sum(p.to(tl.float32), 1)
    if MOMENTS:
        share = tl.where(s == NEG_INF, 0.0, p.to(tl.float32) * s)
        moment = moment * shrink + tl.sum(share, 1)
    return p, shrink, total, moment


@triton.jit
def _add_rows(acc, p, shrink, row_scale, tile, SCALED: tl.constexpr, PRECISION: tl.constexpr):
    """acc shrink + p m: the scale of an 8-bit row goes into its weight, never into the row."""
    weight = p
    if SCALED:
        weight = (p.to(tl.float32) * row_scale[None, :]).to(tile.dtype)
    acc = acc * shrink[:, None]
    return matmul(weight, tile, acc, PRECISION)


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
    B,
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
    SCALED: tl.constexpr,
    CLEAN: tl.constexpr,
    WHOLE: tl.constexpr,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sums of BLOCK_B rows over the bank tiles [first_tile, last_tile)."""
    # The accumulators that are not wanted shrink to one column.
    D0: tl.constexpr = BLOCK_D if A >= 1 else 1
    D1: tl.constexpr = BLOCK_D if A >= 2 else 1
    peak = tl.full((BLOCK_B,), NEG_INF, tl.float32)
    total_0 = tl.zeros((BLOCK_B,), tl.float32)
    total_1 = tl.zeros((BLOCK_B,), tl.float32)
    total_2 = tl.zeros((BLOCK_B,), tl.float32)
    moment_0 = tl.zeros((BLOCK_B,), tl.float32)
    moment_1 = tl.zeros((BLOCK_B,), tl.float32)
    moment_2 = tl.zeros((BLOCK_B,), tl.float32)
    acc_0 = tl.zeros((BLOCK_B, D0), tl.float32)
    acc_1 = tl.zeros((BLOCK_B, D1), tl.float32)
    count = tl.zeros((BLOCK_B,), tl.int32)
    index = tl.full((BLOCK_B,), -1, tl.int32)
    first_row = tl.program_id(0) * BLOCK_B
    for tile_number in range(first_tile, last_tile):
        first = tile_number * BLOCK_K
        cols = first + tl.arange(0, BLOCK_K)
        col_ids = cols.to(tl.int64)
        scale = tl.full((BLOCK_K,), 1.0, tl.float32)
        if HAS_COL_IDS:
            col_ids = tl.load(bank_ids + cols, mask=cols < K, other=-1)
        if SCALED:
            scale = tl.load(row_scale + cols, mask=cols < K, other=0.0)
            if HAS_COL_IDS:
                scale = tl.where(col_ids == -1, 0.0, scale)
        if WHOLE:
            if CLEAN:
                # An empty slot may hold NaN, and 0 x NaN would enter the second product: it is
                # left out of the copy itself.
                d = tl.arange(0, BLOCK_D)
                offset = cols.to(tl.int64)[:, None] * stride_mk + d[None, :] * stride_md
                filled = (col_ids != -1)[:, None] & (d < D)[None, :]
                tile = to_operand(tl.load(bank + offset, mask=filled, other=0.0), OPERAND)
            else:
                tile = _load_tile(
                    bank, bank_desc, first, 0, K, D, stride_mk, stride_md, DESC, OPERAND,
                    BLOCK_K, BLOCK_D,
                )  # fmt: skip
            s = matmul(q, tl.trans(tile), tl.zeros((BLOCK_B, BLOCK_K), tl.float32), PRECISION)
        else:
            s = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
            for d in range(0, D, BLOCK_D):
                part = _load_tile(
                    query, query_desc, first_row, d, B, D, stride_qb, stride_qd, DESC, OPERAND,
                    BLOCK_B, BLOCK_D,
                )  # fmt: skip
                tile = _load_tile(
                    bank, bank_desc, first, d, K, D, stride_mk, stride_md, DESC, OPERAND,
                    BLOCK_K, BLOCK_D,
                )  # fmt: skip
                s = matmul(part, tl.trans(tile), s, PRECISION)
        if SCALED:
            s = s * scale[None, :]
        valid = valid_slots(
            rows, cols, K, row_ids, col_ids, HAS_ROW_IDS, HAS_COL_IDS, SELECT, IN_BATCH
        )
        if HAS_LIMIT:
            valid = valid & (s <= row_limit[:, None])
        s = tl.where(valid, s, NEG_INF)
        # Counted from s: the mask itself would be worked out again in another layout.
        count += tl.sum(tl.where(s == NEG_INF, 0, 1), 1)
        highest = tl.max(s, 1)
        if HARDEST:
            at = tl.min(tl.where(s == highest[:, None], cols[None, :], K), 1)
            index = tl.where(highest > peak, at, index)
            if E == 0:
                # No weights: a NaN similarity still has to reach the row's result.
                total_0 += tl.sum(tl.where(s != s, s, 0.0), 1)
        new_peak = tl.maximum(peak, highest)
        base = finite_or_zero(new_peak)
        if E >= 1:
            p, shrink, total_0, moment_0 = _add_exponent(
                s, peak, base, c2_0, total_0, moment_0, OPERAND, MOMENTS
            )
            if A >= 1:
                acc_0 = _add_rows(acc_0, p, shrink, scale, tile, SCALED, PRECISION)
        if E >= 2:
            p, shrink, total_1, moment_1 = _add_exponent(
                s, peak, base, c2_1, total_1, moment_1, OPERAND, MOMENTS
            )
            if A >= 2:
                acc_1 = _add_rows(acc_1, p, shrink, scale, tile, SCALED, PRECISION)
        if E >= 3:
            p, shrink, total_2, moment_2 = _add_exponent(
                s, peak, base, c2_2, total_2, moment_2, OPERAND, MOMENTS
            )
        peak = new_peak
    return (
        peak, total_0, total_1, total_2, moment_0, moment_1, moment_2, acc_0, acc_1, count, index
    )  # fmt: skip


@triton.jit
def _write_exponent(
    lse_out,
    moment_out,
    acc_out,
    part,
    slot,
    acc_slot,
    rows,
    B,
    D,
    E,
    A,
    c,
    peak,
    total,
    moment,
    acc,
    ACC: tl.constexpr,
    MOMENTS: tl.constexpr,
    FINAL: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Results of one exponent, or its unnormalised sums as part ``part`` of a split bank."""
    row = part.to(tl.int64) * E + slot
    keep = rows < B
    some = tl.where(total == 0.0, 1.0, total)
    if FINAL:
        # Also for c = 0, where c times a maximum of -inf would be NaN.
        value = tl.where(total == 0.0, NEG_INF, c * finite_or_zero(peak) + tl.log(some))
    else:
        value = total
    tl.store(lse_out + row * B + rows, value, mask=keep)
    if MOMENTS:
        tl.store(moment_out + row * B + rows, moment / some if FINAL else moment, mask=keep)
    if ACC:
        d = tl.arange(0, BLOCK_D)
        first = (part.to(tl.int64) * A + acc_slot) * B
        offset = (first + rows)[:, None] * D + d[None, :]
        mask = keep[:, None] & (d < D)[None, :]
        tl.store(acc_out + offset, acc / some[:, None] if FINAL else acc, mask=mask)


@triton.jit
def _bank_lse_fwd_kernel(
    query,  # [B, D]
    query_desc,
    bank,  # [K, D]
    bank_desc,
    row_scale,  # [K]
    scales,  # [E]
    query_ids,  # [B]
    bank_ids,  # [K]
    limit,  # [B]
    peak_out,  # [S, B]
    lse_out,  # [S, E, B]
    moment_out,  # [S, E, B]
    acc_out,  # [S, A, B, D]
    count_out,  # [S, B] int64
    index_out,  # [S, B] int64
    B,
    K,
    D,
    stride_qb,
    stride_qd,
    stride_mk,
    stride_md,
    tiles_per_part,
    E: tl.constexpr,
    A: tl.constexpr,
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
    SCALED: tl.constexpr,
    WHOLE: tl.constexpr,
    DESC: tl.constexpr,
    FINAL: tl.constexpr,
    HOLES: tl.constexpr,  # this launch serves parts "with" or "without" empty slots, or any: "none"
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (i, n): BLOCK_B rows against the n-th part of the bank."""
    part = tl.program_id(1)
    first_row = tl.program_id(0) * BLOCK_B
    rows = first_row + tl.arange(0, BLOCK_B)
    keep = rows < B
    first_tile = part * tiles_per_part
    last_tile = tl.minimum(first_tile + tiles_per_part, tl.cdiv(K, BLOCK_K))
    c_0 = 0.0
    c_1 = 0.0
    c_2 = 0.0
    if E >= 1:
        c_0 = tl.load(scales + SCALE_0)
    if E >= 2:
        c_1 = tl.load(scales + SCALE_1)
    if E >= 3:
        c_2 = tl.load(scales + SCALE_2)
    row_ids = rows.to(tl.int64)
    if HAS_ROW_IDS:
        row_ids = tl.load(query_ids + rows, mask=keep, other=-1)
    row_limit = rows.to(tl.float32)
    if HAS_LIMIT:
        row_limit = tl.load(limit + rows, mask=keep, other=0.0)
    # A bank with ids is served by two launches of which each part heeds one: empty slots, which
    # may hold NaN, must be left out of the copy, and only parts with such a slot pay for that.
    if HOLES != "none":
        stop = tl.minimum(last_tile * BLOCK_K, K)
        holes = 0
        for first in range(first_tile * BLOCK_K, stop, 1024):
            slots = first + tl.arange(0, 1024)
            found = tl.load(bank_ids + slots, mask=slots < stop, other=0) == -1
            holes = tl.maximum(holes, tl.max(found.to(tl.int32), 0))
        if (holes != 0) != (HOLES == "with"):
            return
    q = row_limit
    if WHOLE:
        q = _load_tile(
            query, query_desc, first_row, 0, B, D, stride_qb, stride_qd, DESC, OPERAND,
            BLOCK_B, BLOCK_D,
        )  # fmt: skip
    (
        peak, total_0, total_1, total_2, moment_0, moment_1, moment_2, acc_0, acc_1, count, index
    ) = _scan(
        q, query, query_desc, bank, bank_desc, row_scale, bank_ids, row_ids, row_limit, rows,
        B, K, D, stride_qb, stride_qd, stride_mk, stride_md, first_tile, last_tile,
        positive(c_0 * LOG2E), positive(c_1 * LOG2E), positive(c_2 * LOG2E), E, A, SELECT, HAS_ROW_IDS, HAS_COL_IDS,
        HAS_LIMIT, IN_BATCH, MOMENTS, HARDEST, SCALED, HOLES == "with", WHOLE, DESC, OPERAND,
        PRECISION, BLOCK_B, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    at = part.to(tl.int64) * B + rows
    tl.store(count_out + at, count.to(tl.int64), mask=keep)
    nan = total_0 != total_0
    if HARDEST:
        tl.store(index_out + at, tl.where(nan, -1, index).to(tl.int64), mask=keep)
    if HARDEST or not FINAL:
        tl.store(peak_out + at, tl.where(nan, total_0, peak) if FINAL else peak, mask=keep)
    if E >= 1:
        _write_exponent(
            lse_out, moment_out, acc_out, part, SCALE_0, 0, rows, B, D, E, A, c_0, peak, total_0,
            moment_0, acc_0, A >= 1, MOMENTS, FINAL, BLOCK_D,
        )  # fmt: skip
    if E >= 2:
        _write_exponent(
            lse_out, moment_out, acc_out, part, SCALE_1, 1, rows, B, D, E, A, c_1, peak, total_1,
            moment_1, acc_1, A >= 2, MOMENTS, FINAL, BLOCK_D,
        )  # fmt: skip
    if E >= 3:
        _write_exponent(
            lse_out, moment_out, acc_out, part, SCALE_2, 2, rows, B, D, E, A, c_2, peak, total_2,
            moment_2, acc_1, False, MOMENTS, FINAL, BLOCK_D,
        )  # fmt: skip
