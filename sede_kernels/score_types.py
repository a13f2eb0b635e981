"""What the weighted InfoNCE of given scores takes and gives, from ``functional`` to the kernels."""

from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.types import result_dtype


class Scores(NamedTuple):
    """Given scores of B queries with N keys, and which of the keys are negatives."""

    scores: Tensor  # (B, N), any strides; -inf: neither a negative nor a positive
    positive: Tensor | None = None  # (B,); None: key i belongs to query i, scores[i, i]
    valid: Tensor | None = None  # (B, N) bool: which keys may count
    ids: Tensor | None = None  # (B,) int64
    key_ids: Tensor | None = None  # (N,) int64, EMPTY for no key


#: The rows of ``ScoreLoss.table``, as in csrc/score_info_nce.h. With c = 1 / tau + beta a negative
#: of score s has the derivative grad e^{c (s - hardest) - shift} + grad_1 e^{beta (s - hardest) -
#: shift_1}, a further positive extra_grad e^{(s - extra_most) / tau - extra_shift} + extra_grad_1.
SCORE_TABLE = (
    "loss", "positive", "log_negatives", "hardest", "positive_grad", "temperature_grad",
    "hardness_grad", "shift", "shift_1", "grad", "grad_1", "extra_most", "extra_shift",
    "extra_grad", "extra_grad_1",
)  # fmt: skip


class ScoreLoss(NamedTuple):
    """The weighted InfoNCE of given scores and all that its backward needs."""

    loss: Tensor  # () or (B,)
    table: Tensor  # (len(SCORE_TABLE), B), gradients for an upstream gradient of 1
    negatives: Tensor  # (B,) int64
    hardest_index: Tensor  # (B,) int64, -1 without a negative

    @classmethod
    def empty(cls, scores: Tensor, reduction: str) -> "ScoreLoss":
        """Memory for the loss of ``scores`` (B, N)."""
        rows, dtype = scores.shape[0], result_dtype(scores)
        return cls(
            scores.new_empty((rows,) if reduction == "none" else (), dtype=dtype),
            scores.new_empty((len(SCORE_TABLE), rows), dtype=dtype),
            scores.new_empty((rows,), dtype=torch.int64),
            scores.new_empty((rows,), dtype=torch.int64),
        )


class ScoreGradients(NamedTuple):
    """The gradients of the weighted InfoNCE of given scores; not wanted: size 0."""

    scores: Tensor  # (B, N), these two in the dtype of what they belong to
    positive: Tensor
    temperature: Tensor  # () float32 or float64
    hardness: Tensor

    @classmethod
    def empty(
        cls, grad: Tensor, given: Scores, needs: tuple[int, ...], spare: Tensor | None = None
    ) -> "ScoreGradients":
        """Memory for those that are needed; of the scores in their own layout where it is dense.

        ``spare`` stands for the others; without it each has a tensor of size 0.
        """
        positive = given.scores if given.positive is None else given.positive

        def other(like: Tensor) -> Tensor:
            return like.new_empty((0,)) if spare is None else spare

        return cls(
            torch.empty_like(given.scores) if needs[0] else other(given.scores),
            positive.new_empty(given.scores.shape[:1]) if needs[1] else other(positive),
            grad.new_empty(()) if needs[2] else other(grad),
            grad.new_empty(()) if needs[3] else other(grad),
        )
