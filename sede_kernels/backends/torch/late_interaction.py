"""Late interaction in plain PyTorch: all pairs in blocks of sets, chosen pairs all at once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends._chosen_pairs import shape_of
from sede_kernels.backends.torch.cross_attention_block import (
    aggregated,
    aggregated_backward,
    valid_sets,
)
from sede_kernels.fragment_types import Attended, Fragments, LateInteraction, Wanted
from sede_kernels.precision import full_precision
from sede_kernels.types import SideGradients, result_dtype

_BLOCK_ELEMENTS = 1 << 21  # of S


class _Sets(NamedTuple):
    """Sets with zeroed padding, and which fragments are valid."""

    rows: Tensor  # (..., F, D)
    valid: Tensor  # (..., F)


class _Best(NamedTuple):
    """The nearest source of each query fragment."""

    score: Tensor  # (P, Q, L), 0 where there is no source
    source: Tensor  # (P, Q, L), the first of equal ones
    query_valid: Tensor  # (P or 1, Q, L)
    present: Tensor  # (P, Q): pairs of which neither side is empty

    @classmethod
    def of(cls, s: Tensor, source_valid: Tensor, query_valid: Tensor) -> "_Best":
        """From S (P, R, Q, L) with (P, R) and (P or 1, Q, L) valid fragments."""
        P, R = source_valid.shape
        some = source_valid.any(dim=1)
        found = s.masked_fill(~source_valid.view(P, R, 1, 1), -torch.inf).max(dim=1)
        score = found.values.masked_fill(~some.view(P, 1, 1), 0.0)
        present = some.unsqueeze(1) & query_valid.any(dim=2)
        return cls(score, found.indices, query_valid, present)

    def similarity(self, how: LateInteraction) -> Tensor:
        """(P, Q)."""
        return aggregated(self.score, self.query_valid, how).masked_fill(~self.present, 0.0)

    def backward(self, grad: Tensor, s: Tensor, how: LateInteraction) -> Tensor:
        """Of the gradient (P, Q), that of S (P, R, Q, L)."""
        g = grad.masked_fill(~self.present, 0.0)
        share = aggregated_backward(g, self.score, self.query_valid, how)
        return torch.zeros_like(s).scatter_(1, self.source.unsqueeze(1), share.unsqueeze(1))


def _sides(sides: Fragments, direction: str) -> tuple[_Sets, _Sets]:
    """Sources (P, R, D) and queries (Q, L, D)."""
    regions, words, region_lengths, word_lengths = sides
    dtype = result_dtype(regions)
    v = _Sets(*valid_sets(regions.to(dtype), region_lengths))
    e = _Sets(*valid_sets(words.to(dtype), word_lengths))
    return (e, v) if direction == "i2t" else (v, e)


def _tiles(source: _Sets, query: _Sets) -> Iterator[tuple[slice, slice]]:
    """Blocks of sets whose S may exist at once."""
    (P, R), (Q, L) = source.valid.shape, query.valid.shape
    pairs = max(1, _BLOCK_ELEMENTS // max(R * L, 1))
    step_p = min(max(P, 1), max(1, int(pairs**0.5)))
    step_q = max(1, pairs // step_p)
    if R and L:
        for p in range(0, P, step_p):
            for q in range(0, Q, step_q):
                yield slice(p, p + step_p), slice(q, q + step_q)


def _block(source: _Sets, query: _Sets, p: slice, q: slice) -> tuple[Tensor, _Best]:
    """S (P, R, Q, L) of a block, and what is best in it."""
    v, e = source.rows[p], query.rows[q]
    s = (v.flatten(0, 1) @ e.flatten(0, 1).T).view(*v.shape[:2], *e.shape[:2])
    return s, _Best.of(s, source.valid[p], query.valid[q].unsqueeze(0))


def late_interaction_kept(regions: Tensor, words: Tensor, direction: str) -> int:
    """Elements that the forward keeps: none, the backward computes S again."""
    return 0


def late_interaction(sides: Fragments, how: LateInteraction, keep: bool) -> Attended:
    """See ``sede_kernels.ops.late_interaction``. S lives in memory one block at a time."""
    with full_precision(sides.regions.device.type):
        source, query = _sides(sides, how.direction)
        out = source.rows.new_zeros((source.rows.shape[0], query.rows.shape[0]))
        for p, q in _tiles(source, query):
            out[p, q] = _block(source, query, p, q)[1].similarity(how)
        out = out.T.contiguous() if how.direction == "i2t" else out
        return Attended(out, out.new_empty(0))


def late_interaction_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.late_interaction``."""
    swap = how.direction == "i2t"
    with full_precision(sides.regions.device.type):
        source, query = _sides(sides, how.direction)
        g = grad.to(source.rows.dtype)
        by_source = g.T if swap else g
        d_source, d_query = torch.zeros_like(source.rows), torch.zeros_like(query.rows)
        for p, q in _tiles(source, query):
            s, best = _block(source, query, p, q)
            ds = best.backward(by_source[p, q], s, how).flatten(2).flatten(0, 1)
            v, e = source.rows[p], query.rows[q]
            d_source[p] += (ds @ e.flatten(0, 1)).view_as(v)
            d_query[q] += (ds.T @ v.flatten(0, 1)).view_as(e)
        both = (d_query, d_source) if swap else (d_source, d_query)
        return SideGradients(
            *(d if asked else d.new_empty(0) for d, asked in zip(both, wanted, strict=True))
        )


class _Pairs:
    """Chosen pairs, the sides as (B N, F, D) with the roles of the direction."""

    def __init__(self, sides: Fragments, direction: str) -> None:
        self.shape = shape_of(sides.regions, sides.words)
        flat: list[Tensor | None] = [
            None if side is None else self._every(side).flatten(0, 1) for side in sides
        ]
        regions, words, *lengths = flat
        assert regions is not None
        assert words is not None
        self.source, self.query = _sides(Fragments(regions, words, *lengths), direction)

    def _every(self, side: Tensor) -> Tensor:
        return side.expand(-1, self.shape[1], *side.shape[2:])

    @property
    def nothing(self) -> bool:
        """Whether there are no pairs, or only empty ones."""
        return not (self.source.valid.numel() and self.query.valid.numel())

    def best(self) -> tuple[Tensor, _Best]:
        """S (B N, R, 1, L), and what is best in it."""
        s = (self.source.rows @ self.query.rows.transpose(1, 2)).unsqueeze(2)
        return s, _Best.of(s, self.source.valid, self.query.valid.unsqueeze(1))

    def of_side(self, grad: Tensor, side: Tensor) -> Tensor:
        """(B N, F, D) in the side's shape; summed over N where all pairs share it."""
        grad = grad.view(*self.shape, *side.shape[2:])
        return grad if side.shape[1] == self.shape[1] else grad.sum(dim=1, keepdim=True)


def late_interaction_pairs(sides: Fragments, how: LateInteraction, keep: bool) -> Attended:
    """See ``sede_kernels.ops.late_interaction``."""
    with full_precision(sides.regions.device.type):
        pairs = _Pairs(sides, how.direction)
        out = pairs.source.rows.new_zeros(pairs.shape)
        if not pairs.nothing:
            out = pairs.best()[1].similarity(how).view(pairs.shape)
        return Attended(out, out.new_empty(0))


def late_interaction_pairs_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.late_interaction``."""
    with full_precision(sides.regions.device.type):
        pairs = _Pairs(sides, how.direction)
        source, query = pairs.source.rows, pairs.query.rows
        d_source, d_query = torch.zeros_like(source), torch.zeros_like(query)
        if not pairs.nothing:
            s, best = pairs.best()
            ds = best.backward(grad.to(source.dtype).view(-1, 1), s, how).squeeze(2)
            d_source, d_query = ds @ query, ds.transpose(1, 2) @ source
        both = (d_query, d_source) if how.direction == "i2t" else (d_source, d_query)
        each = zip((sides.regions, sides.words), both, wanted, strict=True)
        return SideGradients(
            *(pairs.of_side(d, side) if asked else d.new_empty(0) for side, d, asked in each)
        )
