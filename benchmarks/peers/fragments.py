"""Region-word similarity in plain PyTorch: SCAN's published caption loop, and all pairs at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-8


def _attend(queries: Tensor, sources: Tensor, smoothing: float, erase: bool) -> Tensor:
    """SCAN's attended source of each query: (B, Q, D), (B, S, D) -> (B, Q, D).

    Leaky ReLU of the products, unit length over the queries, softmax over the sources; BFAN's
    erasing keeps what is attended more than the mean.
    """
    raw = F.leaky_relu(torch.bmm(sources, queries.transpose(1, 2)), 0.1)  # [B, S, Q]
    unit = raw / (raw.norm(dim=2, keepdim=True) + _EPS)
    attention = (unit.transpose(1, 2) * smoothing).softmax(dim=2)  # [B, Q, S]
    if erase:
        kept = attention * (attention > attention.mean(dim=2, keepdim=True))
        attention = kept / kept.sum(dim=2, keepdim=True)
    return torch.bmm(attention, sources)


def _aggregate(sim: Tensor, mode: str, scale: float) -> Tensor:
    """(B, Q) -> (B,)."""
    return (sim * scale).logsumexp(dim=1) / scale if mode == "lse" else sim.mean(dim=1)


def caption_loop(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor,
    *,
    direction: str,
    smoothing: float,
    aggregate: str,
    scale: float,
    erase: bool,
) -> Tensor:
    """(B, C) similarities caption by caption, as the published SCAN code computes them.

    Each caption without its padding is expanded over the images; context vectors are formed.
    """
    columns = []
    for index, count in enumerate(lengths.tolist()):
        caption = words[index, :count].unsqueeze(0).expand(regions.shape[0], -1, -1).contiguous()
        queries, sources = (caption, regions) if direction == "t2i" else (regions, caption)
        context = _attend(queries, sources, smoothing, erase)
        sim = F.cosine_similarity(queries, context, dim=2, eps=_EPS)
        columns.append(_aggregate(sim, aggregate, scale))
    return torch.stack(columns, dim=1)


def pair_attention(
    s: Tensor, valid: Tensor, *, direction: str, smoothing: float, erase: bool
) -> Tensor:
    """(B, C, R, L) attention of each query over its sources, 0 at padding.

    Args:
        s: (B, C, R, L) products of all regions and words.
        valid: (C, L) real words.
        direction: ``t2i`` or ``i2t``.
        smoothing: lambda.
        erase: BFAN's rule, keep what is above the mean.
    """
    query_axis, source_axis = (3, 2) if direction == "t2i" else (2, 3)
    real = valid[None, :, None, :]
    raw = F.leaky_relu(s, 0.1) * real
    unit = raw / (raw.norm(dim=query_axis, keepdim=True) + _EPS)
    logits = unit * smoothing
    if direction == "i2t":
        logits = logits.masked_fill(~real, -torch.inf)
    attention = logits.softmax(dim=source_axis) * real
    if erase:
        count = real.sum(dim=3, keepdim=True) if direction == "i2t" else float(s.shape[2])
        mean = attention.sum(dim=source_axis, keepdim=True) / count
        kept = attention * (attention > mean)
        total = kept.sum(dim=source_axis, keepdim=True)
        attention = kept / torch.where(total > 0, total, torch.ones_like(total))
    return attention


def all_pairs(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor,
    *,
    direction: str,
    smoothing: float,
    aggregate: str,
    scale: float,
    erase: bool,
) -> Tensor:
    """(B, C) in the Gram form with every tensor written out: one product for all pairs."""
    valid = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
    s = torch.einsum("brd,cld->bcrl", regions, words)
    a = pair_attention(s, valid, direction=direction, smoothing=smoothing, erase=erase)
    if direction == "t2i":
        gram = torch.einsum("brd,bsd->brs", regions, regions)
        dot = (a * s).sum(dim=2)  # [B, C, L]
        square = (a * torch.einsum("brs,bcsl->bcrl", gram, a)).sum(dim=2)
        size = words.norm(dim=2).unsqueeze(0)
        mask = valid.unsqueeze(0)
    else:
        gram = torch.einsum("cld,cmd->clm", words, words)
        dot = (a * s).sum(dim=3)  # [B, C, R]
        square = (a * torch.einsum("clm,bcrm->bcrl", gram, a)).sum(dim=3)
        size = regions.norm(dim=2).unsqueeze(1)
        mask = torch.ones_like(dot, dtype=torch.bool)
    cosine = dot / (size * square.clamp(min=_EPS**2).sqrt()).clamp(min=_EPS)
    if aggregate == "lse":
        return (cosine * scale).masked_fill(~mask, -torch.inf).logsumexp(dim=2) / scale
    return (cosine * mask).sum(dim=2) / mask.sum(dim=2)


def chosen_pairs(
    regions: Tensor, words: Tensor, lengths: Tensor, *, direction: str, smoothing: float
) -> Tensor:
    """(B, N) mean cosines of B images (B, R, D) with N captions each (B, N, L, D), batched."""
    real = (torch.arange(words.shape[2], device=words.device) < lengths.unsqueeze(2)).unsqueeze(3)
    words = words * real
    flat = words.flatten(1, 2) @ regions.transpose(1, 2)
    raw = F.leaky_relu(flat.unflatten(1, words.shape[1:3]), 0.1)  # [B, N, L, R]
    if direction == "t2i":
        attention = (smoothing * raw / (raw.norm(dim=2, keepdim=True) + _EPS)).softmax(dim=3)
        context = attention.flatten(1, 2) @ regions
        sim = F.cosine_similarity(words, context.view_as(words), dim=3, eps=_EPS)
        return (sim * real.squeeze(3)).sum(dim=2) / lengths
    unit = smoothing * raw / (raw.norm(dim=3, keepdim=True) + _EPS)
    attention = unit.masked_fill(~real, -torch.inf).softmax(dim=2)
    context = attention.transpose(2, 3) @ words  # [B, N, R, D]
    sim = F.cosine_similarity(regions.unsqueeze(1), context, dim=3, eps=_EPS)
    return sim.mean(dim=2)
