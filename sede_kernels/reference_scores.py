"""The specification of the weighted InfoNCE of given scores; see ``reference``."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.reference import NEG_INF, masked_logsumexp, negatives_lse, reduce_loss


def score_masks(
    scores: Tensor,
    own: bool,
    valid: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    false_negatives: str,
) -> tuple[Tensor, Tensor]:
    """(B, N) bool: the negatives, and the further positives.

    Args:
        scores: (B, N); where one is -inf there is neither.
        own: key i is that of query i, so it is neither.
        valid: (B, N) bool, True where a key may count.
        query_ids: (B,).
        key_ids: (N,), -1 for no key.
        false_negatives: what a key of the query's id is.
    """
    counts = scores != NEG_INF
    same = torch.zeros_like(counts)
    if own:
        counts = counts & ~torch.eye(*scores.shape, dtype=torch.bool, device=scores.device)
    if valid is not None:
        counts = counts & valid
    if key_ids is not None:
        counts = counts & (key_ids != -1)
        if query_ids is not None:
            same = counts & (query_ids[:, None] == key_ids)
    if false_negatives == "keep":
        return counts, torch.zeros_like(same)
    return counts & ~same, same if false_negatives == "positive" else torch.zeros_like(same)


def score_info_nce(
    scores: Tensor,
    positive: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    hardness: float | Tensor = 0.0,
    normalize_weights: bool = True,
    detach_weights: bool = True,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    false_negatives: str = "mask",
    reduction: str = "mean",
) -> Tensor:
    """Weighted InfoNCE of docs/method.md with the scores as they are given."""
    it = 1 / torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    beta = torch.as_tensor(hardness, dtype=scores.dtype, device=scores.device)
    own = positive is None
    s_plus = scores.diagonal() if positive is None else positive
    negative, further = score_masks(scores, own, valid, query_ids, key_ids, false_negatives)
    # What does not count is zeroed first, so that it cannot leak as NaN.
    s = torch.where(negative | further, scores, 0.0)
    log_negatives = negatives_lse(
        s, negative, it, beta, normalize_weights=normalize_weights, detach_weights=detach_weights
    )
    log_positives = mean_logit = it * s_plus
    if false_negatives == "positive":
        total = s_plus + torch.where(further, s, 0.0).sum(dim=1)
        mean_logit = it * total / (1 + further.sum(dim=1))
        log_positives = torch.logaddexp(log_positives, masked_logsumexp(it * s, further))
    # log(e^a + e^b) - a = log(1 + e^(b - a)): a loss near 0 keeps its digits beside large logits.
    some = negative.any(dim=1)
    above = log_negatives.masked_fill(~some, 0.0) - log_positives
    against = torch.where(some, torch.logaddexp(above.new_zeros(()), above), 0.0)
    return reduce_loss(against + (log_positives - mean_logit), 0.0, reduction)


def statistics(
    scores: Tensor,
    positive: Tensor | None,
    *,
    valid: Tensor | None,
    temperature: float | Tensor,
    hardness: float | Tensor,
    normalize_weights: bool,
    detach_weights: bool,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    false_negatives: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """s+, the hardest negative and its column, how many there are, and LN; all (B,)."""
    it = 1 / torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    beta = torch.as_tensor(hardness, dtype=scores.dtype, device=scores.device)
    s_plus = scores.diagonal() if positive is None else positive
    negative, _ = score_masks(scores, positive is None, valid, query_ids, key_ids, false_negatives)
    log_negatives = negatives_lse(
        torch.where(negative, scores, 0.0),
        negative,
        it,
        beta,
        normalize_weights=normalize_weights,
        detach_weights=detach_weights,
    )
    # One column more, so that a row without negatives has its hardest in none.
    padded = F.pad(scores.masked_fill(~negative, NEG_INF), (0, 1), value=NEG_INF)
    values, order = padded.sort(dim=1, descending=True, stable=True)
    hardest, column = values[:, 0], order[:, 0]
    column = column.masked_fill(hardest == NEG_INF, -1)
    return s_plus, hardest, column, negative.sum(dim=1), log_negatives
