"""From row losses to the loss: focus on hard positives, and the reduction."""

import torch
from torch import Tensor


def reduce_rows(rows: Tensor, positive_focus: float, reduction: str) -> Tensor:
    """Rows (B,) weighted by a = (1 - e^-loss)^focus, detached; "mean" divides by the sum of a.

    The mean takes the bases relative to the largest one, before the power: a itself may be
    subnormal or 0 in well separated batches, where the share of a row is still well defined.
    """
    if not positive_focus:
        if reduction == "none":
            return rows
        return rows.sum() if reduction == "sum" else rows.sum() / max(rows.shape[0], 1)
    base = (-torch.expm1(-rows.detach())).clamp(min=0.0)
    if reduction != "mean":
        weighted = base.pow(positive_focus) * rows
        return weighted if reduction == "none" else weighted.sum()
    if rows.shape[0] == 0:
        return rows.sum()
    largest = base.amax()
    weight = (base / torch.where(largest == 0, 1.0, largest)).pow(positive_focus)
    total = weight.sum()
    return (weight / torch.where(total == 0, 1.0, total) * rows).sum()
