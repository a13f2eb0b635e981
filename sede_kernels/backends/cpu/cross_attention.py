"""Region-word similarity: large products in blocks, everything between them in native code.

One side's sets ("lanes") are interleaved in groups so that S = rows lanes^T comes out as
S[row][fragment][lane] and the epilogue of csrc/kernels/cross_attention.cpp never crosses vector
lanes. The other side's sets ("rows") are packed one after another without padding. An S of at most
``_KEPT_ELEMENTS`` is kept for the backward, where there will be one; of any other S no more than
``_BLOCK_ELEMENTS`` (plus one set's rows) exist at a time, and the backward computes it again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.erase import RULE_CODES

EraseOptions = tuple[str, float, bool, int, bool]
Settings = tuple[float, int, float, bool, int, float, bool, int, bool]
Chunk = tuple[int, int, int, int]  # first set, end, first row, end

#: Aggregate of csrc/kernels/cross_attention_api.h.
AGGREGATE_CODES = {"lse": 0, "mean": 1, "max": 2, "sum": 3}

_LANES = 16  # the widest vector, in floats
_GROUP_COLUMNS = 2048  # fragments x lanes of a group
_BLOCK_ELEMENTS = 1 << 21  # of S: 8 MB, within a last-level cache
_KEPT_ELEMENTS = 1 << 24  # of S, at most, for the backward: 64 MB
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
    before: int  # columns of the groups before it

    def by_lane(self) -> Tensor:
        """The values as (lanes, fragments, D)."""
        return self.values.view(self.fragments, self.lanes, self.values.shape[1]).transpose(0, 1)

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

    def chunks(self, columns: int) -> Iterator[Chunk]:
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
        return torch.full((sets.shape[0],), sets.shape[1], dtype=torch.int64, device="cpu")
    return _native.counts("cross_attention", lengths, sets.shape[:1], sets.shape[1])


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
    order, before = lengths.argsort(descending=True, stable=True), 0
    rows, longest = sets.flatten(0, 1), sets.shape[1]
    for begin, end, fragments, lanes in _cuts(lengths[order]):
        chosen = order[begin:end]
        counts = lengths.new_zeros(lanes)
        counts[: end - begin] = lengths[chosen]
        place = lengths.new_zeros(lanes)
        place[: end - begin] = chosen * longest
        fragment = torch.arange(fragments, device="cpu").unsqueeze(1)
        beyond = fragment >= counts
        # Lanes that end early repeat a row that exists, until they are cleared.
        source = (place + fragment).masked_fill(beyond, 0).flatten()
        values = rows.index_select(0, source).to(torch.float32)
        if begin + lanes > end or int(counts[-1]) < fragments:
            values.masked_fill_(beyond.flatten().unsqueeze(1), 0.0)
        yield Group(chosen, values, counts, fragments, lanes, before)
        before += fragments * lanes


def _rows(sets: Tensor, lengths: Tensor) -> Rows:
    valid = torch.arange(sets.shape[1], device="cpu") < lengths.unsqueeze(1)
    starts = _native.zeros(sets.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=starts[1:])
    values = sets[valid].to(torch.float32).contiguous()
    return Rows(values, starts, lengths, valid)


def native_settings(
    smoothing: float, aggregate: str, aggregate_scale: float, erase: EraseOptions | None
) -> Settings:
    """The settings as the native calls take them."""
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
        self.groups = (g for g in _groups(lane_sets, lane_counts) if g.fragments)
        self.rows = _rows(row_sets, row_counts)
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

    def gram_of_lanes(self, group: Group) -> Tensor | None:
        """(fragments, fragments, lanes) where the lanes are the sources."""
        if not self.lane_source:
            return None
        values = group.by_lane()
        return (values @ values.transpose(1, 2)).permute(1, 2, 0).contiguous()

    def call(
        self, group: Group, chunk: Chunk, lane_gram: Tensor | None, s: Tensor
    ) -> tuple[tuple[int | bool, ...], list[Tensor]]:
        """The arguments of the native call of one block, and the tensors they point to."""
        first, end, begin, stop = chunk
        starts = self.rows.starts[first : end + 1] - begin
        if lane_gram is not None:
            gram, norm = lane_gram, self.row_norms[begin:stop]
        else:
            padded = self.rows.padded(first, end, self.rows.values[begin:stop])
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


def cross_attention_kept(regions: Tensor, words: Tensor) -> int:
    """Elements of S that the forward keeps where a gradient will be asked for.

    Computed from the shapes alone, hence for sets of full length: a bound for shorter ones, whose
    rest is never touched. 0: S is too large, and the backward computes it again.
    """

    def lanes(sets: Tensor) -> int:
        return sets.shape[1] * (-(-sets.shape[0] // _LANES) * _LANES)

    def rows(sets: Tensor) -> int:
        return sets.shape[1] * sets.shape[0]

    most = max(lanes(regions) * rows(words), lanes(words) * rows(regions))
    return most if most <= _KEPT_ELEMENTS else 0


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
    kept: Tensor,
) -> Tensor:
    """See ``sede_kernels.ops.cross_attention``."""
    settings = native_settings(smoothing, aggregate, aggregate_scale, erase)
    module = _native.module()
    with torch.autocast("cpu", enabled=False):
        plan = _Plan(regions, words, region_lengths, word_lengths, direction)
        out = _native.zeros(regions.shape[0], words.shape[0])
        by_lane = out if plan.lanes_are_regions else out.T
        for group in plan.groups:
            lane_gram = plan.gram_of_lanes(group)
            for chunk in plan.rows.chunks(group.values.shape[0]):
                s = plan.similarities(group, chunk, kept, ready=False)
                call, held = plan.call(group, chunk, lane_gram, s)
                part = _native.empty(chunk[1] - chunk[0], group.lanes)
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
    kept: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.cross_attention``."""
    settings = native_settings(smoothing, aggregate, aggregate_scale, erase)
    with torch.autocast("cpu", enabled=False):
        plan = _Plan(regions, words, region_lengths, word_lengths, direction)
        for_lanes, for_rows = wanted if plan.lanes_are_regions else wanted[::-1]
        g = (grad if plan.lanes_are_regions else grad.T).to(torch.float32)
        d_lane_sets = _native.zeros(*(plan.lane_sets.shape if for_lanes else (0,)))
        d_rows = _native.zeros(*plan.rows.values.shape) if for_rows else None
        for group in plan.groups:
            d_lanes = _native.zeros(*group.values.shape) if for_lanes else None
            _group_backward(plan, group, g, settings, kept, d_lanes, d_rows)
            if d_lanes is not None:
                d_lane_sets[group.sets, : group.fragments] = group.by_set(d_lanes)
        d_row_sets = _native.empty(0)
        if d_rows is not None:
            d_row_sets = plan.rows.padded(0, plan.rows.valid.shape[0], d_rows)
    return (d_lane_sets, d_row_sets) if plan.lanes_are_regions else (d_row_sets, d_lane_sets)


def _group_backward(
    plan: _Plan,
    group: Group,
    grad: Tensor,
    settings: Settings,
    kept: Tensor,
    d_lanes: Tensor | None,
    d_rows: Tensor | None,
) -> None:
    """Adds a group's part to the gradients of lanes (fragments * lanes, D) and rows, if wanted."""
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
        call, held = plan.call(group, chunk, lane_gram, s)
        part = _native.zeros(end - first, group.lanes)
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
        return
    if plan.lane_source:
        lower = d_gram.sum(dim=0).view(group.fragments, group.fragments, group.lanes)
        whole = 2 * (lower + lower.transpose(0, 1)).permute(2, 0, 1)
        d_lanes.view(*lower.shape[1:], -1).transpose(0, 1).baddbmm_(whole, group.by_lane())
    else:
        d_lanes.addcmul_(group.values, d_norm.sum(dim=0).unsqueeze(1))
