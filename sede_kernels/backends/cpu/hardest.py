"""Top-k valid bank rows in native code, see csrc/kernels/hardest.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native


def hardest(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    *,
    k: int,
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.hardest``. Time 2 BKD FLOPs, extra memory 2k candidates a slice."""
    row_scale = _native.contiguous(row_scale, torch.float32)
    query_ids = _native.contiguous(query_ids, torch.int64)
    bank_ids = _native.contiguous(bank_ids, torch.int64)
    values = _native.empty(query.shape[0], k, dtype=_native.compute_dtype(query))
    indices = _native.empty(query.shape[0], k, dtype=torch.int64)
    _native.module().hardest(
        _native.matrix(query),
        _native.matrix(bank),
        _native.address("row_scale", row_scale, torch.float32, bank.shape[0]),
        _native.address("query_ids", query_ids, torch.int64, query.shape[0]),
        _native.address("bank_ids", bank_ids, torch.int64, bank.shape[0]),
        k,
        values.data_ptr(),
        indices.data_ptr(),
    )
    return values, indices
