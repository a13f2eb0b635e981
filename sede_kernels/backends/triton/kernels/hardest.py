# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""The k most similar valid rows of the bank, by keys that sort as (similarity, lowest index).

A key is an int64: the similarity's order in the high half, the complement of the slot in the low
one. Every key is different, so the result does not depend on how the bank is split.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import (
    NEG_INF,
    float_from_order,
    float_order,
    similarity,
    valid_slots,
)

_NOTHING = tl.constexpr(-(2**63))  # below the key of every slot


@triton.jit
def _keys(s, cols):
    """[B, J] int64 of similarities and slots; masked ones are ``_NOTHING``."""
    # The sign bit turned over: unsigned order becomes signed order.
    high = (float_order(s) ^ 2147483648).to(tl.int32, bitcast=True).to(tl.int64) << 32
    low = (~cols).to(tl.uint32, bitcast=True).to(tl.int64)
    return tl.where(s == NEG_INF, _NOTHING, high | low[None, :])


@triton.jit
def _merge(best, keys, RANKS: tl.constexpr):
    """[B, RANKS] the largest keys of both, descending; ``best`` is descending."""
    top = tl.flip(tl.topk(keys, RANKS), 1)
    # Descending against ascending: the larger of each pair are the RANKS largest of all.
    return tl.sort(tl.maximum(best, top), 1, descending=True)


@triton.jit
def _hardest_fwd_kernel(
    query,  # [B, D]
    query_desc,
    bank,  # [K, D]
    bank_desc,
    row_scale,  # [K]
    query_ids,  # [B]
    bank_ids,  # [K]
    below,  # [B] int64: only smaller keys are wanted
    key_out,  # [S, B, RANKS] int64
    B,
    K,
    D,
    stride_qb,
    stride_qd,
    stride_mk,
    stride_md,
    tiles_per_part,
    HAS_ROW_IDS: tl.constexpr,
    HAS_COL_IDS: tl.constexpr,
    HAS_BOUND: tl.constexpr,
    SCALED: tl.constexpr,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    RANKS: tl.constexpr,
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
    row_ids = rows.to(tl.int64)
    if HAS_ROW_IDS:
        row_ids = tl.load(query_ids + rows, mask=keep, other=-1)
    bound = row_ids
    if HAS_BOUND:
        bound = tl.load(below + rows, mask=keep, other=0)
    best = tl.full((BLOCK_B, RANKS), _NOTHING, tl.int64)
    least = tl.full((BLOCK_B,), _NOTHING, tl.int64)
    for tile_number in range(first_tile, last_tile):
        first = tile_number * BLOCK_K
        cols = first + tl.arange(0, BLOCK_K)
        s = similarity(
            query, query_desc, bank, bank_desc, first_row, first, B, K, D,
            stride_qb, stride_qd, stride_mk, stride_md, DESC, OPERAND, PRECISION,
            BLOCK_B, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        col_ids = cols.to(tl.int64)
        if HAS_COL_IDS:
            col_ids = tl.load(bank_ids + cols, mask=cols < K, other=-1)
        if SCALED:
            s = s * tl.load(row_scale + cols, mask=cols < K, other=0.0)[None, :]
        valid = valid_slots(
            rows, cols, K, row_ids, col_ids, HAS_ROW_IDS, HAS_COL_IDS, "mask", False
        )
        keys = _keys(tl.where(valid & (s == s), s, NEG_INF), cols)  # NaN is no candidate
        if HAS_BOUND:
            keys = tl.where(keys < bound[:, None], keys, _NOTHING)
        # Seldom after the first tiles of a part.
        if tl.max((tl.max(keys, 1) > least).to(tl.int32), 0) > 0:
            best = _merge(best, keys, RANKS)
            least = tl.min(best, 1)
    rank = tl.arange(0, RANKS)
    row = part.to(tl.int64) * B + rows
    tl.store(key_out + row[:, None] * RANKS + rank[None, :], best, mask=keep[:, None])


@triton.jit
def _hardest_combine_kernel(
    key_in,  # [S, B, RANKS] int64
    below_out,  # [B] int64: the last key of this round
    value_out,  # [B, k]
    index_out,  # [B, k] int64
    S,
    B,
    k,
    first_rank,
    RANKS: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Program i: BLOCK_B rows, all parts, ranks ``first_rank`` and on."""
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    keep = rows < B
    rank = tl.arange(0, RANKS)
    best = tl.full((BLOCK_B, RANKS), _NOTHING, tl.int64)
    for part in range(0, S):
        row = part * B + rows.to(tl.int64)
        keys = tl.load(key_in + row[:, None] * RANKS + rank[None, :], mask=keep[:, None], other=0)
        best = _merge(best, keys, RANKS)
    tl.store(below_out + rows, tl.min(best, 1), mask=keep)
    value = float_from_order((best >> 32).to(tl.int32).to(tl.uint32, bitcast=True) ^ 2147483648)
    index = 4294967295 - (best & 4294967295)
    nothing = best == _NOTHING
    at = first_rank + rank
    offset = rows.to(tl.int64)[:, None] * k + at[None, :]
    mask = keep[:, None] & (at < k)[None, :]
    tl.store(value_out + offset, tl.where(nothing, NEG_INF, value), mask=mask)
    tl.store(index_out + offset, tl.where(nothing, -1, index), mask=mask)
