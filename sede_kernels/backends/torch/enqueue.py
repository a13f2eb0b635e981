"""Ring write with index arithmetic on the device: no host synchronisation."""

import torch
from torch import Tensor

from sede_kernels.types import RingState, result_dtype

# A key this close to unit length (in squared norm) is stored as it came.
_UNIT_TOLERANCE = 1e-6


def enqueue(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    """See ``sede_kernels.ops.enqueue``."""
    rows, row_scale, ids, ptr, count, rejected = ring
    size, total = rows.shape[0], keys.shape[0]
    skipped = max(0, total - size)
    kept = keys[skipped:].to(result_dtype(keys))
    slots = (ptr + torch.arange(skipped, total, device=rows.device)) % size
    good = None
    if normalize:
        square = (kept * kept).sum(dim=1, keepdim=True)
        unit = (square - 1).abs() <= _UNIT_TOLERANCE
        factor = torch.where(unit | (square == 0), torch.ones_like(square), square.rsqrt())
        kept, good = kept * factor, square.isfinite().squeeze(1)
    if row_scale is not None:
        scale = kept.abs().amax(dim=1) / 127 if kept.shape[1] else kept.new_zeros(kept.shape[0])
        divisor = scale.masked_fill(scale == 0, 1.0).unsqueeze(1)
        kept = (kept / divisor).round_().clamp_(-127, 127)
        stored_scale = scale.to(row_scale.dtype)
        good = stored_scale.isfinite() if good is None else good & stored_scale.isfinite()
        row_scale.index_copy_(0, slots, stored_scale.masked_fill(~good, 0.0))
        stored = kept.nan_to_num_(0.0).to(rows.dtype)
    else:
        stored = kept.to(rows.dtype)
        good = stored.isfinite().all(dim=1) if good is None else good
    rows.index_copy_(0, slots, stored.masked_fill(~good.unsqueeze(1), 0))
    new_ids = torch.full_like(slots, -2) if key_ids is None else key_ids[skipped:]
    new_ids = new_ids.masked_fill(~good, -1)
    filled = (new_ids != -1).sum() - (ids[slots] != -1).sum()
    ids.index_copy_(0, slots, new_ids)
    ptr.copy_((ptr + total) % size)
    count.copy_((count + filled).clamp(0, size))
    rejected.add_((~good).sum())
