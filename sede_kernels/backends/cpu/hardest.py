"""Top-k valid bank rows in native code, see csrc/kernels/hardest.cpp."""

from functools import lru_cache

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


@lru_cache(maxsize=256)
def _shapes(dtype: torch.dtype, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """Tensors of one element, expanded to the shapes of the results: to be made alike."""
    values = torch.float64 if dtype == torch.float64 else torch.float32
    one, other = (torch.empty((), dtype=d, device="cpu") for d in (values, torch.int64))
    return one.expand(rows, k), other.expand(rows, k)


def hardest_at_once(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked | None:
    """``hardest`` of plain tensors where nothing has to be converted or refused, else None."""
    if query.dim() != 2 or query.is_nested or k < 1:
        return None
    values, indices = _shapes(query.dtype, query.size(0), k)
    found = Ranked(torch.empty_like(values), torch.empty_like(indices))
    fits = _native.module().hardest(query, bank, query_ids, k, found.values, found.indices, True)
    return found if fits else None
