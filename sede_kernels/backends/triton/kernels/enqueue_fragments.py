# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Ring writes of sets of fragments; ``_enqueue_advance_kernel`` moves the pointer after them."""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.enqueue import _finite, _place


@triton.jit
def _enqueue_fragments_kernel(
    rows,  # [K, L, D]
    lengths,  # [K] int64
    ids,  # [K] int64
    ptr,  # [] int64
    count,  # [] int64
    rejected,  # [] int64
    keys,  # [N, W, D]
    key_lengths,  # [N] int64
    key_ids,  # [N] int64
    skipped,
    K,
    L,
    D,
    W,
    stride_rk,
    stride_rl,
    stride_rd,
    stride_kn,
    stride_kl,
    stride_kd,
    HAS_LENGTHS: tl.constexpr,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program n writes set ``skipped`` + n, or a hole where a fragment would not be finite."""
    n = tl.program_id(0).to(tl.int64) + skipped
    slot = (_place(ptr, K) + n) % K
    length = tl.full((), 0, tl.int64) + W
    if HAS_LENGTHS:
        length = tl.minimum(tl.maximum(tl.load(key_lengths + n), 0), length)
    valid = (length * D).to(tl.int32)  # elements of the set, below 2^31
    odd = 0
    for first in range(0, W * D, BLOCK):
        e = first + tl.arange(0, BLOCK)
        at = (e // D).to(tl.int64) * stride_kl + (e % D).to(tl.int64) * stride_kd
        key = tl.load(keys + n * stride_kn + at, mask=e < valid, other=0.0)
        stored = key.to(tl.float32).to(rows.dtype.element_ty).to(tl.float32)
        odd = tl.maximum(odd, tl.max(tl.where(_finite(stored), 0, 1), 0))
    good = odd == 0
    kept = tl.where(good, valid, 0)
    for first in range(0, L * D, BLOCK):
        e = first + tl.arange(0, BLOCK)
        r, d = (e // D).to(tl.int64), (e % D).to(tl.int64)
        key = tl.load(
            keys + n * stride_kn + r * stride_kl + d * stride_kd, mask=e < kept, other=0.0
        )
        value = key.to(tl.float32).to(rows.dtype.element_ty)
        tl.store(rows + slot * stride_rk + r * stride_rl + d * stride_rd, value, mask=e < L * D)
    tl.store(lengths + slot, tl.where(good, length, 0))
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
