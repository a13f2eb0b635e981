"""Weighted InfoNCE of given scores, for models that have no single vector."""

import torch
import torch.nn.functional as F
from torch import Tensor


def score_info_nce(
    positive: Tensor,
    negatives: Tensor,
    valid: Tensor,
    *,
    temperature: float,
    hardness: float = 0.0,
) -> Tensor:
    """Weighted InfoNCE of given scores, one loss per row.

    ``softplus(LN_i - s_i+ / tau)`` with ``LN_i = log sum_j w_ij exp(s_ij / tau)`` over the valid
    negatives and ``w_ij = n_i softmax_j(beta s_ij)``, detached: the default weights of
    :func:`sede_kernels.weighted_info_nce`, which needs vectors. A row without a valid negative
    has loss 0 and gradient 0.

    Args:
        positive: (B,) score of each right pair.
        negatives: (B, N) scores.
        valid: (B, N) bool, which of them count.
        temperature: above 0.
        hardness: beta >= 0, multiplies the score.

    Returns:
        (B,) losses. The gradient reaches both score tensors.
    """
    some = valid.any(1)
    kept = valid | ~some[:, None]  # rows without negatives stay finite and are zeroed at the end
    scores = negatives.masked_fill(~kept, float("-inf"))
    logits = scores / temperature
    if hardness > 0:
        count = kept.sum(1, keepdim=True).to(scores.dtype).log()
        logits = logits + (count + F.log_softmax(hardness * scores.detach(), 1))
    losses = F.softplus(torch.logsumexp(logits, 1) - positive / temperature)
    return torch.where(some, losses, 0.0)
