"""The weighted InfoNCE and its query gradient in fp64, in closed form, over chunks of the bank.

The reference writes the whole matrix of similarities a dozen times over; at a million rows that
would outlast the measurement. These are the closed forms of docs/method.md; a test here holds them
to the reference.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Exact:
    """Settings of one loss.

    Attributes:
        temperature: tau.
        hardness: beta.
        detach: whether weights are constants.
        normalizes: whether the query is scaled to unit length inside, which takes the radial
            part out of the gradient of a unit query.
    """

    temperature: float
    hardness: float
    detach: bool
    normalizes: bool = False


def exact_loss(
    query: Tensor,
    positive: Tensor,
    rows: Tensor,
    row_scale: Tensor | None,
    same: tuple[Tensor, Tensor] | None,
    settings: Exact,
) -> tuple[Tensor, Tensor]:
    """(mean loss (), query gradient (B, D)), fp64.

    Args:
        query: (B, D) fp64.
        positive: (B, D) fp64.
        rows: (K, D) bank of any dtype.
        row_scale: (K,) of an int8 bank, or None.
        same: (query ids (B,), bank ids (K,)) whose equal pairs are no negatives, or None.
        settings: the loss.
    """
    if settings.normalizes:
        query = query / query.norm(dim=1, keepdim=True)
    it, beta = 1 / settings.temperature, settings.hardness
    scales = [it + beta, beta] if beta else [it]
    total = query.shape[0]
    count = query.new_zeros(total)
    peak = [query.new_full((total,), -torch.inf) for _ in scales]
    mass = [query.new_zeros(total) for _ in scales]
    mean = [torch.zeros_like(query) for _ in scales]
    step = max(256, _CHUNK_ELEMENTS // total)
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step].double()
        if row_scale is not None:
            chunk = chunk * row_scale[start : start + step, None].double()
        s = query @ chunk.T
        if same is not None:
            s.masked_fill_(same[0].unsqueeze(1) == same[1][start : start + step], -torch.inf)
        count += (s > -torch.inf).sum(dim=1)
        for e, scale in enumerate(scales):
            top = torch.maximum(peak[e], scale * s.amax(dim=1))
            p = (scale * s - top.unsqueeze(1)).exp_()
            shrink = (peak[e] - top).exp()
            mass[e] = mass[e] * shrink + p.sum(dim=1)
            mean[e] = mean[e] * shrink.unsqueeze(1) + p @ chunk
            peak[e] = top
    lse = [m.log() + t for m, t in zip(mass, peak, strict=True)]
    outs = [o / m.unsqueeze(1) for o, m in zip(mean, mass, strict=True)]
    negatives = lse[0] + (count.log() - lse[1] if beta else 0.0)
    logit = it * (query * positive).sum(dim=1)
    share = torch.sigmoid(negatives - logit).unsqueeze(1)
    if beta and not settings.detach:
        pull = scales[0] * outs[0] - scales[1] * outs[1]
    else:
        pull = it * outs[0]
    grad = share * (pull - it * positive) / total
    if settings.normalizes:
        grad = grad - (grad * query).sum(dim=1, keepdim=True) * query
    return torch.nn.functional.softplus(negatives - logit).mean(), grad
