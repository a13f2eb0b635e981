# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Ring writes. The pointer is read by every program and moved by a second launch after them."""

import triton
import triton.language as tl

_UNIT_TOLERANCE = tl.constexpr(1e-6)  # of the squared norm: such a key is stored as it came
_ROUND = tl.constexpr(12582912.0)  # 1.5 x 2^23: adding it rounds a small float to nearest even


@triton.jit
def _place(ptr, K):
    """The ring's pointer; a damaged one is brought inside, so that nothing is written beside it."""
    place = tl.load(ptr) % K
    return tl.where(place < 0, place + K, place)


@triton.jit
def _finite(x):
    return (x - x) == 0.0


@triton.jit
def _enqueue_kernel(
    rows,  # [K, D]
    row_scale,  # [K]
    ids,  # [K] int64
    ptr,  # [] int64
    count,  # [] int64
    rejected,  # [] int64
    keys,  # [N, D]
    key_ids,  # [N] int64
    skipped,
    K,
    D,
    stride_rk,
    stride_rd,
    stride_kn,
    stride_kd,
    NORMALIZE: tl.constexpr,
    QUANTIZE: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program n writes key ``skipped`` + n, or a hole where its row would not be finite."""
    n = tl.program_id(0).to(tl.int64) + skipped
    slot = (_place(ptr, K) + n) % K
    square = 0.0
    peak = 0.0
    odd = 0
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        key = tl.load(keys + n * stride_kn + d * stride_kd, mask=d < D, other=0.0)
        key = key.to(tl.float32)
        square += tl.sum(key * key, 0)
        peak = tl.maximum(peak, tl.max(tl.abs(key), 0))
        if not NORMALIZE:
            stored = key
            if not QUANTIZE:
                stored = key.to(rows.dtype.element_ty).to(tl.float32)
            odd = tl.maximum(odd, tl.max(tl.where(_finite(stored), 0, 1), 0))
    factor = 1.0
    good = odd == 0
    if NORMALIZE:
        good = _finite(square)
        square = tl.where(good, square, 0.0)
        unit = (tl.abs(square - 1.0) <= _UNIT_TOLERANCE) | (square == 0.0)
        factor = tl.where(unit, 1.0, tl.div_rn(1.0, tl.sqrt_rn(tl.where(unit, 1.0, square))))
    divisor = 1.0
    if QUANTIZE:
        scale = tl.where(good, tl.div_rn(peak * factor, 127.0), 0.0)
        divisor = tl.where(scale == 0.0, 1.0, scale)
        tl.store(row_scale + slot, scale)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        key = tl.load(keys + n * stride_kn + d * stride_kd, mask=d < D, other=0.0)
        key = tl.where(good, key.to(tl.float32), 0.0)
        if NORMALIZE:
            key = key * factor
        if QUANTIZE:
            key = tl.div_rn(key, divisor)
            key = tl.minimum(tl.maximum((key + _ROUND) - _ROUND, -127.0), 127.0)
        value = key.to(rows.dtype.element_ty)
        tl.store(rows + slot * stride_rk + d * stride_rd, value, mask=d < D)
    name = tl.full((), -2, tl.int64)
    if HAS_IDS:
        name = tl.load(key_ids + n)
    name = tl.where(good, name, tl.full((), -1, tl.int64))
    change = (name != -1).to(tl.int64) - (tl.load(ids + slot) != -1).to(tl.int64)
    tl.store(ids + slot, name)
    # Seldom once the ring is full; sums of integers do not depend on the order.
    if change != 0:
        tl.atomic_add(count, change, sem="relaxed")
    if good == 0:
        tl.atomic_add(rejected, tl.full((), 1, tl.int64), sem="relaxed")


@triton.jit
def _enqueue_advance_kernel(ptr, N, K):
    """The pointer after N keys."""
    tl.store(ptr, (_place(ptr, K) + N) % K)
