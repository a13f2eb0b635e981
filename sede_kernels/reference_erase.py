"""The specification of attention-guided erasing, in plain PyTorch; see ``reference``."""

import torch
from torch import Tensor

NEG_INF = float("-inf")


def valid_fragments(attention: Tensor, lengths: Tensor | None) -> Tensor:
    """Bool mask shaped like ``attention``: index below the length."""
    if lengths is None:
        return torch.ones_like(attention, dtype=torch.bool)
    index = torch.arange(attention.shape[-1], device=attention.device)
    return index < lengths[..., None]


def _rank(a: Tensor, candidates: Tensor, largest: bool) -> Tensor:
    """Position of each candidate by value, ties to the lowest index; others come last."""
    worst = NEG_INF if largest else float("inf")
    order = a.masked_fill(~candidates, worst).argsort(dim=-1, descending=largest, stable=True)
    # Candidates whose value is itself the sentinel must still precede the others.
    order = order.gather(-1, (~candidates).gather(-1, order).long().argsort(dim=-1, stable=True))
    return order.argsort(dim=-1, stable=True)


def attended(a: Tensor, valid: Tensor, rule: str, threshold: float) -> Tensor:
    """H, the attended fragments of each row, by ``rule``."""
    zeroed = a.masked_fill(~valid, 0.0)
    count = valid.sum(dim=-1, keepdim=True)
    if rule == "mean":
        return valid & (a > zeroed.sum(dim=-1, keepdim=True) / count)
    if rule == "prob":
        root = zeroed.clamp(min=0.0).sqrt()
        cut = (zeroed * root).sum(dim=-1, keepdim=True) / root.sum(dim=-1, keepdim=True)
        return valid & (a > cut)
    if rule == "absolute":
        return valid & (a > threshold)
    if rule == "relative":
        peak = a.masked_fill(~valid, NEG_INF).amax(dim=-1, keepdim=True)
        return valid & (a >= threshold * peak)
    if rule == "topk":
        return valid & (_rank(a, valid, largest=True) < int(threshold))
    ordered = a.masked_fill(~valid, float("inf")).sort(dim=-1).values
    position = threshold * (count - 1).clamp(min=0).to(torch.float64)
    below = position.floor().long()
    above = torch.minimum(below + 1, (count - 1).clamp(min=0))
    low, high = ordered.gather(-1, below), ordered.gather(-1, above)
    cut = low + (position - below).to(a.dtype) * (high - low).masked_fill(above == below, 0.0)
    return valid & (a >= cut)


def keep_mask(
    a: Tensor, valid: Tensor, *, rule: str, threshold: float, low: bool, keep_min: int
) -> Tensor:
    """H for ``low``, its valid complement else; topped up to ``keep_min`` fragments.

    The largest of the rest are added when the weakly attended are erased, the smallest when the
    strongly attended are.
    """
    if a.shape[-1] == 0:
        return valid
    high = attended(a, valid, rule, threshold)
    keep = high if low else valid & ~high
    rest = valid & ~keep
    missing = (keep_min - keep.sum(dim=-1, keepdim=True)).clamp(min=0)
    return keep | (rest & (_rank(a, rest, largest=low) < missing))


def attention_erase(
    attention: Tensor,
    *,
    rule: str = "mean",
    threshold: float = 0.0,
    erase: str = "low",
    keep_min: int = 1,
    lengths: Tensor | None = None,
    renormalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """(attention after erasing, mask of the kept); the mask carries no gradient."""
    valid = valid_fragments(attention, lengths)
    mask = keep_mask(
        attention.detach(),
        valid,
        rule=rule,
        threshold=threshold,
        low=erase == "low",
        keep_min=keep_min,
    )
    out = torch.where(mask, attention, torch.zeros_like(attention))
    if renormalize:
        total = out.sum(dim=-1, keepdim=True)
        out = out / torch.where(total == 0, torch.ones_like(total), total)
    return out, mask
