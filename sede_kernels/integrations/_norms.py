"""SCAN's attention under the norms that the fused similarity does not have, in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.functional import attention_erase
from sede_kernels.functional.cross_attention import EraseSettings

#: Similarities that are held at a time (fp32: 64 MB).
ELEMENTS = 1 << 24
EPSILON = 1e-8

Norm = Callable[[Tensor, Tensor], Tensor]


def _leaky(scores: Tensor) -> Tensor:
    return F.leaky_relu(scores, 0.1)


def _l1(scores: Tensor) -> Tensor:
    return scores / (scores.abs().sum(dim=-1, keepdim=True) + EPSILON)


def _l2(scores: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(scores, dim=-1, keepdim=True)
    return scores / (length + EPSILON)


def _softmax(scores: Tensor, queries: Tensor) -> Tensor:
    return torch.softmax(scores.masked_fill(~queries, -torch.inf), dim=-1)


#: (scores (..., source, query) with 0 at padded queries, which queries there are) -> the same.
NORMS: dict[str, Norm] = {
    "softmax": _softmax,
    "l2norm": lambda scores, queries: _l2(scores),
    "l1norm": lambda scores, queries: _l1(scores),
    "clipped_l1norm": lambda scores, queries: _l1(_leaky(scores)),
    "clipped": lambda scores, queries: _leaky(scores),
    "no_norm": lambda scores, queries: scores,
}


def _aggregate(cosine: Tensor, queries: Tensor, how: str, scale: float) -> Tensor:
    """(B, C) from (B, C, query)."""
    if how == "lse":
        return torch.logsumexp((scale * cosine).masked_fill(~queries, -torch.inf), dim=2) / scale
    if how == "max":
        return cosine.masked_fill(~queries, -torch.inf).amax(dim=2)
    total = cosine.masked_fill(~queries, 0.0).sum(dim=2)
    return total / queries.sum(dim=2) if how == "mean" else total


def plain_similarity(
    regions: Tensor,
    words: Tensor,
    word_lengths: Tensor,
    *,
    norm: str,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase: str | EraseSettings | None,
) -> Tensor:
    """(B, C) similarities as ``cross_attention_similarity``, with another norm over the queries.

    Args:
        regions: (B, R, D).
        words: (C, L, D).
        word_lengths: (C,) >= 1.
        norm: a name of ``NORMS``, SCAN's ``raw_feature_norm``.
        direction: as in the function.
        smoothing: as in the function.
        aggregate: as in the function.
        aggregate_scale: as in the function.
        erase: as in the function.

    Cost:
        The attention of some captions at a time is held, with all of it for the backward pass.
    """
    held = max(1, regions.shape[0] * regions.shape[1] * words.shape[1])
    chunk = max(1, ELEMENTS // held)
    options: dict[str, Any] = {}
    if erase is not None and not isinstance(erase, str):
        options = {
            name: getattr(erase, name)
            for name in ("rule", "threshold", "erase", "keep_min", "renormalize")
        }
    elif erase is not None:
        options = {"rule": erase}
    parts = [
        _of_captions(
            regions, words[start : start + chunk], word_lengths[start : start + chunk],
            NORMS[norm], direction, smoothing, (aggregate, aggregate_scale), options,
        )
        for start in range(0, words.shape[0], chunk)
    ]  # fmt: skip
    return torch.cat(parts, dim=1) if parts else regions.new_zeros(regions.shape[0], 0)


def _of_captions(
    regions: Tensor,
    words: Tensor,
    lengths: Tensor,
    norm: Norm,
    direction: str,
    smoothing: float,
    aggregate: tuple[str, float],
    erase: dict[str, Any],
) -> Tensor:
    real = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)  # [C, L]
    words = words.masked_fill(~real.unsqueeze(2), 0.0)
    scores = torch.einsum("brd,cld->bcrl", regions, words)
    every = torch.ones((), dtype=torch.bool, device=words.device).expand(scores.shape)
    spoken = real[None, :, None, :].expand(scores.shape)  # [B, C, R, L]
    if direction == "t2i":
        sources, queries = every, spoken
    else:
        scores, sources, queries = scores.transpose(2, 3), spoken.transpose(2, 3), every
        queries = queries.transpose(2, 3)
    # From here on [B, C, source, query].
    weights = smoothing * norm(scores, queries).transpose(2, 3)
    weights = weights.masked_fill(~sources.transpose(2, 3), -torch.inf)
    attention = torch.softmax(weights, dim=3)  # [B, C, query, source]
    if erase:
        shape = attention.shape
        count = lengths.repeat(shape[0]) if direction == "i2t" else None
        if count is not None:
            count = count.repeat_interleave(shape[2])
        attention = attention_erase(attention.reshape(-1, shape[3]), lengths=count, **erase)[0]
        attention = attention.reshape(shape)
    side, text = ("bcqs,bsd->bcqd", regions) if direction == "t2i" else ("bcqs,csd->bcqd", words)
    context = torch.einsum(side, attention, text)
    query = words.unsqueeze(0) if direction == "t2i" else regions.unsqueeze(1)
    product = (query * context).sum(dim=3)
    size = torch.linalg.vector_norm(query, dim=3) * torch.linalg.vector_norm(context, dim=3)
    return _aggregate(product / size.clamp(min=EPSILON), queries[:, :, 0], *aggregate)
