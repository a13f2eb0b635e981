"""Region-word similarity of chosen pairs in plain PyTorch, all at once, with their contexts."""

import torch
from torch import Tensor

from sede_kernels.backends._chosen_pairs import shape_of
from sede_kernels.backends.torch.cross_attention_block import (
    Block,
    attend,
    attend_backward,
    valid_sets,
)
from sede_kernels.fragment_types import Attend, Fragments, Wanted
from sede_kernels.precision import full_precision
from sede_kernels.types import SideGradients, result_dtype


class _Pairs:
    """The sides as (B N, F, D), with the roles of the direction."""

    def __init__(self, fragments: Fragments, direction: str) -> None:
        regions, words, region_lengths, word_lengths = fragments
        dtype = result_dtype(regions)
        self.shape = shape_of(regions, words)
        sides = [
            valid_sets(
                sets.expand(-1, self.shape[1], -1, -1).flatten(0, 1).to(dtype),
                None if lengths is None else lengths.expand(-1, self.shape[1]).flatten(),
            )
            for sets, lengths in ((regions, region_lengths), (words, word_lengths))
        ]
        (self.source, self.source_valid), (self.query, self.query_valid) = (
            sides[::-1] if direction == "i2t" else sides
        )

    def attend(self, how: Attend) -> tuple[Tensor, Block]:
        """Similarities (B N, 1) and what the backward needs."""
        s = (self.source @ self.query.transpose(1, 2)).unsqueeze(2)
        query, valid = self.query.unsqueeze(1), self.query_valid.unsqueeze(1)
        return attend(s, self.source, self.source_valid, query, valid, how, contexts=True)


def cross_attention_pairs(sides: Fragments, how: Attend) -> Tensor:
    """See ``sede_kernels.ops.cross_attention_pairs``."""
    with full_precision(sides.regions.device.type):
        pairs = _Pairs(sides, how.direction)
        if pairs.source.numel() == 0 or pairs.query.numel() == 0:
            return pairs.source.new_zeros(pairs.shape)
        return pairs.attend(how)[0].view(pairs.shape)


def cross_attention_pairs_backward(
    grad: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention_pairs``."""
    with full_precision(sides.regions.device.type):
        pairs = _Pairs(sides, how.direction)
        source, query = pairs.source, pairs.query
        d_source, d_query = torch.zeros_like(source), torch.zeros_like(query)
        if source.numel() and query.numel():
            _, block = pairs.attend(how)
            present = pairs.source_valid.any(dim=1) & pairs.query_valid.any(dim=1)
            g = grad.to(source.dtype).flatten().masked_fill(~present, 0.0).unsqueeze(1)
            of = attend_backward(g, block, source, how)
            ds = of.ds.squeeze(2)
            d_source = ds @ query + of.source
            d_query = ds.transpose(1, 2) @ source + of.own.transpose(1, 2) * query
            if of.pull is not None:
                d_query = d_query + of.pull.squeeze(1)
        grads = (d_query, d_source) if how.direction == "i2t" else (d_source, d_query)
        both = zip((sides.regions, sides.words), grads, wanted, strict=True)
        d_regions, d_words = (
            _of_side(d, side, pairs.shape[1]) if asked else d.new_empty(0)
            for side, d, asked in both
        )
    return SideGradients(d_regions, d_words)


def _of_side(grad: Tensor, side: Tensor, pairs: int) -> Tensor:
    """(B N, F, D) as the side's shape; summed over N where all pairs share it."""
    grad = grad.view(side.shape[0], pairs, *side.shape[2:])
    return grad if pairs == side.shape[1] else grad.sum(dim=1, keepdim=True)
