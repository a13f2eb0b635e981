"""Two banks by two passes, for backends without a kernel that takes both."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def in_two_passes(one_pass: Callable[..., Results]) -> Callable[..., Results]:
    """The ``bank_lse_pair`` of a backend from its ``bank_lse``: one bank after the other."""

    def bank_lse_pair(
        query: Tensor,
        bank: Tensor,
        other_bank: Tensor,
        row_scale: Tensor | None,
        other_row_scale: Tensor | None,
        scales: Tensor,
        query_ids: Tensor | None,
        bank_ids: Tensor | None,
        other_bank_ids: Tensor | None,
        limit: Tensor | None,
        **options: Any,
    ) -> Results:
        """See ``sede_kernels.ops.bank_lse_pair``."""
        sides = ((bank, row_scale, bank_ids), (other_bank, other_row_scale, other_bank_ids))
        found = []
        for side, (rows, scale, ids) in enumerate(sides):
            most = None if limit is None else limit[side]
            found.append(
                one_pass(query[side], rows, scale, scales, query_ids, ids, most, **options)
            )
        lse, moment, acc, count, top, top_index = (
            torch.stack(results) for results in zip(*found, strict=True)
        )
        return lse, moment, acc, count, top, top_index

    return bank_lse_pair
