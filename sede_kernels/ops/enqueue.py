"""Write keys into a ring buffer in place: normalise, cast or quantise, store the ids, move on.

A key whose row would not be finite is refused: its slot gets zeros and the id -1, the pointer moves
on, ``rejected`` counts it. ``count`` stays the number of filled slots.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sede_kernels.backends.registry import native_look, serving
from sede_kernels.ops._op import op
from sede_kernels.ops.transforms import goes_directly
from sede_kernels.types import RingState

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT_NAMES = "float32, bfloat16, float16 or float64"


def _check_call(ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool) -> None:
    check_ring(ring)
    if keys.ndim != 2 or keys.shape[1] != ring.rows.shape[1] or keys.dtype not in FLOATS:
        raise ValueError(
            f"enqueue: keys must be (N, {ring.rows.shape[1]}) {FLOAT_NAMES}, "
            f"got {tuple(keys.shape)} {keys.dtype}."
        )
    if key_ids is not None:
        check_buffer("enqueue", "key_ids", key_ids, torch.int64, keys.shape[:1], ring.rows.device)


@op(
    decides=("ring_rows", "keys"),
    mutates=tuple(f"ring_{name}" for name in RingState._fields),
    check=_check_call,
)
def enqueue(
    ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool, backend: str
) -> None:
    """Rows (ptr + n) % K take the keys; without ids the slots are marked -2 (filled, anonymous)."""


def at_once(
    ring: RingState, keys: Tensor, key_ids: Tensor | None, normalize: bool, backend: str
) -> bool:
    """The whole call in native code, checks too; False, and nothing done, where it has to wait.

    Also False where something is wrong: the checks then say what.
    """
    if not served_natively("enqueue", (*ring, keys, key_ids), backend):
        return False
    run = native_look("enqueue", "enqueue_at_once")
    if run is None or not run(ring, keys, key_ids, normalize):
        return False
    torch.autograd.graph.increment_version([one for one in ring if one is not None])
    return True


def served_natively(op: str, tensors: Sequence[Tensor | None], backend: str) -> bool:
    """Whether a call on the CPU may go to native code without the op."""
    rows = tensors[0]
    return (
        goes_directly(tensors)
        and rows is not None
        and rows.is_cpu
        and serving(op, backend, rows) == "cpu"
    )


def check_buffer(
    op: str,
    name: str,
    tensor: Tensor,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Refuse a buffer of another dtype or shape, or elsewhere.

    Raises:
        ValueError: one sentence naming the buffer.
    """
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        raise ValueError(
            f"{op}: {name} of the bank must be {tuple(shape)} {dtype} on {device}, "
            f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}."
        )


def check_ring(ring: RingState) -> None:
    """Refuse a ring whose buffers do not fit each other, whose pointer or count lie outside it.

    Values are read where that is free, on the CPU; a kernel elsewhere keeps any pointer inside.

    Raises:
        ValueError: one sentence naming the buffer.
    """
    rows, row_scale, ids, ptr, count, rejected = ring
    if rows.ndim != 2 or rows.dtype not in (*FLOATS, torch.int8):
        raise ValueError(
            f"enqueue: rows of the bank must be (K, D), floating or int8, "
            f"got {tuple(rows.shape)} {rows.dtype}."
        )
    size, device = rows.shape[0], rows.device
    if (row_scale is not None) != (rows.dtype == torch.int8):
        has = "no row_scale" if row_scale is None else "a row_scale"
        raise ValueError(
            f"enqueue: an int8 bank, and no other, has row scales; got {rows.dtype} with {has}."
        )
    if row_scale is not None:
        check_buffer("enqueue", "row_scale", row_scale, torch.float32, (size,), device)
    check_buffer("enqueue", "ids", ids, torch.int64, (size,), device)
    for name, scalar in (("ptr", ptr), ("count", count), ("rejected", rejected)):
        check_buffer("enqueue", name, scalar, torch.int64, (), device)
    check_place("enqueue", size, ptr, count)


def check_place(name: str, size: int, ptr: Tensor, count: Tensor) -> None:
    """Pointer in [0, K), count in [0, K], where the CPU holds them.

    Raises:
        ValueError: one sentence naming the value.
    """
    if ptr.device.type != "cpu":
        return
    for argument, value, most in (("ptr", int(ptr), size - 1), ("count", int(count), size)):
        if not 0 <= value <= most:
            raise ValueError(
                f"{name}: {argument} of the bank must lie in [0, {most}], got {value}; its state "
                "is damaged: load a checkpoint or call reset_parameters()."
            )
