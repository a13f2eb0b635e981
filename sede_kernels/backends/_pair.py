"""Two banks by two passes, for backends without a kernel that takes both."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
#: Rows, row scale and ids of a bank.
BankArguments = tuple[Tensor, Tensor | None, Tensor | None]


def two_passes(
    one_pass: Callable[..., Results],
    query: Tensor,
    bank: BankArguments,
    other: BankArguments,
    scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    **options: Any,
) -> Results:
    """The results of ``one_pass`` (a backend's ``bank_lse``) for each bank, stacked."""
    found = []
    for side, (rows, row_scale, ids) in enumerate((bank, other)):
        most = None if limit is None else limit[side]
        found.append(
            one_pass(query[side], rows, row_scale, scales, query_ids, ids, most, **options)
        )
    lse, moment, acc, count, top, top_index = (
        torch.stack(results) for results in zip(*found, strict=True)
    )
    return lse, moment, acc, count, top, top_index
