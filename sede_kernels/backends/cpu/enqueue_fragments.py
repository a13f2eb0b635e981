"""Ring write of sets in native code: read to find what is not finite, cast, pad, store."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.enqueue import refused
from sede_kernels.types import FragmentRing


def enqueue_fragments_at_once(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None
) -> bool:
    """Write where all fits as it is, ids >= 0, lengths >= 1; else False, and nothing is written."""
    done: bool = _native.module().enqueue_fragments(ring, keys, lengths, key_ids, True)
    return done


def enqueue_fragments(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None
) -> None:
    """See ``sede_kernels.ops.enqueue_fragments``. Two reads of the keys, one write of the sets."""
    run = _native.module().enqueue_fragments
    if run(ring, keys, lengths, key_ids, False):
        return
    if lengths is not None:
        lengths = lengths.clamp(0, keys.shape[1]).contiguous()
    dense = ring._replace(lengths=ring.lengths.contiguous(), ids=ring.ids.contiguous())
    if not run(dense, keys, lengths, _native.contiguous(key_ids, torch.int64), False):
        raise refused("enqueue_fragments")
    for own, copy in ((ring.lengths, dense.lengths), (ring.ids, dense.ids)):
        if copy is not own:
            own.copy_(copy)
