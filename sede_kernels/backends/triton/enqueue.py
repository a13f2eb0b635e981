"""Ring write in two launches, without reading the pointer on the host."""

from torch import Tensor

from sede_kernels.backends.triton._host import on_device
from sede_kernels.backends.triton.kernels.enqueue import _enqueue_advance_kernel, _enqueue_kernel
from sede_kernels.types import RingState

BLOCK_D = 512
OPTIONS = {"num_warps": 4, "num_stages": 1}
ADVANCE_OPTIONS = {"num_warps": 1, "num_stages": 1}


def enqueue(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    """See ``sede_kernels.ops.enqueue``."""
    size, total = ring.rows.shape[0], keys.shape[0]
    written = min(total, size)
    if written == 0:
        return
    with on_device(ring.rows):
        _enqueue_kernel[(written,)](
            *ring,
            keys,
            key_ids,
            total - written,
            *ring.rows.shape,
            *ring.rows.stride(),
            *keys.stride(),
            NORMALIZE=normalize,
            QUANTIZE=ring.row_scale is not None,
            HAS_IDS=key_ids is not None,
            BLOCK_D=BLOCK_D,
            **OPTIONS,
        )
        _enqueue_advance_kernel[(1,)](ring.ptr, total, size, **ADVANCE_OPTIONS)
