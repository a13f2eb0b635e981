"""Ring writes in one launch, without reading the pointer on the host."""

import torch
from torch import Tensor

from sede_kernels.backends._tickets import tickets
from sede_kernels.backends.cuda import _native
from sede_kernels.types import FragmentRing, RingState


def enqueue(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    """See ``sede_kernels.ops.enqueue``."""
    if keys.shape[0] == 0 or ring.rows.shape[0] == 0:
        return
    call = _native.Call(ring.rows.device)
    call.launch(
        _native.module().enqueue,
        call.matrix(ring.rows),
        0 if ring.row_scale is None else call.result(ring.row_scale),
        ring_tuple(call, ring, key_ids, keys.shape[0]),
        call.matrix(keys),
        normalize,
    )


def ring_tuple(
    call: _native.Call, ring: RingState | FragmentRing, key_ids: Tensor | None, keys: int
) -> tuple[int, ...]:
    """RingTuple of csrc/bind_cuda.cpp."""
    return (
        *(call.result(buffer) for buffer in (ring.ids, ring.ptr, ring.filled, ring.rejected)),
        call.array("key_ids", key_ids, torch.int64, keys),
        call.result(tickets(ring.ptr)),
    )
