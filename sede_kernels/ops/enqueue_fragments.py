"""Write sets of fragments into a ring buffer in place: cast, pad, store lengths and ids, move on.

A set with a fragment whose row would not be finite is refused, as a key of ``enqueue`` is: zeros,
length 0 and the id -1 go into its slot, and ``rejected`` counts it.
"""

import torch
from torch import Tensor

from sede_kernels.backends.registry import native_look
from sede_kernels.ops._op import op
from sede_kernels.ops.enqueue import FLOAT_NAMES, FLOATS, check_buffer, check_place, served_natively
from sede_kernels.types import FragmentRing

NAME = "enqueue_fragments"


def _check_call(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None
) -> None:
    check_ring(ring)
    _, longest, dim = ring.rows.shape
    if (
        keys.ndim != 3
        or keys.shape[1] > longest
        or keys.shape[2] != dim
        or keys.dtype not in FLOATS
    ):
        raise ValueError(
            f"{NAME}: keys must be (N, at most {longest}, {dim}) {FLOAT_NAMES}, "
            f"got {tuple(keys.shape)} {keys.dtype}."
        )
    for argument, tensor in (("lengths", lengths), ("key_ids", key_ids)):
        if tensor is not None:
            check_buffer(NAME, argument, tensor, torch.int64, keys.shape[:1], ring.rows.device)


@op(
    decides=("ring_rows", "keys"),
    mutates=tuple(f"ring_{name}" for name in FragmentRing._fields),
    check=_check_call,
)
def enqueue_fragments(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None, backend: str
) -> None:
    """Slots (ptr + n) % K take the sets (N, L', D); without lengths all L' fragments are valid."""


def at_once(
    ring: FragmentRing, keys: Tensor, lengths: Tensor | None, key_ids: Tensor | None, backend: str
) -> bool:
    """The whole call in native code, checks too; False, and nothing done, where it has to wait.

    Also False where something is wrong: the checks then say what.
    """
    tensors = (*ring, keys, lengths, key_ids)
    if not served_natively(NAME, tensors, backend):
        return False
    run = native_look(NAME, "enqueue_fragments_at_once")
    if run is None or not run(ring, keys, lengths, key_ids):
        return False
    torch.autograd.graph.increment_version(ring)
    return True


def check_ring(ring: FragmentRing) -> None:
    """Refuse a ring whose buffers do not fit each other, whose pointer or count lie outside it.

    Raises:
        ValueError: one sentence naming the buffer.
    """
    rows, lengths, ids, ptr, count, rejected = ring
    if rows.ndim != 3 or rows.dtype not in FLOATS:
        raise ValueError(
            f"{NAME}: rows of the bank must be (K, L, D) {FLOAT_NAMES}, "
            f"got {tuple(rows.shape)} {rows.dtype}."
        )
    size, device = rows.shape[0], rows.device
    for argument, tensor in (("lengths", lengths), ("ids", ids)):
        check_buffer(NAME, argument, tensor, torch.int64, (size,), device)
    for argument, tensor in (("ptr", ptr), ("count", count), ("rejected", rejected)):
        check_buffer(NAME, argument, tensor, torch.int64, (), device)
    check_place(NAME, size, ptr, count)
