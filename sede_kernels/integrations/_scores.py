"""Sums of the retrieval criteria on score matrices, with further negatives from a bank."""

from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.functional import score_info_nce
from sede_kernels.integrations._checks import check_real, check_switch


class PairCost(NamedTuple):
    """What a violated pair costs.

    Attributes:
        margin: of the hinge.
        max_violation: only the hardest negative of each query counts (VSE++), else all (VSE0).
        temperature: None for the hinge, a number for the weighted InfoNCE.
        hardness: beta >= 0; negatives weigh n softmax(beta s), detached.
    """

    margin: float
    max_violation: bool
    temperature: float | None
    hardness: float


def check_pair_cost(
    name: str, margin: float, max_violation: bool, temperature: float | None, hardness: float
) -> PairCost:
    """One sentence for settings that mean nothing; the settings as plain numbers."""
    scale = None
    if temperature is not None:
        scale = check_real(name, "temperature", temperature, above=0.0, none="the hinge")
    return PairCost(
        check_real(name, "margin", margin),
        check_switch(name, "max_violation", max_violation),
        scale,
        check_real(name, "hardness", hardness, least=0.0),
    )


def negatives_mask(ids: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """(B, B), True where column j is a negative of row i: off the diagonal and of another id."""
    if ids is None:
        return ~torch.eye(rows, dtype=torch.bool, device=device)
    same = ids.unsqueeze(1) == ids
    same.fill_diagonal_(True)
    return ~same


def bank_mask(ids: Tensor | None, bank_ids: Tensor, rows: int) -> Tensor:
    """(B, K), True where the slot is filled and of another id."""
    filled = (bank_ids != -1).expand(rows, -1)
    return filled if ids is None else filled & (ids.unsqueeze(1) != bank_ids)


def info_nce(scores: Tensor, ids: Tensor | None, key_ids: Tensor | None, cost: PairCost) -> Tensor:
    """Summed weighted InfoNCE of one direction.

    A sum as the hinge is one, so that learning rates and gradient clipping keep their meaning.

    Args:
        scores: (B, B + K), the right pairs on its diagonal, then those with stored keys.
        ids: (B,) of the batch, or None.
        key_ids: (K,) of the stored keys, or None without any.
        cost: with a temperature.

    Returns:
        Scalar.
    """
    known = ids
    if key_ids is not None:
        own = key_ids.new_zeros(scores.shape[0]) if ids is None else ids
        known = torch.cat([own, key_ids])
    return score_info_nce(
        scores,
        temperature=1.0 if cost.temperature is None else cost.temperature,
        hardness=cost.hardness,
        query_ids=ids,
        key_ids=known,
        reduction="sum",
    )


def hinge(scores: Tensor, valid: Tensor, cost: PairCost) -> Tensor:
    """Summed hinge of one direction.

    ``sum_i sum_j w_ij max(0, margin + s_ij - s_i+)``, or the largest j alone.

    Args:
        scores: (B, N), the right pairs on its diagonal.
        valid: (B, N) bool, which are negatives.
        cost: see ``PairCost``.

    Returns:
        Scalar.
    """
    positive = scores.diagonal()
    costs = (cost.margin + scores - positive.unsqueeze(1)).clamp(min=0).masked_fill(~valid, 0.0)
    if cost.max_violation:
        return costs.max(dim=1).values.sum() if costs.shape[1] else costs.sum()
    if cost.hardness > 0:
        logits = (cost.hardness * scores.detach()).masked_fill(~valid, -torch.inf)
        share = torch.softmax(logits, dim=1).nan_to_num(0.0)  # a row without negatives
        costs = costs * share * valid.sum(dim=1, keepdim=True)
    return costs.sum()
