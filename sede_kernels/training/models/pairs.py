"""Region-word similarity of chosen pairs: each query with its own few candidates.

The fused kernels score all pairs of two batches. A bank loss that looks at the hardest sets of each
query needs a handful of pairs a query, so few that plain batched products are the shorter way.
"""

import torch
from torch import Tensor

from sede_kernels.functional import attention_erase
from sede_kernels.modules import AttentionErase

EPSILON = 1e-8


def pair_similarity(
    regions: Tensor,
    words: Tensor,
    *,
    region_lengths: Tensor,
    word_lengths: Tensor,
    direction: str,
    smoothing: float,
    erase: AttentionErase | None = None,
) -> Tensor:
    """Mean cosine of :func:`sede_kernels.cross_attention_similarity` for N pairs a query.

    Args:
        regions: (B, N, R, D), or (B, 1, R, D) where an image is compared with N captions.
        words: (B, N, L, D), or (B, 1, L, D) where a caption is compared with N images.
        region_lengths: integers in [1, R], shaped as the first two axes of ``regions``.
        word_lengths: integers in [1, L], shaped as the first two axes of ``words``.
        direction: ``t2i`` (words attend to regions) or ``i2t``.
        smoothing: inverse temperature of the attention.
        erase: the rule acting on the attention of each query fragment over its sources, or None.

    Returns:
        (B, N) mean cosines between query fragments and what they attended to.

    Cost:
        2 BNRLD multiplications forward for the scores and as many for the contexts.
    """
    if direction == "t2i":
        queries, sources = words, regions
        query_lengths, source_lengths = word_lengths, region_lengths
    else:
        queries, sources = regions, words
        query_lengths, source_lengths = region_lengths, word_lengths
    query_padding = _padding(query_lengths, queries.shape[2])  # (B, N or 1, Q)
    source_padding = _padding(source_lengths, sources.shape[2])
    dots = _products(queries, sources)  # (B, N, Q, S)
    scores = torch.nn.functional.leaky_relu(dots, 0.1).masked_fill(query_padding[..., None], 0.0)
    scores = scores / (scores.norm(dim=2, keepdim=True) + EPSILON)
    scores = (smoothing * scores).masked_fill(source_padding[:, :, None], float("-inf"))
    attention = scores.softmax(3)
    if erase is not None:
        counts = source_lengths[:, :, None].expand(attention.shape[:3]).contiguous()
        attention, _ = erase(attention, lengths=counts)
    context = _contexts(attention, sources)
    lengths = queries.norm(dim=3).clamp_min(EPSILON) * context.norm(dim=3).clamp_min(EPSILON)
    cosines = (attention * dots).sum(3) / lengths
    return cosines.masked_fill(query_padding, 0.0).sum(2) / query_lengths


def _padding(lengths: Tensor, longest: int) -> Tensor:
    return torch.arange(longest, device=lengths.device) >= lengths[..., None]


def _products(queries: Tensor, sources: Tensor) -> Tensor:
    """(B, N, Q, S) dot products; the side that all N pairs share is not repeated."""
    batch, _, _, dim = queries.shape
    shared, others = (queries, sources) if queries.shape[1] == 1 else (sources, queries)
    pairs, size = others.shape[1:3]
    dots = others.reshape(batch, pairs * size, dim) @ shared[:, 0].transpose(1, 2)
    dots = dots.view(batch, pairs, size, -1)
    return dots if shared is sources else dots.transpose(2, 3)


def _contexts(attention: Tensor, sources: Tensor) -> Tensor:
    """(B, N, Q, D) sums of the sources by their attention."""
    batch, pairs, size, _ = attention.shape
    if sources.shape[1] == 1:
        out = attention.reshape(batch, pairs * size, -1) @ sources[:, 0]
        return out.view(batch, pairs, size, -1)
    flat = attention.reshape(batch * pairs, size, -1) @ sources.flatten(0, 1)
    return flat.view(batch, pairs, size, -1)
