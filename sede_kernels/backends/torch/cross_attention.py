"""Region-word similarity in blocks of source and query sets; i2t swaps regions and words.

On a CPU a block takes the Gram form, and pairs in which that loses digits are computed again as
chosen pairs. Elsewhere nobody may wait for which pairs those are, and every context is formed.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends import _chosen_pairs
from sede_kernels.backends.torch.cross_attention_block import (
    Block,
    attend,
    attend_backward,
    valid_sets,
)
from sede_kernels.backends.torch.cross_attention_pairs import (
    cross_attention_pairs,
    cross_attention_pairs_backward,
)
from sede_kernels.fragment_types import Attend, Attended, Fragments, Wanted
from sede_kernels.precision import full_precision
from sede_kernels.types import SideGradients, result_dtype

# Elements of one block of S: about ten tensors of this size are alive in the backward.
_BLOCK_ELEMENTS = 1 << 21


class _Sides(NamedTuple):
    """Source sets (P, R, D) and query sets (Q, L, D) with zeroed padding, and what is valid."""

    source: Tensor
    source_valid: Tensor
    query: Tensor
    query_valid: Tensor
    contexts: bool  # form them all

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Blocks of sets: as many pairs as may exist at once."""
        (P, R, D), (Q, L, _) = self.source.shape, self.query.shape
        area = L * (max(R, D) if self.contexts else R)
        pairs = max(1, _BLOCK_ELEMENTS // max(area, 1))
        step_p = min(max(P, 1), max(1, int(pairs**0.5)))
        step_q = max(1, pairs // step_p)
        if R and L:
            for p in range(0, P, step_p):
                for q in range(0, Q, step_q):
                    yield slice(p, p + step_p), slice(q, q + step_q)

    def attend(self, p: slice, q: slice, how: Attend) -> tuple[Tensor, Block]:
        """Similarities of some sets, and the block for the backward."""
        source, query = self.source[p], self.query[q]
        s = (source.flatten(0, 1) @ query.flatten(0, 1).T).view(*source.shape[:2], *query.shape[:2])
        return attend(
            s,
            source,
            self.source_valid[p],
            query.unsqueeze(0),
            self.query_valid[q].unsqueeze(0),
            how,
            contexts=self.contexts,
        )

    def backward(self, grad: Tensor, p: slice, q: slice, how: Attend) -> tuple[Tensor, ...]:
        """(d_source, d_query) of a block from its gradients, and which pairs are not in them."""
        source, query = self.source[p], self.query[q]
        _, block = self.attend(p, q, how)
        valid = self.source_valid[p].any(dim=1).unsqueeze(1) & self.query_valid[q].any(dim=1)
        g = grad.masked_fill(~valid | block.lost, 0.0)
        of = attend_backward(g, block, source, how)
        flat = of.ds.flatten(2).flatten(0, 1)
        d_source = (flat @ query.flatten(0, 1)).view_as(source) + of.source
        d_query = (flat.T @ source.flatten(0, 1)).view_as(query)
        d_query = d_query + of.own.sum(dim=0).unsqueeze(2) * query
        if of.pull is not None:
            d_query = d_query + of.pull.sum(dim=0)
        return d_source, d_query, block.lost

    def lost(self, marks: list[tuple[slice, slice, Tensor]], swap: bool) -> Tensor:
        """(n, 2) images and captions of the blocks' marks; where contexts are formed, none."""
        found = [self.source.new_empty((0, 2), dtype=torch.int64)]
        for p, q, mark in [] if self.contexts else marks:
            sources, queries = mark.nonzero(as_tuple=True)
            both = sources + p.start, queries + q.start
            found.append(torch.stack(both[::-1] if swap else both, dim=1))
        return torch.cat(found)


def _sides(fragments: Fragments, swap: bool) -> _Sides:
    regions, words, region_lengths, word_lengths = fragments
    dtype = result_dtype(regions)
    v = valid_sets(regions.to(dtype), region_lengths)
    e = valid_sets(words.to(dtype), word_lengths)
    contexts = regions.device.type != "cpu" or _chosen_pairs.all_chosen(regions)
    return _Sides(*(e if swap else v), *(v if swap else e), contexts)


def cross_attention_kept(regions: Tensor, words: Tensor) -> int:
    """Elements of S that the forward keeps: none, the backward computes S again."""
    return 0


def cross_attention(sides: Fragments, how: Attend, keep: bool) -> Attended:
    """See ``sede_kernels.ops.cross_attention``. S lives in memory one block at a time."""
    swap = how.direction == "i2t"
    with full_precision(sides.regions.device.type):
        roles = _sides(sides, swap)
        out = roles.source.new_zeros((roles.source.shape[0], roles.query.shape[0]))
        marks = []
        for p, q in roles.tiles():
            out[p, q], block = roles.attend(p, q, how)
            marks.append((p, q, block.lost))
        out = out.T.contiguous() if swap else out
        pairs = roles.lost(marks, swap)
        _chosen_pairs.write_similarities(cross_attention_pairs, pairs, sides, how, out)
    return Attended(out, out.new_empty(0))


def cross_attention_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention``."""
    swap = how.direction == "i2t"
    with full_precision(sides.regions.device.type):
        roles = _sides(sides, swap)
        g = grad.to(roles.source.dtype)
        by_source = g.T if swap else g
        d_source, d_query = torch.zeros_like(roles.source), torch.zeros_like(roles.query)
        marks = []
        for p, q in roles.tiles():
            d_p, d_q, mark = roles.backward(by_source[p, q], p, q, how)
            d_source[p] += d_p
            d_query[q] += d_q
            marks.append((p, q, mark))
        both = (d_query, d_source) if swap else (d_source, d_query)
        d_regions, d_words = (
            d if asked else d.new_empty(0) for d, asked in zip(both, wanted, strict=True)
        )
        grads, pairs = SideGradients(d_regions, d_words), roles.lost(marks, swap)
        _chosen_pairs.add_gradients(cross_attention_pairs_backward, pairs, g, sides, how, grads)
    return grads
