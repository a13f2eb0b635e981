"""Region-word similarity of chosen pairs, a launch forward and one to three back.

Roles as in ``cross_attention``: t2i: sources are regions, queries words; i2t the other way. See
``docs/backends.md``.
"""

import torch
from torch import Tensor

from sede_kernels.backends._chosen_pairs import shape_of
from sede_kernels.backends.triton._host import on_device
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.cross_attention import (
    how_constants,
    how_numbers,
)
from sede_kernels.backends.triton.pair_launches import (
    Pairs,
    PairSide,
    add_gradients,
    write_similarities,
)
from sede_kernels.fragment_types import Attend, Fragments, Wanted
from sede_kernels.types import SideGradients


def _side(sets: Tensor, lengths: Tensor | None, pairs: int) -> PairSide:
    """One side (B, N or 1, F, D) of B x ``pairs``."""
    shared = sets.shape[1] == 1
    dense = None if lengths is None else lengths.to(torch.int64).flatten().contiguous()
    row, step = (1, 0) if shared else (pairs, 1)
    return PairSide(sets.contiguous().flatten(0, 1), dense, row, step)


def _call(sides: Fragments, how: Attend) -> Pairs:
    rows, pairs = shape_of(sides.regions, sides.words)
    query = _side(sides.words, sides.word_lengths, pairs)
    source = _side(sides.regions, sides.region_lengths, pairs)
    if how.direction == "i2t":
        query, source = source, query
    numbers = how_numbers(how, source.sets.shape[1])
    return Pairs(
        Problem.of_sets(sides.regions),
        query,
        source,
        rows,
        pairs,
        None,
        numbers,
        how_constants(how),
    )


def cross_attention_pairs(sides: Fragments, how: Attend) -> Tensor:
    """See ``sede_kernels.ops.cross_attention_pairs``. Memory: the result."""
    regions, words = sides.regions, sides.words
    shape = shape_of(regions, words)
    if regions.numel() == 0 or words.numel() == 0:
        return regions.new_zeros(shape, dtype=torch.float32)
    out = regions.new_empty(shape, dtype=torch.float32)
    with on_device(regions):
        write_similarities(_call(sides, how), out)
    return out


def cross_attention_pairs_backward(
    grad: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention_pairs``. Memory: S and a of every pair in fp32.

    A side that pairs share gets their sum in one program, in order.
    """
    empty = grad.new_empty(0, dtype=torch.float32)
    d_regions, d_words = (
        empty.new_zeros(side.shape) if asked else empty
        for side, asked in zip((sides.regions, sides.words), wanted, strict=True)
    )
    if sides.regions.numel() and sides.words.numel():
        with on_device(grad):
            roles = (d_regions, d_words) if how.direction == "i2t" else (d_words, d_regions)
            add_gradients(_call(sides, how), grad.to(torch.float32), *roles)
    return SideGradients(d_regions, d_words)
