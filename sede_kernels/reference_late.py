"""The specification of ``attention="max"``: late interaction in plain PyTorch, pair by pair."""

import torch
from torch import Tensor

from sede_kernels.precision import product
from sede_kernels.reference import aggregated, nothing


def _pair(
    region: Tensor, word: Tensor, direction: str, aggregate: str, aggregate_scale: float
) -> Tensor:
    """Of one image (R, D) and one caption (L, D); the first of equal sources gets the gradient."""
    queries, sources = (word, region) if direction == "t2i" else (region, word)
    if queries.shape[0] == 0 or sources.shape[0] == 0:
        return nothing(region, word)
    best = product(queries, sources.T).max(dim=1).values
    return aggregated(best, aggregate, aggregate_scale)


def late_interaction(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    aggregate: str,
    aggregate_scale: float,
) -> Tensor:
    """(B, C): each query fragment's largest dot product with a source, aggregated."""
    rows = []
    for b, image in enumerate(regions):
        v = image if region_lengths is None else image[: int(region_lengths[b])]
        row = []
        for c, caption in enumerate(words):
            e = caption if word_lengths is None else caption[: int(word_lengths[c])]
            row.append(_pair(v, e, direction, aggregate, aggregate_scale))
        rows.append(torch.stack(row) if row else nothing(regions, words).expand(0))
    return torch.stack(rows) if rows else nothing(regions, words).expand(0, words.shape[0])


def late_interaction_pairs(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    direction: str,
    aggregate: str,
    aggregate_scale: float,
) -> Tensor:
    """(B, N): the same of chosen pairs; sides are (B, N or 1, ...)."""
    pairs = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    whole = slice(None)
    rows = []
    for b in range(regions.shape[0]):
        row = []
        for n in range(pairs):
            r, w = min(n, regions.shape[1] - 1), min(n, words.shape[1] - 1)
            of_region = whole if region_lengths is None else slice(int(region_lengths[b, r]))
            of_word = whole if word_lengths is None else slice(int(word_lengths[b, w]))
            v, e = regions[b, r, of_region], words[b, w, of_word]
            row.append(_pair(v, e, direction, aggregate, aggregate_scale))
        rows.append(torch.stack(row) if row else nothing(regions, words).expand(0))
    return torch.stack(rows) if rows else nothing(regions, words).expand(0, pairs)
