"""Ring write in two launches, without reading the pointer on the host."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native
from sede_kernels.types import RingState


def enqueue(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    """See ``sede_kernels.ops.enqueue``."""
    if keys.shape[0] == 0 or ring.rows.shape[0] == 0:
        return
    call = _native.Call(ring.rows.device)
    call.launch(
        _native.module().enqueue,
        call.matrix(ring.rows),
        0 if ring.row_scale is None else call.result(ring.row_scale),
        *(call.result(buffer) for buffer in ring[2:]),
        call.matrix(keys),
        call.array("key_ids", key_ids, torch.int64, keys.shape[0]),
        normalize,
    )
