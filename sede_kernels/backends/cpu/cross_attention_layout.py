"""How the native region-word similarity lays out sets: one side in lanes, the other in rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native

Chunk = tuple[int, int, int, int]  # first set, end, first row, end

#: The widest vector, in floats.
LANES = 16
_BLOCK_ELEMENTS = 1 << 21  # of S: 8 MB, within a last-level cache
_GROUP_COLUMNS = 2048  # fragments x lanes of a group


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


def set_lengths(sets: Tensor, lengths: Tensor | None) -> Tensor:
    """(N,) int64 lengths of the sets (N, F, D)."""
    if lengths is None:
        return torch.full((sets.shape[0],), sets.shape[1], dtype=torch.int64, device="cpu")
    return _native.counts("cross_attention", lengths, sets.shape[:1], sets.shape[1])


def _cuts(lengths: Tensor) -> list[tuple[int, int, int, int]]:
    """(begin, end, fragments, lanes) of each group; the sets are taken in descending length."""
    ordered = lengths.tolist()
    cuts, begin = [], 0
    while begin < len(ordered):
        fragments = ordered[begin]
        most = max(LANES, _GROUP_COLUMNS // max(fragments, 1) // LANES * LANES)
        end = min(len(ordered), begin + most)
        cuts.append((begin, end, fragments, -(-(end - begin) // LANES) * LANES))
        begin = end
    return cuts


def padded_size(lengths: Tensor) -> int:
    """Columns that all groups of these sets take."""
    ordered = lengths.sort(descending=True).values
    return sum(fragments * lanes for _, _, fragments, lanes in _cuts(ordered))


def groups(sets: Tensor, lengths: Tensor) -> Iterator[Group]:
    """The sets in lanes, the longest first."""
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


def pack_rows(sets: Tensor, lengths: Tensor) -> Rows:
    """The sets one after another."""
    valid = torch.arange(sets.shape[1], device="cpu") < lengths.unsqueeze(1)
    starts = _native.zeros(sets.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=starts[1:])
    values = sets[valid].to(torch.float32).contiguous()
    return Rows(values, starts, lengths, valid)
