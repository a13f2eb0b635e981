"""Top-k over the bank: each chunk's similarities are merged into the running top-k."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.types import Bank, Ranked


def hardest(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked:
    """See ``sede_kernels.ops.hardest``. Two launches a chunk of the bank.

    Raises:
        BackendUnavailableError: k is more than a block of threads can sort.
    """
    rows, size = query.shape[0], bank.rows.shape[0]
    most = _native.module().most_top
    if k > most:
        raise BackendUnavailableError(
            f"hardest: backend 'cuda' finds at most {most} rows a query, got k={k}; "
            "backend='torch' finds any number."
        )
    found = Ranked.empty(query, k)
    if found.values.numel() == 0:
        return found
    if size == 0:
        found.values.fill_(-torch.inf)
        found.indices.fill_(-1)
        return found
    call = _native.Call(query.device)
    call.run(
        _native.module().hardest,
        call.matrix(query),
        call.matrix(bank.rows),
        call.array("row_scale", bank.row_scale, torch.float32, size),
        (
            call.array("query_ids", query_ids, torch.int64, rows),
            call.array("bank_ids", bank.ids, torch.int64, size),
            0,
            _native.SELECT_CODES["mask"],
            False,
        ),
        k,
        *(call.result(result) for result in found),
    )
    return found
