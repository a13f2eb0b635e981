"""Ring write of sets with index arithmetic on the device: no host synchronisation."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.types import ANONYMOUS, EMPTY, FragmentRing


def enqueue_fragments(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None
) -> None:
    """See ``sede_kernels.ops.enqueue_fragments``."""
    rows, stored_lengths, ids, ptr, count, rejected = ring
    size, longest, _ = rows.shape
    total, width = keys.shape[:2]
    skipped = max(0, total - size)
    slots = (ptr + torch.arange(skipped, total, device=rows.device)) % size
    sets = keys[skipped:]
    if lengths is None:
        new_lengths = torch.full_like(slots, width)
    else:
        new_lengths = lengths[skipped:].clamp(0, width)
        index = torch.arange(width, device=rows.device)
        sets = sets.masked_fill((index >= new_lengths.unsqueeze(1)).unsqueeze(2), 0.0)
    sets = F.pad(sets, (0, 0, 0, longest - width)).to(rows.dtype)
    good = sets.isfinite().flatten(1).all(dim=1)
    rows.index_copy_(0, slots, sets.masked_fill(~good.view(-1, 1, 1), 0.0))
    new_ids = torch.full_like(slots, ANONYMOUS) if key_ids is None else key_ids[skipped:]
    new_ids = new_ids.masked_fill(~good, EMPTY)
    filled = (new_ids != EMPTY).sum() - (ids[slots] != EMPTY).sum()
    stored_lengths.index_copy_(0, slots, new_lengths * good)
    ids.index_copy_(0, slots, new_ids)
    ptr.copy_((ptr + total) % size)
    count.copy_((count + filled).clamp(0, size))
    rejected.add_((~good).sum())
