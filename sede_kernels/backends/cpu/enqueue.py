"""Ring write in native code, one pass: normalise, cast or quantise, store."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.types import RingState


def enqueue_at_once(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> bool:
    """Write where all fits as it is, ids >= 0; else False, and nothing is written."""
    done: bool = _native.module().enqueue(ring, keys, key_ids, normalize, True)
    return done


def enqueue(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    """See ``sede_kernels.ops.enqueue``. One read of the keys, one write of their rows."""
    run = _native.module().enqueue
    if run(ring, keys, key_ids, normalize, False):
        return
    dense = dense_ring(ring)
    key_ids = _native.contiguous(key_ids, torch.int64)
    if not run(dense, keys, key_ids, normalize, False):
        raise refused("enqueue")
    write_back(ring, dense)


def dense_ring(ring: RingState) -> RingState:
    """The ring with dense ids and scales: the kernel takes them as such."""
    scale = None if ring.row_scale is None else ring.row_scale.contiguous()
    return ring._replace(row_scale=scale, ids=ring.ids.contiguous())


def write_back(ring: RingState, dense: RingState) -> None:
    """Into the strided buffers what was written to their copies."""
    for own, copy in zip(ring[1:3], dense[1:3], strict=True):
        if own is not None and copy is not None and copy is not own:
            own.copy_(copy)


def refused(name: str) -> ValueError:
    """What the checks of the op have not named."""
    return ValueError(
        f"cpu backend: {name} takes the buffers of a bank and keys of its width, dense and on the "
        "CPU; something else came."
    )
