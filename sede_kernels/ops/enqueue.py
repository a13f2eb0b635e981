"""Write keys into a ring buffer in place: normalise, cast or quantise, store the ids, move on."""

import torch
from torch import Tensor

from sede_kernels.backends.registry import resolve


@torch.library.custom_op("sede::enqueue", mutates_args=("rows", "row_scale", "ids", "ptr", "count"))
def enqueue(
    rows: Tensor,
    row_scale: Tensor | None,
    ids: Tensor,
    ptr: Tensor,
    count: Tensor,
    keys: Tensor,
    key_ids: Tensor | None,
    normalize: bool,
    backend: str,
) -> None:
    """Rows (ptr + n) % K take the keys; without ids the slots are marked -2 (filled, anonymous)."""
    run = resolve("enqueue", backend, rows, keys)
    run(rows, row_scale, ids, ptr, count, keys, key_ids, normalize=normalize)


@enqueue.register_fake
def _(
    rows: Tensor,
    row_scale: Tensor | None,
    ids: Tensor,
    ptr: Tensor,
    count: Tensor,
    keys: Tensor,
    key_ids: Tensor | None,
    normalize: bool,
    backend: str,
) -> None:
    return None


def write(
    rows: Tensor,
    row_scale: Tensor | None,
    ids: Tensor,
    ptr: Tensor,
    count: Tensor,
    keys: Tensor,
    key_ids: Tensor | None,
    normalize: bool,
    backend: str,
) -> None:
    """``enqueue``, without the dispatcher for plain CPU tensors: it takes longer than the write."""
    plain = type(rows) is Tensor and type(keys) is Tensor and rows.device.type == "cpu"
    if not plain or torch.compiler.is_compiling():
        enqueue(rows, row_scale, ids, ptr, count, keys, key_ids, normalize, backend)
        return
    run = resolve("enqueue", backend, rows, keys)
    run(rows, row_scale, ids, ptr, count, keys, key_ids, normalize=normalize)
    # So that autograd sees when a tensor it saved was written to.
    written = [rows, ids, ptr, count] if row_scale is None else [rows, row_scale, ids, ptr, count]
    torch.autograd.graph.increment_version(written)
