"""Region-word similarity: large products in blocks, everything between them in native code.

One side's sets ("lanes") are interleaved in groups so that S = rows lanes^T comes out as
S[row][fragment][lane] and the epilogue of csrc/kernels/cross_attention.cpp never crosses vector
lanes. The other side's sets ("rows") are packed one after another without padding. An S of at most
``_KEPT_ELEMENTS`` is kept for the backward, where there will be one; any other exists a block at a
time, and the backward computes it again. Pairs with a context that cancels are computed as chosen
pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends import _chosen_pairs
from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.cross_attention_layout import (
    LANES,
    Chunk,
    Group,
    groups,
    pack_rows,
    padded_size,
    set_lengths,
)
from sede_kernels.backends.cpu.cross_attention_pairs import (
    Settings,
    cross_attention_pairs,
    cross_attention_pairs_backward,
    native_settings,
)
from sede_kernels.fragment_types import Attend, Attended, Fragments, Wanted
from sede_kernels.precision import full_precision
from sede_kernels.types import SideGradients

_KEPT_ELEMENTS = 1 << 24  # of S, at most, for the backward: 64 MB
_PARTIAL_ELEMENTS = 1 << 22  # of all partial Gram gradients of a group
_MAX_PARTIALS = 16


class _Gram(NamedTuple):
    """Dot products of each set's sources, and what their sums are measured by.

    Shapes: (fragments, fragments, lanes), (fragments, lanes) twice; or (sets, L, L), (sets, L).
    """

    values: Tensor
    norm: Tensor
    mass: Tensor  # sums of the absolute values


class _Plan:
    """Which side lies in lanes, and the blocks of S."""

    def __init__(self, sides: Fragments, direction: str) -> None:
        regions, words, region_lengths, word_lengths = sides
        counts = set_lengths(regions, region_lengths), set_lengths(words, word_lengths)
        # The side whose padding to whole vectors costs less work.
        with_regions = padded_size(counts[0]) * int(counts[1].sum())
        with_words = padded_size(counts[1]) * int(counts[0].sum())
        self.lanes_are_regions = with_regions <= with_words
        lane_sets, row_sets = (regions, words) if self.lanes_are_regions else (words, regions)
        lane_counts, row_counts = counts if self.lanes_are_regions else counts[::-1]
        self.lane_source = self.lanes_are_regions == (direction == "t2i")
        self.lane_sets = lane_sets
        self.groups = (g for g in groups(lane_sets, lane_counts) if g.fragments)
        self.rows = pack_rows(row_sets, row_counts)
        self.row_norms = self.rows.values.norm(dim=1)
        self._scratch = _native.empty(0)

    def scratch(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) of memory that every block uses in turn."""
        if self._scratch.numel() < rows * columns:
            self._scratch = _native.empty(rows * columns)
        return self._scratch[: rows * columns].view(rows, columns)

    def similarities(self, group: Group, chunk: Chunk, kept: Tensor, *, ready: bool) -> Tensor:
        """S of one block (rows, columns): in its place in ``kept`` where there is one, else new.

        Args:
            group: the columns.
            chunk: the rows.
            kept: S of all blocks, flat, or empty.
            ready: whether it holds S already.
        """
        _, _, begin, stop = chunk
        columns = group.values.shape[0]
        if kept.numel():
            at = self.rows.values.shape[0] * group.before + begin * columns
            s = kept[at : at + (stop - begin) * columns].view(stop - begin, columns)
        else:
            s = self.scratch(stop - begin, columns)
        if not (kept.numel() and ready):
            torch.mm(self.rows.values[begin:stop], group.values.T, out=s)
        return s

    def gram_of_lanes(self, group: Group) -> _Gram | None:
        """Of a group's sets, where the lanes are the sources."""
        if not self.lane_source:
            return None
        sets = group.by_lane()
        values = (sets @ sets.transpose(1, 2)).permute(1, 2, 0).contiguous()
        norm = values.diagonal(dim1=0, dim2=1).T.sqrt().contiguous()
        return _Gram(values, norm, values.abs().sum(dim=1))

    def gram_of_rows(self, chunk: Chunk) -> _Gram:
        """Of a chunk's sets."""
        first, end, begin, stop = chunk
        padded = self.rows.padded(first, end, self.rows.values[begin:stop])
        values = padded @ padded.transpose(1, 2)
        norm = values.diagonal(dim1=1, dim2=2).sqrt().contiguous()
        return _Gram(values, norm, values.abs().sum(dim=2))

    def call(
        self, group: Group, chunk: Chunk, lane_gram: _Gram | None, s: Tensor, lost: Tensor
    ) -> tuple[tuple[int | bool, ...], list[Tensor]]:
        """The arguments of the native call of one block, and the tensors they point to."""
        first, end, begin, stop = chunk
        starts = self.rows.starts[first : end + 1] - begin
        if lane_gram is not None:
            gram, norm = lane_gram, self.row_norms[begin:stop]
        else:
            gram, norm = self.gram_of_rows(chunk), group.values.norm(dim=1)
        call = (
            s.data_ptr(),
            end - first,
            group.fragments,
            group.lanes,
            starts.data_ptr(),
            group.lengths.data_ptr(),
            self.lane_source,
            gram.values.data_ptr(),
            self.rows.valid.shape[1],
            gram.norm.data_ptr(),
            gram.mass.data_ptr(),
            norm.data_ptr(),
            lost.data_ptr(),
        )
        return call, [starts, *gram, norm]

    def pairs(self, group: Group, chunk: Chunk, lost: Tensor) -> Tensor:
        """(n, 2) images and captions of the marks (sets, lanes) of one block."""
        rows, lanes = lost[:, : group.sets.shape[0]].nonzero(as_tuple=True)
        both = group.sets[lanes], rows + chunk[0]
        return torch.stack(both if self.lanes_are_regions else both[::-1], dim=1)


def cross_attention_kept(regions: Tensor, words: Tensor) -> int:
    """Elements of S that the forward keeps where a gradient will be asked for.

    Computed from the shapes alone, hence for sets of full length: a bound for shorter ones, whose
    rest is never touched. 0: S is too large, and the backward computes it again; or there is none.
    """
    if _chosen_pairs.all_chosen(regions):
        return 0

    def lanes(sets: Tensor) -> int:
        return sets.shape[1] * (-(-sets.shape[0] // LANES) * LANES)

    def rows(sets: Tensor) -> int:
        return sets.shape[1] * sets.shape[0]

    most = max(lanes(regions) * rows(words), lanes(words) * rows(regions))
    return most if most <= _KEPT_ELEMENTS else 0


def cross_attention(sides: Fragments, how: Attend, keep: bool) -> Attended:
    """See ``sede_kernels.ops.cross_attention``."""
    regions, words = sides.regions, sides.words
    kept = _native.empty(cross_attention_kept(regions, words) if keep else 0)
    out = _native.zeros(regions.shape[0], words.shape[0])
    if _chosen_pairs.all_chosen(regions):
        pairs = _chosen_pairs.all_of(regions, words)
    else:
        with full_precision("cpu"):
            plan = _Plan(sides, how.direction)
            pairs = _all_pairs(plan, native_settings(how), kept, out)
    _chosen_pairs.write_similarities(cross_attention_pairs, pairs, sides, how, out)
    return Attended(out, kept)


def _all_pairs(plan: _Plan, settings: Settings, kept: Tensor, out: Tensor) -> Tensor:
    """Fill ``out`` (B, C); the pairs (n, 2) that are to be computed as chosen ones."""
    lost = [_native.empty(0, 2, dtype=torch.int64)]
    by_lane = out if plan.lanes_are_regions else out.T
    for group in plan.groups:
        lane_gram = plan.gram_of_lanes(group)
        for chunk in plan.rows.chunks(group.values.shape[0]):
            s = plan.similarities(group, chunk, kept, ready=False)
            part = _native.empty(chunk[1] - chunk[0], group.lanes)
            marks = _native.empty(*part.shape, dtype=torch.int32)
            call, held = plan.call(group, chunk, lane_gram, s, marks)
            _native.module().cross_attention(call, settings, part.data_ptr())
            del held
            by_lane[group.sets, chunk[0] : chunk[1]] = part[:, : group.sets.shape[0]].T
            lost.append(plan.pairs(group, chunk, marks))
    return torch.cat(lost)


def cross_attention_backward(
    grad: Tensor, kept: Tensor, sides: Fragments, how: Attend, wanted: Wanted
) -> SideGradients:
    """See ``sede_kernels.ops.cross_attention``."""
    regions, words = sides.regions, sides.words
    g = grad.to(torch.float32)
    if _chosen_pairs.all_chosen(regions):
        pairs = _chosen_pairs.all_of(regions, words)
        d_regions, d_words = (
            _native.zeros(*(side.shape if asked else (0,)))
            for side, asked in zip((regions, words), wanted, strict=True)
        )
        grads = SideGradients(d_regions, d_words)
    else:
        with full_precision("cpu"):
            plan = _Plan(sides, how.direction)
            grads, pairs = _all_pairs_backward(plan, native_settings(how), kept, g, wanted)
    _chosen_pairs.add_gradients(cross_attention_pairs_backward, pairs, g, sides, how, grads)
    return grads


def _all_pairs_backward(
    plan: _Plan, settings: Settings, kept: Tensor, grad: Tensor, wanted: Wanted
) -> tuple[SideGradients, Tensor]:
    """(gradients of regions and words, where wanted; the pairs (n, 2) that are not in them)."""
    lost = [_native.empty(0, 2, dtype=torch.int64)]
    for_lanes, for_rows = wanted if plan.lanes_are_regions else wanted[::-1]
    g = grad if plan.lanes_are_regions else grad.T
    d_lane_sets = _native.zeros(*(plan.lane_sets.shape if for_lanes else (0,)))
    d_rows = _native.zeros(*plan.rows.values.shape) if for_rows else None
    for group in plan.groups:
        d_lanes = _native.zeros(*group.values.shape) if for_lanes else None
        lost += _group_backward(plan, group, g, settings, kept, d_lanes, d_rows)
        if d_lanes is not None:
            d_lane_sets[group.sets, : group.fragments] = group.by_set(d_lanes)
    d_row_sets = _native.empty(0)
    if d_rows is not None:
        d_row_sets = plan.rows.padded(0, plan.rows.valid.shape[0], d_rows)
    grads = (d_lane_sets, d_row_sets) if plan.lanes_are_regions else (d_row_sets, d_lane_sets)
    return SideGradients(*grads), torch.cat(lost)


def _group_backward(
    plan: _Plan,
    group: Group,
    grad: Tensor,
    settings: Settings,
    kept: Tensor,
    d_lanes: Tensor | None,
    d_rows: Tensor | None,
) -> list[Tensor]:
    """Adds a group's part to the gradients of lanes (fragments * lanes, D) and rows, if wanted.

    Returns:
        Pairs (n, 2) a block that are not in them.
    """
    lost = []
    rows, columns = plan.rows, group.values.shape[0]
    square = group.fragments * columns
    partials = max(1, min(_MAX_PARTIALS, _PARTIAL_ELEMENTS // square))
    lane_gram = plan.gram_of_lanes(group)
    d_gram = _native.zeros(partials, square if plan.lane_source and d_lanes is not None else 0)
    d_norm = _native.zeros(partials, 0 if plan.lane_source else columns)
    for chunk in rows.chunks(columns):
        first, end, begin, stop = chunk
        s = plan.similarities(group, chunk, kept, ready=True)
        ds = plan.scratch(*s.shape) if kept.numel() else s
        part = _native.zeros(end - first, group.lanes)
        marks = _native.empty(*part.shape, dtype=torch.int32)
        call, held = plan.call(group, chunk, lane_gram, s, marks)
        part[:, : group.sets.shape[0]] = grad[group.sets, first:end].T
        if plan.lane_source:
            d_norm = _native.zeros(stop - begin)
        elif d_rows is not None:
            d_gram = _native.zeros(end - first, rows.valid.shape[1], rows.valid.shape[1])
        _native.module().cross_attention_backward(
            call,
            settings,
            part.data_ptr(),
            ds.data_ptr(),
            d_gram.data_ptr() if d_gram.numel() else 0,
            d_norm.data_ptr(),
            partials,
        )
        del held
        lost.append(plan.pairs(group, chunk, marks))
        values = rows.values[begin:stop]
        if d_lanes is not None:
            d_lanes.addmm_(ds.T, values)
        if d_rows is not None:
            d_rows[begin:stop].addmm_(ds, group.values)
            if plan.lane_source:
                d_rows[begin:stop].addcmul_(values, d_norm.unsqueeze(1))
            else:
                whole = 2 * (d_gram + d_gram.transpose(1, 2))
                padded = whole @ rows.padded(first, end, values)
                d_rows[begin:stop] += padded[rows.valid[first:end]]
    if d_lanes is None:
        return lost
    if plan.lane_source:
        lower = d_gram.sum(dim=0).view(group.fragments, group.fragments, group.lanes)
        whole = 2 * (lower + lower.transpose(0, 1)).permute(2, 0, 1)
        d_lanes.view(*lower.shape[1:], -1).transpose(0, 1).baddbmm_(whole, group.by_lane())
    else:
        d_lanes.addcmul_(group.values, d_norm.sum(dim=0).unsqueeze(1))
    return lost
