"""Top-k valid bank rows in native code, see csrc/kernels/hardest.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.types import Bank, Ranked


def hardest(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked:
    """See ``sede_kernels.ops.hardest``. Time 2 BKD FLOPs, extra memory 2k candidates a slice."""
    rows, size = query.shape[0], bank.rows.shape[0]
    row_scale = _native.contiguous(bank.row_scale, torch.float32)
    query_ids = _native.contiguous(query_ids, torch.int64)
    bank_ids = _native.contiguous(bank.ids, torch.int64)
    found = Ranked.empty(query, k)
    _native.module().hardest(
        _native.matrix(query),
        _native.matrix(bank.rows),
        _native.address("row_scale", row_scale, torch.float32, size),
        _native.address("query_ids", query_ids, torch.int64, rows),
        _native.address("bank_ids", bank_ids, torch.int64, size),
        k,
        found.values.data_ptr(),
        found.indices.data_ptr(),
    )
    return found
