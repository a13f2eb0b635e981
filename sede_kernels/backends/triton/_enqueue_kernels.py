# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Ring writes. The pointer is read by every program and moved by a second launch after them."""

import triton
import triton.language as tl

_UNIT_TOLERANCE = tl.constexpr(1e-6)  # of the squared norm: such a key is stored as it came
_ROUND = tl.constexpr(12582912.0)  # 1.5 x 2^23: adding it rounds a small float to nearest even


@triton.jit
def _enqueue_kernel(
    rows,  # [K, D]
    row_scale,  # [K]
    ids,  # [K] int64
    ptr,  # [] int64
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
    """Program n writes key ``skipped`` + n."""
    n = tl.program_id(0).to(tl.int64) + skipped
    slot = (tl.load(ptr) + n) % K
    square = 0.0
    peak = 0.0
    bad = 0
    if NORMALIZE or QUANTIZE:
        for first in range(0, D, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)
            key = tl.load(keys + n * stride_kn + d * stride_kd, mask=d < D, other=0.0)
            key = key.to(tl.float32)
            square += tl.sum(key * key, 0)
            peak = tl.maximum(peak, tl.max(tl.abs(key), 0))
            bad = tl.maximum(bad, tl.max((key != key).to(tl.int32), 0))
    factor = 1.0
    if NORMALIZE:
        unit = (tl.abs(square - 1.0) <= _UNIT_TOLERANCE) | (square == 0.0)
        factor = tl.where(unit, 1.0, tl.div_rn(1.0, tl.sqrt_rn(tl.where(unit, 1.0, square))))
    divisor = 1.0
    if QUANTIZE:
        scale = tl.div_rn(peak * factor, 127.0)
        # A NaN anywhere in the key spoils its whole row, as it would unquantised.
        scale = tl.where(bad != 0, float("nan"), scale)
        divisor = tl.where((scale == 0.0) | (bad != 0), 1.0, scale)
        tl.store(row_scale + slot, scale)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        key = tl.load(keys + n * stride_kn + d * stride_kd, mask=d < D, other=0.0)
        key = key.to(tl.float32)
        if NORMALIZE:
            key = key * factor
        if QUANTIZE:
            key = tl.div_rn(key, divisor)
            key = tl.where(bad != 0, 0.0, key)
            key = tl.minimum(tl.maximum((key + _ROUND) - _ROUND, -127.0), 127.0)
        value = key.to(rows.dtype.element_ty)
        tl.store(rows + slot * stride_rk + d * stride_rd, value, mask=d < D)
    name = tl.full((), -2, tl.int64)
    if HAS_IDS:
        name = tl.load(key_ids + n)
    tl.store(ids + slot, name)


@triton.jit
def _enqueue_advance_kernel(ptr, count, N, K):
    """The pointer and the number of filled slots after N keys."""
    tl.store(ptr, (tl.load(ptr) + N) % K)
    tl.store(count, tl.minimum(tl.load(count) + N, K))
