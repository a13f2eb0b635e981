"""Ring writes of sets of fragments in one launch; two reads of the keys, one write of the sets."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native
from sede_kernels.backends.cuda.enqueue import ring_tuple
from sede_kernels.types import FragmentRing


def enqueue_fragments(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None
) -> None:
    """See ``sede_kernels.ops.enqueue_fragments``."""
    total = keys.shape[0]
    if total == 0 or ring.rows.shape[0] == 0:
        return
    call = _native.Call(ring.rows.device)
    call.launch(
        _native.module().enqueue_fragments,
        call.sets(ring.rows),
        call.result(ring.lengths),
        ring_tuple(call, ring, key_ids, total),
        call.sets(keys),
        call.array("lengths", lengths, torch.int64, total),
    )
