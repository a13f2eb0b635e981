# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Functions that several kernels share. Shapes: B rows of a tile, J columns."""

import triton
import triton.language as tl

from sede_kernels.backends.triton import interpreting

LOG2E = tl.constexpr(1.4426950408889634)
NEG_INF = tl.constexpr(float("-inf"))
_INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def matmul(a, b, acc, PRECISION: tl.constexpr):
    """A b + acc in fp32."""
    if _INTERPRETING:
        # The interpreter keeps bf16 as integers and would multiply those.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def to_operand(tile, OPERAND: tl.constexpr):
    """A tile in the operand dtype; 8-bit integers take the way through fp32, which is exact."""
    if tile.dtype == tl.int8:
        tile = tile.to(tl.float32)
    return tile.to(OPERAND)


@triton.jit
def load_tile(
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
def load_filled(
    bank,
    bank_desc,
    first_row,
    first_col,
    col_ids,  # [BLOCK_R], -1 for an empty slot
    D,
    stride_mk,
    stride_md,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of the bank with empty slots zeroed: they may hold NaN, and 0 x NaN is NaN."""
    filled = (col_ids != -1)[:, None]
    if DESC:
        tile = bank_desc.load([first_row, first_col])
        tile = tl.where(filled, tile, tl.zeros_like(tile))
    else:
        r = first_row + tl.arange(0, BLOCK_R)
        c = first_col + tl.arange(0, BLOCK_C)
        offset = r.to(tl.int64)[:, None] * stride_mk + c.to(tl.int64)[None, :] * stride_md
        tile = tl.load(bank + offset, mask=filled & (c < D)[None, :], other=0.0)
    return to_operand(tile, OPERAND)


@triton.jit
def similarity(
    query,
    query_desc,
    bank,
    bank_desc,
    first_row,
    first,
    B,
    K,
    D,
    stride_qb,
    stride_qd,
    stride_mk,
    stride_md,
    DESC: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[BLOCK_B, BLOCK_K] products of query and bank rows, walked over D in steps of BLOCK_D."""
    s = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    for d in range(0, D, BLOCK_D):
        part = load_tile(
            query, query_desc, first_row, d, B, D, stride_qb, stride_qd, DESC, OPERAND,
            BLOCK_B, BLOCK_D,
        )  # fmt: skip
        tile = load_tile(
            bank, bank_desc, first, d, K, D, stride_mk, stride_md, DESC, OPERAND,
            BLOCK_K, BLOCK_D,
        )  # fmt: skip
        s = matmul(part, tl.trans(tile), s, PRECISION)
    return s


@triton.jit
def has_holes(bank_ids, first, stop):
    """Whether a slot of [first, stop) is empty, as 0 or 1."""
    holes = 0
    for start in range(first, stop, 1024):
        slots = start + tl.arange(0, 1024)
        found = tl.load(bank_ids + slots, mask=slots < stop, other=0) == -1
        holes = tl.maximum(holes, tl.max(found.to(tl.int32), 0))
    return holes


@triton.jit
def valid_slots(
    rows,  # [B] int
    cols,  # [J] int
    total,
    row_ids,  # [B] int64
    col_ids,  # [J] int64
    HAS_ROW_IDS: tl.constexpr,
    HAS_COL_IDS: tl.constexpr,
    SELECT: tl.constexpr,
    IN_BATCH: tl.constexpr,
    FILLED: tl.constexpr = False,
):
    """[B, J] bool, or [1, J] where no row differs: slots that the query may use.

    An id of -1 is an empty slot in a bank (``FILLED``: it has none; ids beyond it may be any) and
    "unknown" in a batch: still a negative, never a positive; a row's own key is no negative.
    """
    inside = cols[None, :] >= 0  # beyond the bank the loaded ids are -1
    if IN_BATCH or FILLED or not HAS_COL_IDS:
        inside = (cols < total)[None, :]
    BOTH: tl.constexpr = HAS_ROW_IDS and HAS_COL_IDS
    if IN_BATCH:
        inside = inside & (rows[:, None] != cols[None, :])
    if HAS_COL_IDS and not FILLED and (not IN_BATCH or SELECT == "positive"):
        inside = inside & (col_ids != -1)[None, :]
    if SELECT == "positive":
        if BOTH:
            inside = inside & (row_ids[:, None] == col_ids[None, :])
        else:
            inside = inside & (cols < 0)[None, :]
    elif SELECT == "mask" and BOTH:
        other = row_ids[:, None] != col_ids[None, :]
        if IN_BATCH:
            other = other | (col_ids == -1)[None, :]
        inside = inside & other
    return inside


@triton.jit
def exp(x):
    """e^x to the last digits: tl.exp rounds x log2(e), which costs 1e-6 at x = 30.

    With n = floor(x / ln 2), e^x is 2^n e^(x - n ln 2); ln 2 is in two parts, and n times the first
    one is exact.
    """
    x = tl.where(x < -110.0, -110.0, x)  # both ends give 0 and inf, and inf - inf is NaN
    x = tl.where(x > 89.0, 89.0, x)
    n = tl.floor(x * LOG2E)
    rest = (x - n * 0.693145751953125) - n * 1.428606765330187e-06
    return tl.exp2(n) * tl.exp2(rest * LOG2E)


@triton.jit
def positive(c2):
    """An exponent of 0 as the smallest one that still sends -inf to -inf instead of NaN."""
    return tl.maximum(c2, 1e-37)


@triton.jit
def log2_base(peak, c2):
    """The power of two that the weights exp2(c2 s) are divided by, at or above their largest.

    An integer: to change the base is exact in every floating type. 0 for rows without a valid slot.
    """
    return tl.ceil(tl.where(peak == NEG_INF, 0.0, peak) * c2)


@triton.jit
def rebase(peak, base, c2):
    """The factor from the base of ``peak`` to ``base``; 1 where sums are still empty."""
    return tl.where(peak == NEG_INF, 1.0, tl.exp2(log2_base(peak, c2) - base))


@triton.jit
def float_order(x):
    """fp32 as uint32 whose order is that of the floats; -0 equals 0 and every NaN is largest."""
    x = tl.where(x == 0.0, 0.0, x)
    bits = x.to(tl.int32, bitcast=True)
    signed = tl.where(bits < 0, ~bits, bits | -2147483648)
    signed = tl.where(x != x, -1, signed)
    return signed.to(tl.uint32, bitcast=True)


@triton.jit
def float_from_order(order):
    """The inverse of ``float_order``."""
    signed = order.to(tl.int32, bitcast=True)
    bits = tl.where(signed < 0, signed & 2147483647, ~signed)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def rounded(x, OPERAND: tl.constexpr):
    """fp32 in the operand dtype, two at a time.

    ``x.to(bf16)`` becomes one conversion an element on sm_90, in the unit that exp2 needs too.
    """
    if _INTERPRETING:
        y = x.to(OPERAND)
    elif OPERAND == tl.bfloat16:
        y = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    elif OPERAND == tl.float16:
        y = tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        y = x.to(OPERAND)
    return y


@triton.jit
def known_from_here(x):
    """A scalar int32 that the compiler cannot have worked out before this point.

    What is derived from it, such as the addresses of the results, then takes no registers in the
    loop above.
    """
    if _INTERPRETING:
        y = x
    else:
        y = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1
        )
    return y


@triton.jit
def count_valid(s):
    """[B] int32: how many of a row are not masked; in fp32 a comparison and a sum are one each."""
    return tl.sum(tl.where(s == NEG_INF, 0.0, 1.0), 1).to(tl.int32)
