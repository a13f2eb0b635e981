"""Late interaction: the products in blocks, the largest of each column and the gradients natively.

A block of S is looked through and thrown away; what stays is the score of each query fragment and
its nearest source, (sets, query fragments) of both. They are kept for the backward where they are
small, and computed again where not. The gradients add up rows that were nearest: no product. Few
fragments take one native call instead, see ``late_interaction_call.py``.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends._chosen_pairs import shape_of
from sede_kernels.backends.cpu import _native, late_interaction_call
from sede_kernels.backends.cpu.late_interaction_call import late_interaction_kept
from sede_kernels.backends.torch.cross_attention_block import aggregated, aggregated_backward
from sede_kernels.fragment_types import Attended, Fragments, LateInteraction, Wanted
from sede_kernels.precision import full_precision
from sede_kernels.types import SideGradients

_BLOCK_ELEMENTS = 1 << 19  # of S: 2 MB, within a cache
_COLUMNS = 1024  # of a block, at most
_SCORE_ELEMENTS = 1 << 20  # that are in memory at once, where they are not kept
_PACKED_WORK = 1 << 24  # multiply-adds from which on sets are packed to their lengths
_WIDTH = 16  # the kernels take rows of whole vectors


class _Side(NamedTuple):
    """Fragments of sets one after another."""

    values: Tensor  # (n, D) fp32, D a multiple of 16
    begin: Tensor  # (sets,) int64: the first of each set
    sizes: Tensor  # (sets,) int64: fragments of each
    place: Tensor | None  # (n,) int64: where each lies among (sets, F); None: there

    @classmethod
    def of(cls, sets: Tensor, lengths: Tensor | None, *, pack: bool) -> "_Side":
        """Of (sets, F, D); ``pack`` leaves out what lies beyond the lengths."""
        number, most, dim = sets.shape
        if lengths is None:
            count = torch.full((number,), most, dtype=torch.int64, device="cpu")
        else:
            count = _native.counts("late_interaction", lengths, (number,), most)
        place = None
        rows = sets.reshape(number * most, dim)
        begin = torch.arange(number, device="cpu") * most
        if pack and lengths is not None:
            valid = torch.arange(most, device="cpu") < count.unsqueeze(1)
            place = valid.flatten().nonzero().squeeze(1)
            rows, begin = rows.index_select(0, place), count.cumsum(0) - count
        values = rows.to(torch.float32)
        missing = -dim % _WIDTH
        values = F.pad(values, (0, missing)) if missing else values.contiguous()
        return cls(values, begin, count, place)

    def spread(self, packed: Tensor, most: int) -> Tensor:
        """(P, n) of some values of each fragment as (P, sets, F), 0 where there is none."""
        shape = (packed.shape[0], self.sizes.shape[0], most)
        if self.place is None:
            return packed.view(shape)
        found = _native.zeros(shape[0], shape[1] * shape[2])
        return found.index_copy_(1, self.place, packed).view(shape)

    def gathered(self, spread: Tensor) -> Tensor:
        """The inverse of ``spread``."""
        flat = spread.flatten(1)
        return (flat if self.place is None else flat.index_select(1, self.place)).contiguous()


class _Kept:
    """Scores (P, n) and sources (P, n) of all sets, in one tensor of the op's results."""

    def __init__(self, kept: Tensor, sets: int, columns: int) -> None:
        half, used = kept.numel() // 2, sets * columns
        self.filled = half > 0
        self.score = kept[:used].view(sets, columns) if half else kept
        bits = kept.view(torch.int32)
        self.source = bits[half : half + used].view(sets, columns) if half else bits
        self._rest = kept[used:half], kept[half + used :]

    def clear(self) -> None:
        """Zero what short sets leave: results are never memory as it was found."""
        for rest in self._rest:
            rest.zero_()


class _Problem:
    """All pairs of source sets with query fragments."""

    def __init__(self, sides: Fragments, how: LateInteraction, kept: Tensor) -> None:
        regions, words, region_lengths, word_lengths = sides
        self.how, self.swap = how, how.direction == "i2t"
        both = (regions, region_lengths), (words, word_lengths)
        (sources, counts), (queries, lengths) = both[::-1] if self.swap else both
        self.sets, self.source_most = sources.shape[:2]
        self.query_most, self.dim = queries.shape[1:]
        # Packing costs some ten calls, which small products do not win back.
        work = self.sets * self.source_most * queries.shape[0] * self.query_most * self.dim
        self.source = _Side.of(sources, counts, pack=work >= _PACKED_WORK)
        self.query = _Side.of(queries, lengths, pack=work >= _PACKED_WORK)
        self.valid = (
            torch.arange(self.query_most, device="cpu") < self.query.sizes[:, None]
        ).unsqueeze(0)
        self.columns = self.query.values.shape[0]
        self.kept = _Kept(kept, self.sets, self.columns)

    def parts(self, *, ready: bool) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """(first set, end, scores, sources) of some sets; ``ready``: those kept hold them."""
        if not (self.sets and self.columns):
            return
        most = self.sets if self.kept.filled else max(1, _SCORE_ELEMENTS // self.columns)
        for first in range(0, self.sets, most):
            end = min(first + most, self.sets)
            if self.kept.filled:
                score, source = self.kept.score, self.kept.source
            else:
                score = _native.empty(end - first, self.columns)
                source = _native.empty(end - first, self.columns, dtype=torch.int32)
            if not (ready and self.kept.filled):
                self._nearest(first, end, score, source)
            yield first, end, score, source

    def _nearest(self, first: int, end: int, score: Tensor, source: Tensor) -> None:
        """Fill the scores and sources of some sets."""
        begins, counts = self.source.begin, self.source.sizes
        ends = (begins + counts).tolist()
        starts = begins.tolist()
        longest = max(int(counts[first:end].max()), 1)
        width = min(self.columns, max(_WIDTH, min(_COLUMNS, _BLOCK_ELEMENTS // longest)))
        limit = max(longest, _BLOCK_ELEMENTS // width)
        scratch = _native.empty(limit * width)
        a = first
        while a < end:
            b = a + 1
            while b < end and ends[b] - starts[a] <= limit:
                b += 1
            rows = self.source.values[starts[a] : ends[b - 1]]
            begin = begins[a:b] - starts[a]
            for left in range(0, self.columns, width):
                right = min(left + width, self.columns)
                s = scratch[: rows.shape[0] * (right - left)].view(rows.shape[0], right - left)
                torch.mm(rows, self.query.values[left:right].T, out=s)
                of_block = score[a - first :, left:], source[a - first :, left:]
                nearest(s, begin, counts[a:b], *of_block, self.columns)
            a = b

    def present(self, first: int, end: int) -> Tensor:
        """(sets, queries): pairs of which neither side is empty."""
        return (self.source.sizes[first:end, None] > 0) & (self.query.sizes > 0)


def nearest(
    s: Tensor, begin: Tensor, count: Tensor, score: Tensor, source: Tensor, stride: int
) -> None:
    """The native call on one S (rows, columns); the results' rows lie ``stride`` apart."""
    _native.module().nearest(
        (
            s.data_ptr(),
            begin.shape[0],
            s.shape[1],
            begin.data_ptr(),
            count.data_ptr(),
            score.data_ptr(),
            source.data_ptr(),
            stride,
        )
    )


#: Whether the arguments fit as they came; what the caller of ``ops`` asks first.
late_interaction_fits = late_interaction_call.fits
late_interaction_at_once = late_interaction_call.forward


def late_interaction(sides: Fragments, how: LateInteraction, keep: bool) -> Attended:
    """See ``sede_kernels.ops.late_interaction``."""
    if late_interaction_call.is_small(sides, how.direction):
        return late_interaction_call.forward(sides, how, keep)
    with full_precision("cpu"):
        size = late_interaction_kept(sides.regions, sides.words, how.direction) if keep else 0
        kept = _native.empty(size)
        problem = _Problem(sides, how, kept)
        problem.kept.clear()
        out = _native.zeros(problem.sets, problem.query.sizes.shape[0])
        for first, end, score, _ in problem.parts(ready=False):
            spread = problem.query.spread(score, problem.query_most)
            found = aggregated(spread, problem.valid, how)
            out[first:end] = found.masked_fill(~problem.present(first, end), 0.0)
        return Attended(out.T.contiguous() if problem.swap else out, kept)


def late_interaction_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.late_interaction``."""
    if kept.numel() and late_interaction_call.is_small(sides, how.direction):
        return late_interaction_call.backward(grad, kept, sides, how, wanted)
    with full_precision("cpu"):
        problem = _Problem(sides, how, kept)
        by_source = grad.to(torch.float32)
        by_source = by_source.T if problem.swap else by_source
        asked = wanted[::-1] if problem.swap else wanted
        d_source, d_query = (
            _native.zeros(*side.values.shape) if wants else None
            for side, wants in zip((problem.source, problem.query), asked, strict=True)
        )
        for first, end, score, source in problem.parts(ready=True):
            g = by_source[first:end].masked_fill(~problem.present(first, end), 0.0)
            spread = problem.query.spread(score, problem.query_most)
            share = problem.query.gathered(aggregated_backward(g, spread, problem.valid, how))
            _backward(
                (1, end - first, problem.columns),
                problem.source._replace(
                    begin=problem.source.begin[first:end], sizes=problem.source.sizes[first:end]
                ),
                problem.query.values,
                (share, source),
                (d_source, d_query),
            )
        shapes = (problem.sets, problem.source_most), (len(problem.query.sizes), problem.query_most)
        found = [
            _native.empty(0) if d is None else _in_sets(side, d, shape, problem.dim)
            for side, d, shape in zip(
                (problem.source, problem.query), (d_source, d_query), shapes, strict=True
            )
        ]
    return SideGradients(*(found[::-1] if problem.swap else found))


def _in_sets(side: _Side, rows: Tensor, shape: tuple[int, int], dim: int) -> Tensor:
    """Gradients (n, D) of the fragments as (sets, F, D)."""
    rows = rows[:, :dim]
    if side.place is not None:
        rows = _native.zeros(shape[0] * shape[1], dim).index_copy_(0, side.place, rows)
    return rows.reshape(*shape, dim)


def _backward(
    sizes: tuple[int, int, int],
    source: _Side,
    queries: Tensor,
    shares: tuple[Tensor, Tensor],
    gradients: tuple[Tensor | None, Tensor | None],
) -> None:
    """Add to the gradients of rows and queries (0: not wanted); sizes: groups, sets, columns."""
    call = (
        *sizes,
        queries.shape[1],
        source.begin.data_ptr(),
        source.sizes.data_ptr(),
        source.values.data_ptr(),
        queries.data_ptr(),
        *(tensor.data_ptr() for tensor in shares),
    )
    addresses = [0 if d is None else d.data_ptr() for d in gradients]
    _native.module().nearest_backward(call, *addresses)


class _Pairs:
    """Chosen pairs as groups of source sets that meet the same query fragments."""

    def __init__(self, sides: Fragments, how: LateInteraction, kept: Tensor) -> None:
        regions, words, region_lengths, word_lengths = sides
        self.shape = shape_of(regions, words)
        self.swap = how.direction == "i2t"
        both = (regions, region_lengths), (words, word_lengths)
        (sources, counts), (queries, lengths) = both[::-1] if self.swap else both
        B, N = self.shape
        self.query_most, self.dim = queries.shape[2:]
        self.source_most = sources.shape[2]
        alone = sources.shape[1] > 1 and queries.shape[1] > 1  # each pair has both sides to itself
        self.groups = B * N if alone else B
        self.per_group = 1 if alone else sources.shape[1]
        self.columns = self.query_most * (1 if alone else queries.shape[1])
        self.source = _flat(sources, counts)
        self.query = _flat(queries, lengths)
        some = (self.source.sizes > 0).view(sources.shape[:2]).expand(B, N).reshape(B * N, 1)
        of_query = self.query.sizes.view(queries.shape[:2]).expand(B, N).reshape(B * N, 1, 1)
        self.valid = torch.arange(self.query_most, device="cpu") < of_query
        self.present = some & (of_query.squeeze(2) > 0)
        self.kept = _Kept(kept, self.groups * self.per_group, self.columns)

    @property
    def nothing(self) -> bool:
        """Whether there are no pairs, or only empty ones."""
        return not (self.present.numel() and self.source_most and self.query_most)

    def best(self, *, ready: bool) -> tuple[Tensor, Tensor]:
        """Scores and sources (groups * sets, columns)."""
        if self.kept.filled and ready:
            return self.kept.score, self.kept.source
        score, source = self.kept.score, self.kept.source
        if not self.kept.filled:
            shape = self.groups * self.per_group, self.columns
            score, source = _native.empty(*shape), _native.empty(*shape, dtype=torch.int32)
        T, R, dim = self.per_group, self.source_most, self.source.values.shape[1]
        rows = self.source.values.view(self.groups, T * R, dim)
        queries = self.query.values.view(self.groups, self.columns, dim).transpose(1, 2)
        sets = max(1, min(T, _BLOCK_ELEMENTS // (R * self.columns)))
        groups = max(1, _BLOCK_ELEMENTS // (T * R * self.columns)) if sets == T else 1
        for g in range(0, self.groups, groups):
            for t in range(0, T, sets):
                some = rows[g : g + groups, t * R : (t + sets) * R]
                s = torch.bmm(some, queries[g : g + groups]).flatten(0, 1)
                first = g * T + t
                count = self.source.sizes[first : first + s.shape[0] // R]
                begin = torch.arange(len(count), device="cpu") * R
                nearest(s, begin, count, score[first:], source[first:], self.columns)
        return score, source


def _flat(sets: Tensor, lengths: Tensor | None) -> _Side:
    return _Side.of(sets.flatten(0, 1), None if lengths is None else lengths.flatten(), pack=False)


def late_interaction_pairs(sides: Fragments, how: LateInteraction, keep: bool) -> Attended:
    """See ``sede_kernels.ops.late_interaction``."""
    if late_interaction_call.is_small(sides, how.direction):
        return late_interaction_call.forward(sides, how, keep)
    with full_precision("cpu"):
        size = late_interaction_kept(sides.regions, sides.words, how.direction) if keep else 0
        kept = _native.empty(size)
        pairs = _Pairs(sides, how, kept)
        pairs.kept.clear()
        out = _native.zeros(*pairs.shape)
        if pairs.nothing:
            kept.zero_()
        else:
            score = pairs.best(ready=False)[0].view(-1, 1, pairs.query_most)
            found = aggregated(score, pairs.valid, how).masked_fill(~pairs.present, 0.0)
            out = found.view(pairs.shape)
        return Attended(out, kept)


def late_interaction_pairs_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: LateInteraction, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.late_interaction``."""
    if kept.numel() and late_interaction_call.is_small(sides, how.direction):
        return late_interaction_call.backward(grad, kept, sides, how, wanted)
    with full_precision("cpu"):
        pairs = _Pairs(sides, how, kept)
        asked = wanted[::-1] if pairs.swap else wanted
        rows = [
            _native.zeros(*side.values.shape) if wants else None
            for side, wants in zip((pairs.source, pairs.query), asked, strict=True)
        ]
        if not pairs.nothing:
            score, source = pairs.best(ready=True)
            g = grad.to(torch.float32).reshape(-1, 1).masked_fill(~pairs.present, 0.0)
            score = score.view(-1, 1, pairs.query_most)
            share = aggregated_backward(g, score, pairs.valid, how).contiguous()
            sizes = pairs.groups, pairs.per_group, pairs.columns
            _backward(sizes, pairs.source, pairs.query.values, (share, source), (rows[0], rows[1]))
        rows = rows[::-1] if pairs.swap else rows
        shapes = sides.regions.shape, sides.words.shape
        return SideGradients(
            *(
                _native.empty(0) if d is None else d[:, : pairs.dim].reshape(shape)
                for d, shape in zip(rows, shapes, strict=True)
            )
        )
