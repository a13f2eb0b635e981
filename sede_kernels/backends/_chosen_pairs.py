"""Pairs of all pairs that are computed as chosen ones: those whose contexts must be formed."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sede_kernels.fragment_types import Attend, Fragments, Wanted
from sede_kernels.types import SideGradients

_FEW_DIMENSIONS = 3  # vectors of so few elements lie close together or cancel
_CHUNK_ELEMENTS = 1 << 22  # of the gathered sets: 16 MB in fp32


def shape_of(regions: Tensor, words: Tensor) -> tuple[int, int]:
    """(B, N) of chosen pairs: of two sides one has N sets a row, the other N or 1."""
    candidates = words.shape[1] if regions.shape[1] == 1 else regions.shape[1]
    return regions.shape[0], candidates


def all_chosen(sets: Tensor) -> bool:
    """Whether every context of these sets is formed, without a look at their values."""
    return sets.shape[-1] <= _FEW_DIMENSIONS


def all_of(regions: Tensor, words: Tensor) -> Tensor:
    """(n, 2): every image beside every caption."""
    every = regions.new_ones((regions.shape[0], words.shape[0]), dtype=torch.bool)
    return every.nonzero()


def _chunks(pairs: Tensor, regions: Tensor, words: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, captions) of as many pairs as may be gathered at once."""
    size = (regions.shape[1] + words.shape[1]) * regions.shape[2]
    step = max(1, _CHUNK_ELEMENTS // max(size, 1))
    for first in range(0, pairs.shape[0], step):
        yield pairs[first : first + step, 0], pairs[first : first + step, 1]


def _gathered(images: Tensor, captions: Tensor, sides: Fragments) -> Fragments:
    regions, words, region_lengths, word_lengths = sides
    return Fragments(
        regions[images].unsqueeze(1),
        words[captions].unsqueeze(1),
        None if region_lengths is None else region_lengths[images].unsqueeze(1),
        None if word_lengths is None else word_lengths[captions].unsqueeze(1),
    )


def write_similarities(
    run: Callable[[Fragments, Attend], Tensor],
    pairs: Tensor,
    sides: Fragments,
    how: Attend,
    out: Tensor,
) -> None:
    """Put the similarities of some pairs (n, 2) in their places of ``out`` (B, C).

    Args:
        run: ``cross_attention_pairs`` of the backend.
        pairs: images and captions, each pair once.
        sides: all regions and words with their lengths.
        how: what ``run`` is told.
        out: written to.
    """
    for images, captions in _chunks(pairs, sides.regions, sides.words):
        out[images, captions] = run(_gathered(images, captions, sides), how)[:, 0]


def add_gradients(
    run: Callable[[Tensor, Fragments, Attend, Wanted], SideGradients],
    pairs: Tensor,
    grad: Tensor,
    sides: Fragments,
    how: Attend,
    grads: SideGradients,
) -> None:
    """Add what some pairs (n, 2) give the gradients of both sides, of which one may be empty.

    Args:
        run: ``cross_attention_pairs_backward`` of the backend.
        pairs: images and captions, each pair once.
        grad: (B, C).
        sides: all regions and words with their lengths.
        how: what ``run`` is told.
        grads: added to where not empty.
    """
    wanted = Wanted(*(total.numel() > 0 for total in grads))
    for images, captions in _chunks(pairs, sides.regions, sides.words):
        own = grad[images, captions].unsqueeze(1)
        found = run(own, _gathered(images, captions, sides), how, wanted)
        for total, index, part in zip(grads, (images, captions), found, strict=True):
            if total.numel():
                total.index_add_(0, index, part[:, 0])
