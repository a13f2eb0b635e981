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
):
    """[B, J] bool, or [1, J] where no row differs: slots that the query may use.

    In a bank an id of -1 is an empty slot. In a batch it is "unknown": still a negative, never a
    positive; and a row's own key is no negative.
    """
    # Beyond the bank the loaded ids are -1 already.
    inside = cols[None, :] >= 0
    if IN_BATCH or not HAS_COL_IDS:
        inside = (cols < total)[None, :]
    BOTH: tl.constexpr = HAS_ROW_IDS and HAS_COL_IDS
    if IN_BATCH:
        inside = inside & (rows[:, None] != cols[None, :])
    if HAS_COL_IDS and (not IN_BATCH or SELECT == "positive"):
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
def positive(c2):
    """An exponent of 0 as the smallest one that still sends -inf to -inf instead of NaN."""
    return tl.maximum(c2, 1e-37)


@triton.jit
def finite_or_zero(peak):
    """The maximum to subtract: 0 for rows without a valid slot."""
    return tl.where(peak == NEG_INF, 0.0, peak)


@triton.jit
def shrink_factor(peak, base, c2):
    """exp2((peak - base) c2), and 1 for rows whose sums are still empty."""
    return tl.where(peak == NEG_INF, 1.0, tl.exp2((peak - base) * c2))


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
