"""Ring write in two launches, without reading the pointer on the host."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native


def enqueue(
    rows: Tensor,
    row_scale: Tensor | None,
    ids: Tensor,
    ptr: Tensor,
    count: Tensor,
    rejected: Tensor,
    keys: Tensor,
    key_ids: Tensor | None,
    *,
    normalize: bool,
) -> None:
    """See ``sede_kernels.ops.enqueue``."""
    if keys.shape[0] == 0 or rows.shape[0] == 0:
        return
    call = _native.Call(rows.device)
    call.launch(
        _native.module().enqueue,
        call.matrix(rows),
        0 if row_scale is None else call.result(row_scale),
        *(call.result(buffer) for buffer in (ids, ptr, count, rejected)),
        call.matrix(keys),
        call.array("key_ids", key_ids, torch.int64, keys.shape[0]),
        normalize,
    )
