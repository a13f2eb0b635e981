"""Ring write of sets in two launches, without reading the pointer on the host."""

from torch import Tensor

from sede_kernels.backends.triton._host import on_device
from sede_kernels.backends.triton.enqueue import ADVANCE_OPTIONS
from sede_kernels.backends.triton.kernels.enqueue import _enqueue_advance_kernel
from sede_kernels.backends.triton.kernels.enqueue_fragments import _enqueue_fragments_kernel
from sede_kernels.types import FragmentRing

BLOCK = 1024
OPTIONS = {"num_warps": 4, "num_stages": 1}
_MOST_ELEMENTS = 2**31 - 1 - BLOCK  # of a set: the kernel counts them in 32 bits


def enqueue_fragments(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None
) -> None:
    """See ``sede_kernels.ops.enqueue_fragments``. Two reads of the keys, one write of the sets."""
    (size, longest, dim), (total, width) = ring.rows.shape, keys.shape[:2]
    if longest * dim > _MOST_ELEMENTS:
        raise ValueError(
            f"enqueue_fragments: a set of the bank must have at most {_MOST_ELEMENTS} numbers on "
            f"backend 'triton', got {longest} x {dim}; use backend 'torch'."
        )
    written = min(total, size)
    if written == 0:
        return
    with on_device(ring.rows):
        _enqueue_fragments_kernel[(written,)](
            *ring,
            keys,
            lengths,
            key_ids,
            total - written,
            size,
            longest,
            dim,
            width,
            *ring.rows.stride(),
            *keys.stride(),
            HAS_LENGTHS=lengths is not None,
            HAS_IDS=key_ids is not None,
            BLOCK=BLOCK,
            **OPTIONS,
        )
        _enqueue_advance_kernel[(1,)](ring.ptr, total, size, **ADVANCE_OPTIONS)
