"""IMRAM: SGRAF's criterion on a score matrix, with the options first and captions in rows."""

from functools import partial
from typing import Any, Protocol

from torch import Tensor

from sede_kernels.integrations import sgraf
from sede_kernels.integrations._checks import Ids, check_features
from sede_kernels.integrations._fragments import Fragments, Lengths, Score
from sede_kernels.integrations.scan import i2t, t2i

__all__ = ["ContrastiveLoss", "bank_score", "i2t", "t2i"]


class Model(Protocol):
    """What of IMRAM's model is called here."""

    training: bool

    def forward_score(
        self, img_fc: Tensor, img_emb: Tensor, ht: Tensor, cap_emb: Tensor, cap_len: Lengths
    ) -> Tensor:
        """Scores of every pair; captions in rows in training, images in rows in evaluation."""


def _images_in_rows(model: Model, images: Tensor, captions: Tensor, lengths: Lengths) -> Tensor:
    # The host takes, but does not read, a pooled image and the last state of the GRU.
    pooled, state = images.mean(dim=1), captions[:, 0]
    scores = model.forward_score(pooled, images, state, captions, lengths)
    return scores.t() if model.training else scores


def bank_score(model: Model) -> Score:
    """``score=`` for the criterion's banks: the model's own, images in rows in either mode."""
    return partial(_images_in_rows, model)


class ContrastiveLoss(sgraf.ContrastiveLoss):
    """Twin of IMRAM's ``ContrastiveLoss(opt, margin, max_violation)`` on a score matrix.

    Args:
        opt: the host's options; kept, not read.
        margin, max_violation, settings: see ``sgraf.ContrastiveLoss``.
        score: ``bank_score(model)``; only needed for a bank.
    """

    def __init__(
        self,
        opt: object,
        margin: float = 0,
        max_violation: bool = False,
        *,
        score: Score | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(margin, max_violation, score=score, **settings)
        self.opt = opt

    def forward(
        self,
        scores: Tensor,
        fragments: Fragments | tuple[Tensor, Tensor, Lengths] | None = None,
        ids: Ids | None = None,
        *,
        keys: Fragments | tuple[Tensor, Tensor, Lengths] | None = None,
    ) -> Tensor:
        """Summed loss; ``scores`` (B, B) with captions in rows, as the model trains on them."""
        check_features("ContrastiveLoss", "scores", scores, (None, None), "B, B")
        return super().forward(scores.t(), fragments, ids, keys=keys)
