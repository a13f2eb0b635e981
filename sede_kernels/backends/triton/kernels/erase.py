# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
"""Attention-guided erasing of whole rows in registers, without a sort.

Order statistics come from a search over the bits of the floats: 32 counts of a row. Shapes: R rows
of a program, L fragments.
"""

import triton
import triton.language as tl

from sede_kernels.backends.triton.kernels.device import NEG_INF, float_from_order, float_order


@triton.jit
def _largest_bound(order, candidates, need):
    """[R, 1] the ``need``-th largest key among the candidates; all ones for need = 0."""
    bound = (need * 0).to(tl.uint32)
    bit = bound + 2147483648
    for _ in range(32):
        trial = bound | bit
        enough = tl.sum((candidates & (order >= trial)).to(tl.int32), 1)[:, None] >= need
        bound = tl.where(enough, trial, bound)
        bit = bit >> 1
    return bound


@triton.jit
def select_largest(order, candidates, need):
    """[R, L] bool: the ``need`` largest candidates, ties to the lowest index."""
    bound = _largest_bound(order, candidates, need)
    above = candidates & (order > bound)
    level = candidates & (order == bound)
    left = need - tl.sum(above.to(tl.int32), 1)[:, None]
    return above | (level & (tl.cumsum(level.to(tl.int32), 1) <= left))


@triton.jit
def attended(a, valid, count, threshold_high, threshold_low, RULE: tl.constexpr):
    """[R, L] bool: H of the rule. Sums in fp64, so that ties break as in the definition.

    The threshold is a double in two halves, for kernels take no fp64 scalars.
    """
    bits = (threshold_high.to(tl.int64) << 32) | (threshold_low.to(tl.int64) & 4294967295)
    t = bits.to(tl.float64, bitcast=True)
    if RULE == "mean":
        wide = tl.where(valid, a, 0.0).to(tl.float64)
        cut = tl.sum(wide, 1)[:, None] / tl.maximum(count, 1).to(tl.float64)
        high = a.to(tl.float64) > cut
    elif RULE == "prob":
        wide = tl.where(valid, a, 0.0).to(tl.float64)
        root = tl.sqrt(tl.maximum(wide, 0.0))
        total = tl.sum(root, 1)[:, None]
        # A row of zeros has no cut: 0 / 0 keeps nothing, and so does a cut of 0.
        cut = tl.sum(wide * root, 1)[:, None] / tl.where(total == 0.0, 1.0, total)
        high = a.to(tl.float64) > cut
    elif RULE == "absolute":
        high = a > t.to(tl.float32)
    elif RULE == "relative":
        peak = tl.max(tl.where(valid, a, NEG_INF), 1)[:, None]
        high = a >= peak * t.to(tl.float32)
    elif RULE == "topk":
        high = select_largest(float_order(a), valid, (count * 0 + t).to(tl.int32))
    else:
        order = float_order(a)
        last = tl.maximum(count - 1, 0)
        position = last.to(tl.float64) * t
        below = position.to(tl.int32)
        # The n-th smallest of ``count`` is the (count - n)-th largest.
        low_key = _largest_bound(order, valid, tl.maximum(count - below, 1))
        up_to = tl.sum((valid & (order <= low_key)).to(tl.int32), 1)[:, None]
        beyond = valid & (order > low_key)
        next_key = tl.min(tl.where(beyond, order, 4294967295), 1)[:, None]
        high_key = tl.where((up_to > below + 1) | (below >= last), low_key, next_key)
        low = float_from_order(low_key)
        step = float_from_order(high_key) - low
        step = tl.where(high_key == low_key, 0.0, step)
        high = a >= low + (position - below.to(tl.float64)).to(tl.float32) * step
    return valid & high


@triton.jit
def keep_mask(
    a,
    valid,
    count,
    threshold_high,
    threshold_low,
    keep_min,
    RULE: tl.constexpr,
    LOW: tl.constexpr,
):
    """[R, L] bool: kept fragments, topped up to ``keep_min``."""
    high = attended(a, valid, count, threshold_high, threshold_low, RULE)
    keep = high if LOW else valid & (high == 0)
    missing = keep_min - tl.sum(keep.to(tl.int32), 1)[:, None]
    missing = tl.maximum(missing, 0)
    if tl.max(tl.max(missing, 1), 0) > 0:
        order = float_order(a)
        if not LOW:
            order = order ^ 4294967295
        keep = keep | select_largest(order, valid & (keep == 0), missing)
    return keep


@triton.jit
def _tile(rows, fragments, row, index):
    """(offsets, mask) of rows x fragments."""
    mask = (row < rows)[:, None] & (index < fragments)[None, :]
    return row.to(tl.int64)[:, None] * fragments + index[None, :], mask


@triton.jit(do_not_specialize=["threshold_high", "threshold_low", "keep_min"])
def _erase_fwd_kernel(
    attention,  # [N, L]
    lengths,  # [N]
    out,  # [N, L]
    mask_out,  # [N, L] uint8
    N,
    L,
    threshold_high,
    threshold_low,
    keep_min,
    HAS_LENGTHS: tl.constexpr,
    RULE: tl.constexpr,
    LOW: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Program i: BLOCK_R rows."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    index = tl.arange(0, BLOCK_L)
    offset, inside = _tile(N, L, row, index)
    raw = tl.load(attention + offset, mask=inside, other=0.0)
    a = raw.to(tl.float32)
    valid = inside
    count = tl.zeros((BLOCK_R,), tl.int32) + L
    if HAS_LENGTHS:
        count = tl.load(lengths + row, mask=row < N, other=0).to(tl.int32)
        valid = valid & (index[None, :] < count[:, None])
    keep = keep_mask(a, valid, count[:, None], threshold_high, threshold_low, keep_min, RULE, LOW)
    kept = tl.where(keep, a, 0.0)
    if RENORMALIZE:
        total = tl.sum(kept, 1)[:, None]
        kept = tl.div_rn(kept, tl.where(total == 0.0, 1.0, total))
    tl.store(out + offset, kept.to(raw.dtype), mask=inside)
    tl.store(mask_out + offset, keep.to(tl.uint8), mask=inside)


@triton.jit
def _erase_bwd_kernel(
    grad_out,  # [N, L]
    attention,  # [N, L]
    mask,  # [N, L] uint8
    grad,  # [N, L]
    N,
    L,
    RENORMALIZE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Program i: BLOCK_R rows of da = H (g - sum(g out)) / Z, or H g."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    offset, inside = _tile(N, L, row, tl.arange(0, BLOCK_L))
    keep = tl.load(mask + offset, mask=inside, other=0) != 0
    raw = tl.load(grad_out + offset, mask=inside, other=0.0)
    g = tl.where(keep, raw.to(tl.float32), 0.0)
    if RENORMALIZE:
        a = tl.load(attention + offset, mask=inside, other=0.0)
        kept = tl.where(keep, a.to(tl.float32), 0.0)
        total = tl.sum(kept, 1)[:, None]
        some = tl.where(total == 0.0, 1.0, total)
        inner = tl.where(total == 0.0, 0.0, tl.sum(g * kept, 1)[:, None] / some)
        g = tl.where(keep, (g - inner) / some, 0.0)
    tl.store(grad + offset, g.to(raw.dtype), mask=inside)
