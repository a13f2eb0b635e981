"""Top-k valid bank rows in native code, see csrc/kernels/hardest.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.types import Bank, Ranked, result_dtype


def hardest(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked:
    """See ``sede_kernels.ops.hardest``. Time 2 BKD FLOPs, extra memory 2k candidates a slice."""
    rows, run = query.shape[0], _native.module().hardest
    found = Ranked(
        torch.empty((rows, k), dtype=result_dtype(query), device="cpu"),
        torch.empty((rows, k), dtype=torch.int64, device="cpu"),
    )
    if run(query, bank, query_ids, k, *found):
        return found
    dense = Bank(
        bank.rows,
        _native.contiguous(bank.row_scale, torch.float32),
        _native.contiguous(bank.ids, torch.int64),
    )
    if not run(query, dense, _native.contiguous(query_ids, torch.int64), k, *found):
        raise ValueError(
            "cpu backend: hardest takes (B, D) queries, a (K, D) bank with its scales and ids, and "
            "(B,) ids, all dense and on the CPU; something else came."
        )
    return found
