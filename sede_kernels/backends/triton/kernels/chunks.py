# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Variant B: a chunk of the bank at a time, two matrix products with the weights between them.

The first kernel writes the weights of a chunk in the operand dtype, tile by tile, each tile with a
power of two of its own as base; the second multiplies them with the chunk's rows and folds the
tiles' sums into the running sums of its part. The chunk's weights stay in the L2 cache. Half
weights are summed twice: as they are for the log-sum-exp, rounded for the mean of rows.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import (
    LOG2E,
    NEG_INF,
    count_valid,
    has_holes,
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


@triton.jit(do_not_specialize=["first_col"])
def _chunk_weights_kernel(
    query,  # [B, D]
    query_desc,
    bank,  # [K, D]
    bank_desc,
    row_scale,  # [K]
    scales,  # [E]
    query_ids,  # [B]
    bank_ids,  # [K]
    limit,  # [B]
    weight_out,  # [A, B, C]
    peak_out,  # [T, B]
    total_out,  # [T, E, B]
    moment_out,  # [T, E, B]
    mass_out,  # [T, A, B]
    count_out,  # [T, B] int32
    index_out,  # [T, B] int32
    first_col,
    B,
    K,
    D,
    C,
    stride_qb,
    stride_qd,
    stride_mk,
    stride_md,
    E: tl.constexpr,
    A: tl.constexpr,
    SCALE_0: tl.constexpr,
    SCALE_1: tl.constexpr,
    SCALE_2: tl.constexpr,
    SELECT: tl.constexpr,
    HAS_ROW_IDS: tl.constexpr,
    HAS_COL_IDS: tl.constexpr,
    HAS_LIMIT: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    MASS: tl.constexpr,  # the weights' own sums differ from the total: they are rounded
    SCALED: tl.constexpr,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (i, t): BLOCK_B rows against the t-th tile of the chunk that starts at first_col."""
    first_row = tl.program_id(0) * BLOCK_B
    tile_number = tl.program_id(1)
    first = first_col + tile_number * BLOCK_K
    s = similarity(
        query, query_desc, bank, bank_desc, first_row, first, B, K, D,
        stride_qb, stride_qd, stride_mk, stride_md, DESC, OPERAND, PRECISION,
        BLOCK_B, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    rows = first_row + tl.arange(0, BLOCK_B)
    cols = first + tl.arange(0, BLOCK_K)
    keep = rows < B
    row_ids = rows.to(tl.int64)
    if HAS_ROW_IDS:
        row_ids = tl.load(query_ids + rows, mask=keep, other=-1)
    col_ids = cols.to(tl.int64)
    if HAS_COL_IDS:
        col_ids = tl.load(bank_ids + cols, mask=cols < K, other=-1)
    scale = tl.full((BLOCK_K,), 1.0, tl.float32)
    if SCALED:
        scale = tl.load(row_scale + cols, mask=cols < K, other=0.0)
        if HAS_COL_IDS:
            scale = tl.where(col_ids == -1, 0.0, scale)
        s = s * scale[None, :]
    valid = valid_slots(rows, cols, K, row_ids, col_ids, HAS_ROW_IDS, HAS_COL_IDS, SELECT, False)
    if HAS_LIMIT:
        row_limit = tl.load(limit + rows, mask=keep, other=0.0)
        valid = valid & (s <= row_limit[:, None])
    s = tl.where(valid, s, NEG_INF)
    peak = tl.max(s, 1)
    at = tile_number.to(tl.int64) * B + rows
    tl.store(peak_out + at, peak, mask=keep)
    tl.store(count_out + at, count_valid(s), mask=keep)
    if HARDEST:
        index = tl.min(tl.where(s == peak[:, None], cols[None, :], K), 1)
        tl.store(index_out + at, index, mask=keep)
    inside = tile_number * BLOCK_K + tl.arange(0, BLOCK_K)
    for e in tl.static_range(E):
        slot = SCALE_0 if e == 0 else (SCALE_1 if e == 1 else SCALE_2)
        c2 = positive(tl.load(scales + slot) * LOG2E)
        p = tl.exp2(s * c2 - log2_base(peak, c2)[:, None])
        sum_at = (tile_number.to(tl.int64) * E + slot) * B + rows
        tl.store(total_out + sum_at, tl.sum(p, 1), mask=keep)
        if MOMENTS:
            share = tl.where(s == NEG_INF, 0.0, p * s)
            tl.store(moment_out + sum_at, tl.sum(share, 1), mask=keep)
        if e < A:
            if SCALED:
                # The scale of an 8-bit row goes into its weight, never into the row.
                p = p * scale[None, :]
            weight = rounded(p, OPERAND)
            if MASS:
                mass_at = (tile_number.to(tl.int64) * A + e) * B + rows
                tl.store(mass_out + mass_at, tl.sum(weight.to(tl.float32), 1), mask=keep)
            row = (e * B + rows).to(tl.int64)
            tl.store(weight_out + row[:, None] * C + inside[None, :], weight, mask=keep[:, None])


@triton.jit
def _fold_tiles(
    tile_peak,
    tile_sum,  # [T, N, B]
    sum_io,  # [S, N, B]
    scales,
    part,
    first_tile,
    last_tile,
    rows,
    keep,
    old_peak,
    peak,
    B,
    N: tl.constexpr,
    SCALE_0: tl.constexpr = 0,
    SCALE_1: tl.constexpr = 1,
    SCALE_2: tl.constexpr = 2,
):
    """Sums of the tiles of a part on top of its running sums, all at the base of ``peak``.

    Sum number n belongs to the exponent ``SCALE_n``.
    """
    for n in tl.static_range(N):
        slot = SCALE_0 if n == 0 else (SCALE_1 if n == 1 else SCALE_2)
        c2 = positive(tl.load(scales + slot) * LOG2E)
        base = log2_base(peak, c2)
        at = sum_io + (part.to(tl.int64) * N + n) * B + rows
        total = tl.load(at, mask=keep, other=0.0) * rebase(old_peak, base, c2)
        for t in range(first_tile, last_tile):
            high = tl.load(tile_peak + t * B + rows, mask=keep, other=NEG_INF)
            part_sum = tl.load(tile_sum + (t * N + n) * B + rows, mask=keep, other=0.0)
            total += part_sum * rebase(high, base, c2)
        tl.store(at, total, mask=keep)


@triton.jit(do_not_specialize=["first_col", "tiles", "tiles_per_part"])
def _chunk_rows_kernel(
    weight,  # [A, B, C]
    weight_desc,  # [A B, C]
    bank,  # [K, D]
    bank_desc,
    scales,  # [E]
    bank_ids,  # [K]
    tile_peak,  # [T, B]
    tile_total,  # [T, E, B]
    tile_moment,  # [T, E, B]
    tile_mass,  # [T, A, B]
    tile_count,  # [T, B] int32
    tile_index,  # [T, B] int32
    peak_in,  # [S, B]
    peak_out,  # [S, B]
    total_io,  # [S, E, B]
    moment_io,  # [S, E, B]
    mass_io,  # [S, A, B]
    acc_io,  # [S, A, B, D]
    count_io,  # [S, B] int64
    index_io,  # [S, B] int64
    first_col,
    tiles,
    tiles_per_part,
    B,
    K,
    D,
    C,
    stride_mk,
    stride_md,
    E: tl.constexpr,
    A: tl.constexpr,
    SCALE_0: tl.constexpr,
    SCALE_1: tl.constexpr,
    MOMENTS: tl.constexpr,
    HARDEST: tl.constexpr,
    MASS: tl.constexpr,
    HOLES: tl.constexpr,
    DESC: tl.constexpr,
    WEIGHT_DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (i, n, part): BLOCK_B rows, columns of one accumulator, a part of the chunk's tiles.

    The programs of the first columns also fold the sums; the maximum is written beside the one
    that the others still read.
    """
    first_row = tl.program_id(0) * BLOCK_B
    blocks = tl.cdiv(D, BLOCK_D)
    a = tl.program_id(1) // blocks
    first_d = (tl.program_id(1) % blocks) * BLOCK_D
    part = tl.program_id(2)
    rows = first_row + tl.arange(0, BLOCK_B)
    keep = rows < B
    first_tile = part * tiles_per_part
    last_tile = tl.minimum(first_tile + tiles_per_part, tiles)
    if HOLES != "none":
        start = first_col + first_tile * BLOCK_K
        holes = has_holes(bank_ids, start, tl.minimum(first_col + last_tile * BLOCK_K, K))
        if (holes != 0) != (HOLES == "with"):
            return
    own = part * B + rows
    old_peak = tl.load(peak_in + own, mask=keep, other=NEG_INF)
    peak = old_peak
    for t in range(first_tile, last_tile):
        high = tl.load(tile_peak + t * B + rows, mask=keep, other=NEG_INF)
        peak = tl.maximum(peak, high)
    c2 = positive(tl.load(scales + SCALE_0) * LOG2E)
    if A == 2:
        if a == 1:
            c2 = positive(tl.load(scales + SCALE_1) * LOG2E)
    base = log2_base(peak, c2)
    d = first_d + tl.arange(0, BLOCK_D)
    row = (part.to(tl.int64) * A + a) * B + rows
    mask = keep[:, None] & (d < D)[None, :]
    acc_at = acc_io + row[:, None] * D + d[None, :]
    acc = tl.load(acc_at, mask=mask, other=0.0) * rebase(old_peak, base, c2)[:, None]
    for t in range(first_tile, last_tile):
        high = tl.load(tile_peak + t * B + rows, mask=keep, other=NEG_INF)
        p = load_tile(
            weight, weight_desc, a * B + first_row, t * BLOCK_K, A * B, C, C, 1, WEIGHT_DESC,
            OPERAND, BLOCK_B, BLOCK_K,
        )  # fmt: skip
        # A power of two: nothing is rounded a second time.
        p = rounded(p.to(tl.float32) * rebase(high, base, c2)[:, None], OPERAND)
        first = first_col + t * BLOCK_K
        if HOLES == "with":
            cols = first + tl.arange(0, BLOCK_K)
            col_ids = tl.load(bank_ids + cols, mask=cols < K, other=-1)
            tile = load_filled(
                bank, bank_desc, first, first_d, col_ids, D, stride_mk, stride_md, DESC, OPERAND,
                BLOCK_K, BLOCK_D,
            )  # fmt: skip
        else:
            tile = load_tile(
                bank, bank_desc, first, first_d, K, D, stride_mk, stride_md, DESC, OPERAND,
                BLOCK_K, BLOCK_D,
            )  # fmt: skip
        acc = matmul(p, tile, acc, PRECISION)
    tl.store(acc_at, acc, mask=mask)
    if tl.program_id(1) == 0:
        _fold_tiles(
            tile_peak, tile_total, total_io, scales, part, first_tile, last_tile, rows, keep,
            old_peak, peak, B, E,
        )  # fmt: skip
        if MOMENTS:
            _fold_tiles(
                tile_peak, tile_moment, moment_io, scales, part, first_tile, last_tile, rows, keep,
                old_peak, peak, B, E,
            )  # fmt: skip
        if MASS:
            _fold_tiles(
                tile_peak, tile_mass, mass_io, scales, part, first_tile, last_tile, rows, keep,
                old_peak, peak, B, A, SCALE_0, SCALE_1,
            )  # fmt: skip
        count = tl.load(count_io + own, mask=keep, other=0)
        for t in range(first_tile, last_tile):
            at = t * B + rows
            count += tl.load(tile_count + at, mask=keep, other=0).to(tl.int64)
        tl.store(count_io + own, count, mask=keep)
        if HARDEST:
            best = old_peak
            index = tl.load(index_io + own, mask=keep, other=-1)
            for t in range(first_tile, last_tile):
                at = t * B + rows
                high = tl.load(tile_peak + at, mask=keep, other=NEG_INF)
                found = tl.load(tile_index + at, mask=keep, other=-1).to(tl.int64)
                index = tl.where(high > best, found, index)
                best = tl.maximum(best, high)
            tl.store(index_io + own, index, mask=keep)
        tl.store(peak_out + own, peak, mask=keep)
