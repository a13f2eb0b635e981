"""Region-word similarity: large products in blocks, everything between them in native code.

One side's sets ("lanes") are interleaved in groups so that S = rows lanes^T comes out as
S[row][fragment][lane] and the epilogue of csrc/kernels/cross_attention.cpp never crosses vector
lanes. The other side's sets ("rows") are packed one after another without padding. At most
``_BLOCK_ELEMENTS`` (plus one set's rows) of S exist at a time; the backward recomputes S.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.erase import RULE_CODES

EraseOptions = tuple[str, float, bool, int, bool]
Settings = tuple[float, int, float, bool, int, float, bool, int, bool]

#: Aggregate of csrc/kernels/cross_attention_api.h.
AGGREGATE_CODES = {"lse": 0, "mean": 1, "max": 2, "sum": 3}

_LANES = 16  # the widest vector, in floats
_GROUP_COLUMNS = 2048  # fragments x lanes of a group
_BLOCK_ELEMENTS = 1 << 21  # of S: 8 MB, within a last-level cache
_PARTIAL_ELEMENTS = 1 << 22  # of all partial Gram gradients of a group
_MAX_PARTIALS = 16


@dataclass(frozen=True)
class Group:
    """Sets that share the lanes of one block, interleaved."""

    sets: Tensor  # (n,) which sets
    values: Tensor  # (fragments * lanes, D), zero beyond the lengths
    lengths: Tensor  # (lanes,) int64
    fragments: int
    lanes: int

    def by_set(self, columns: Tensor) -> Tensor:
        """(fragments * lanes, D) as (n, fragments, D)."""
        view = columns.view(self.fragments, self.lanes, columns.shape[1])
        return view[:, : self.sets.shape[0]].transpose(0, 1)


@dataclass(frozen=True)
class Rows:
    """Sets packed without padding."""

    values: Tensor  # (rows, D)
    starts: Tensor  # (sets + 1,) int64
    lengths: Tensor  # (sets,) int64
    valid: Tensor  # (sets, L) bool

    def chunks(self, columns: int) -> Iterator[tuple[int, int, int, int]]:
        """(first set, end, first row, end): as many sets as a block of S holds."""
        limit = max(1, _BLOCK_ELEMENTS // columns)
        starts = self.starts.tolist()
        begin, sets = 0, len(starts) - 1
        while begin < sets:
            end = begin + 1
            while end < sets and starts[end + 1] - starts[begin] <= limit:
                end += 1
            yield begin, end, starts[begin], starts[end]
            begin = end

    def padded(self, first: int, end: int, values: Tensor) -> Tensor:
        """Packed rows of some sets as (sets, L, D), zero-filled."""
        valid = self.valid[first:end]
        out = values.new_zeros(*valid.shape, values.shape[1])
        out[valid] = values
        return out


def _lengths(sets: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return torch.full((sets.shape[0],), sets.shape[1], dtype=torch.int64)
    return lengths.to(torch.int64)


def _cuts(lengths: Tensor) -> list[tuple[int, int, int, int]]:
    """(begin, end, fragments, lanes) of each group; the sets are taken in descending length."""
    ordered = lengths.tolist()
    cuts, begin = [], 0
    while begin < len(ordered):
        fragments = ordered[begin]
        most = max(_LANES, _GROUP_COLUMNS // max(fragments, 1) // _LANES * _LANES)
        end = min(len(ordered), begin + most)
        cuts.append((begin, end, fragments, -(-(end - begin) // _LANES) * _LANES))
        begin = end
    return cuts


def _padded_size(lengths: Tensor) -> int:
    """Columns that all groups of these sets take."""
    ordered = lengths.sort(descending=True).values
    return sum(fragments * lanes for _, _, fragments, lanes in _cuts(ordered))


def _groups(sets: Tensor, lengths: Tensor) -> Iterator[Group]:
    order = lengths.argsort(descending=True, stable=True)
    for begin, end, fragments, lanes in _cuts(lengths[order]):
        chosen = order[begin:end]
        counts = lengths.new_zeros(lanes)
        counts[: end - begin] = lengths[chosen]
        values = torch.zeros(fragments, lanes, sets.shape[2])
        values[:, : end - begin] = sets[chosen, :fragments].transpose(0, 1)
        beyond = torch.arange(fragments).unsqueeze(1) >= counts
        values.masked_fill_(beyond.unsqueeze(2), 0.0)
        yield Group(chosen, values.flatten(0, 1), counts, fragments, lanes)


def _rows(sets: Tensor, lengths: Tensor) -> Rows:
    valid = torch.arange(sets.shape[1]) < lengths.unsqueeze(1)
    starts = torch.zeros(sets.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=starts[1:])
    values = sets[valid].to(torch.float32).contiguous()
    return Rows(values, starts, lengths, valid)


def _settings(
    smoothing: float, aggregate: str, aggregate_scale: float, erase: EraseOptions | None
) -> Settings:
    rule, threshold, low, keep_min, renormalize = erase or ("mean", 0.0, True, 1, True)
    return (
        smoothing,
        AGGREGATE_CODES[aggregate],
        aggregate_scale,
        erase is not None,
        RULE_CODES[rule],
        threshold,
        low,
        keep_min,
        renormalize,
    )


class _Plan:
    """Which side lies in lanes, and the blocks of S."""

    def __init__(
        self,
        regions: Tensor,
        words: Tensor,
        region_lengths: Tensor | None,
        word_lengths: Tensor | None,
        direction: str,
    ) -> None:
        counts = _lengths(regions, region_lengths), _lengths(words, word_lengths)
        # The side whose padding to whole vectors costs less work.
        with_regions = _padded_size(counts[0]) * int(counts[1].sum())
        with_words = _padded_size(counts[1]) * int(counts[0].sum())
        self.lanes_are_regions = with_regions <= with_words
        lane_sets, row_sets = (regions, words) if self.lanes_are_regions else (words, regions)
        lane_counts, row_counts = counts if self.lanes_are_regions else counts[::-1]
        self.lane_source = self.lanes_are_regions == (direction == "t2i")
        self.lane_sets = lane_sets
        self.groups = _groups(lane_sets, lane_counts)
        self.rows = _rows(row_sets, row_counts)
        self.row_norms = self.rows.values.norm(dim=1)

    def gram_of_lanes(self, group: Group) -> Tensor:
        """(fragments, fragments, lanes) where the lanes are the sources."""
        values = group.values.view(group.fragments, group.lanes, group.values.shape[1]).transpose(
            0, 1
        )
        return (values @ values.transpose(1, 2)).permute(1, 2, 0).contiguous()

    def block(
        self, group: Group, chunk: tuple[int, int, int, int], lane_gram: Tensor | None, s: Tensor
    ) -> tuple[tuple[int | bool, ...], list[Tensor]]:
        """S of one block, and the arguments of the native call with the tensors they point to."""
        first, end, begin, stop = chunk
        rows = self.rows.values[begin:stop]
        torch.mm(
            rows,
            group.values.T,
            out=s[: (stop - begin) * group.values.shape[0]].view(
                stop - begin, group.values.shape[0]
            ),
        )
        starts = self.rows.starts[first : end + 1] - begin
        if lane_gram is not None:
            gram, norm = lane_gram, self.row_norms[begin:stop]
        else:
            padded = self.rows.padded(first, end, rows)
            gram, norm = padded @ padded.transpose(1, 2), group.values.norm(dim=1)
        call = (
            s.data_ptr(),
            end - first,
            group.fragments,
            group.lanes,
            starts.data_ptr(),
            group.lengths.data_ptr(),
            self.lane_source,
            gram.data_ptr(),
            self.rows.valid.shape[1],
            norm.data_ptr(),
        )
        return call, [starts, gram, norm]

    def scratch(self, group: Group) -> Tensor:
        """Room for the largest block of S of this group."""
        columns = group.fragments * group.lanes
        most = max((stop - begin for _, _, begin, stop in self.rows.chunks(columns)), default=0)
        return torch.empty(most * columns)


def cross_attention(
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    *,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase: EraseOptions | None,
) -> Tensor:
    """See ``sede_kernels.ops.cross_attention``."""
    settings = _settings(smoothing, aggregate, aggregate_scale, erase)
    module = _native.module()
    with torch.autocast("cpu", enabled=False):
        plan = _Plan(regions, words, region_lengths, word_lengths, direction)
        out = torch.zeros(regions.shape[0], words.shape[0])
        by_lane = out if plan.lanes_are_regions else out.T
        for group in plan.groups:
            if group.fragments == 0:
                continue
            lane_gram = plan.gram_of_lanes(group) if plan.lane_source else None
            s = plan.scratch(group)
            for chunk in plan.rows.chunks(group.fragments * group.lanes):
                call, held = plan.block(group, chunk, lane_gram, s)
                part = torch.empty(chunk[1] - chunk[0], group.lanes)
                module.cross_attention(call, settings, part.data_ptr())
                del held
                by_lane[group.sets, chunk[0] : chunk[1]] = part[:, : group.sets.shape[0]].T
        return out


def cross_attention_backward(
    grad: Tensor,
    regions: Tensor,
    words: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    *,
    direction: str,
    smoothing: float,
    aggregate: str,
    aggregate_scale: float,
    erase: EraseOptions | None,
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.cross_attention``."""
    settings = _settings(smoothing, aggregate, aggregate_scale, erase)
    with torch.autocast("cpu", enabled=False):
        plan = _Plan(regions, words, region_lengths, word_lengths, direction)
        g = (grad if plan.lanes_are_regions else grad.T).to(torch.float32)
        d_lane_sets = torch.zeros(plan.lane_sets.shape)
        d_rows = torch.zeros_like(plan.rows.values)
        d_row_norms = torch.zeros(plan.rows.values.shape[0])
        for group in plan.groups:
            if group.fragments:
                d_lanes = _group_backward(plan, group, g, settings, d_rows, d_row_norms)
                d_lane_sets[group.sets, : group.fragments] = group.by_set(d_lanes)
        d_rows.addcmul_(plan.rows.values, d_row_norms.unsqueeze(1))
        d_row_sets = plan.rows.padded(0, plan.rows.valid.shape[0], d_rows)
    return (d_lane_sets, d_row_sets) if plan.lanes_are_regions else (d_row_sets, d_lane_sets)


def _group_backward(
    plan: _Plan, group: Group, grad: Tensor, settings: Settings, d_rows: Tensor, d_norms: Tensor
) -> Tensor:
    """Adds to the gradients of the rows; returns that of the group (fragments * lanes, D)."""
    rows, columns = plan.rows, group.fragments * group.lanes
    d_lanes = torch.zeros_like(group.values)
    square = group.fragments * columns
    partials = max(1, min(_MAX_PARTIALS, _PARTIAL_ELEMENTS // square))
    lane_gram = plan.gram_of_lanes(group) if plan.lane_source else None
    d_lane_gram = torch.zeros(partials, square if plan.lane_source else 0)
    d_lane_norms = torch.zeros(partials, 0 if plan.lane_source else columns)
    s = plan.scratch(group)
    for chunk in rows.chunks(columns):
        first, end, begin, stop = chunk
        call, held = plan.block(group, chunk, lane_gram, s)
        part = torch.zeros(end - first, group.lanes)
        part[:, : group.sets.shape[0]] = grad[group.sets, first:end].T
        longest = rows.valid.shape[1]
        d_gram = d_lane_gram if plan.lane_source else torch.zeros(end - first, longest, longest)
        d_norm = d_norms[begin:stop] if plan.lane_source else d_lane_norms
        _native.module().cross_attention_backward(
            call, settings, part.data_ptr(), d_gram.data_ptr(), d_norm.data_ptr(), partials
        )
        del held
        ds = s[: (stop - begin) * columns].view(stop - begin, columns)
        values = rows.values[begin:stop]
        d_lanes.addmm_(ds.T, values)
        d_rows[begin:stop].addmm_(ds, group.values)
        if not plan.lane_source:
            whole = d_gram + d_gram.transpose(1, 2)
            padded = 2 * (whole @ rows.padded(first, end, values))
            d_rows[begin:stop] += padded[rows.valid[first:end]]
    if plan.lane_source:
        lower = d_lane_gram.sum(dim=0).view(group.fragments, group.fragments, group.lanes)
        whole = (lower + lower.transpose(0, 1)).permute(2, 0, 1)
        values = group.values.view(group.fragments, group.lanes, group.values.shape[1]).transpose(
            0, 1
        )
        d_lanes += 2 * (whole @ values).transpose(0, 1).flatten(0, 1)
    else:
        d_lanes.addcmul_(group.values, d_lane_norms.sum(dim=0).unsqueeze(1))
    return d_lanes
