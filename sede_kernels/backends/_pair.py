"""Two banks by two passes, for backends without a kernel that takes both."""

from collections.abc import Callable

import torch
from torch import Tensor

from sede_kernels.types import Bank, Match, Sums, Want

OnePass = Callable[[Tensor, Bank, Tensor, Match, Want], Sums]
TwoPasses = Callable[[Tensor, Bank, Bank, Tensor, Match, Want], Sums]


def in_two_passes(one_pass: OnePass) -> TwoPasses:
    """The ``bank_lse_pair`` of a backend from its ``bank_lse``: one bank after the other."""

    def bank_lse_pair(
        query: Tensor, bank: Bank, other: Bank, scales: Tensor, match: Match, want: Want
    ) -> Sums:
        """See ``sede_kernels.ops.bank_lse_pair``."""
        found = [
            one_pass(query[side], its, scales, match.of_side(side), want)
            for side, its in enumerate((bank, other))
        ]
        return Sums(*(torch.stack(results) for results in zip(*found, strict=True)))

    return bank_lse_pair
