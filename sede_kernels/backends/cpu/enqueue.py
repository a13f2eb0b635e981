"""Ring write in native code, one pass: normalise, cast or quantise, store."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.types import RingState


def enqueue(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    """See ``sede_kernels.ops.enqueue``. One read of the keys, one write of their rows."""
    rows, row_scale, ids, ptr, count, rejected = ring
    size, total = rows.shape[0], keys.shape[0]
    if size == 0 or total == 0:
        return
    if total > size:
        keys = keys[total - size :]
        key_ids = None if key_ids is None else key_ids[total - size :]
    if key_ids is not None:
        key_ids = key_ids.to(torch.int64).contiguous()
    # The kernel takes ids and scales as dense vectors: strided ones are written through a copy.
    dense_ids = ids.contiguous()
    dense_scale = None if row_scale is None else row_scale.contiguous()
    _native.module().enqueue(
        _native.matrix(rows),
        _native.address("row_scale", dense_scale, torch.float32, size),
        _native.address("ids", dense_ids, torch.int64, size),
        _native.matrix(keys),
        _native.address("key_ids", key_ids, torch.int64, keys.shape[0]),
        _native.address("ptr", ptr, torch.int64, 1),
        _native.address("count", count, torch.int64, 1),
        _native.address("rejected", rejected, torch.int64, 1),
        total,
        normalize,
    )
    if dense_ids is not ids:
        ids.copy_(dense_ids)
    if row_scale is not None and dense_scale is not None and dense_scale is not row_scale:
        row_scale.copy_(dense_scale)
