"""SGRAF, and others whose criterion takes the score matrix."""

from typing import Any

from torch import Tensor

from sede_kernels.integrations._checks import Ids
from sede_kernels.integrations._fragments import FragmentLoss, Fragments, Lengths, Score
from sede_kernels.integrations.scan import i2t, t2i

__all__ = ["ContrastiveLoss", "i2t", "t2i"]


class ContrastiveLoss(FragmentLoss):
    """Twin of SGRAF's ``ContrastiveLoss(margin, max_violation)`` on a score matrix.

    Args:
        margin: of the hinge.
        max_violation: count only the hardest negative of each query.
        score: the model's own score, SGRAF: ``model.sim_enc``; only needed for a bank.
        bank_size, dim, regions, max_words, bank_dtype, temperature, hardness, start_step: see
            ``FragmentLoss``.

    Example:
        >>> import torch
        >>> ContrastiveLoss(margin=0.2)(torch.eye(2)).item()
        0.0
    """

    def __init__(
        self,
        margin: float = 0,
        max_violation: bool = False,
        *,
        score: Score | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(margin, max_violation, score=score, **settings)

    def forward(
        self,
        scores: Tensor,
        fragments: Fragments | tuple[Tensor, Tensor, Lengths] | None = None,
        ids: Ids | None = None,
        *,
        keys: Fragments | tuple[Tensor, Tensor, Lengths] | None = None,
    ) -> Tensor:
        """Summed loss.

        Args:
            scores: (B, B) similarities, images in rows.
            fragments: (images, captions, lengths) behind them; needed with a bank.
            ids: (B,) image of each pair; None as the host.
            keys: a momentum encoder's fragments to store instead.

        Returns:
            Scalar.
        """
        batch = None if fragments is None else Fragments.of("fragments", fragments)
        stored = None if keys is None else Fragments.of("keys", keys)
        return self.loss(scores, batch, ids, stored)
