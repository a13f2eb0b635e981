"""Region-word similarity of chosen pairs on the native kernels: one pair a vector lane.

The lanes are ordered by caption length, so that those of a vector end at about the same word.
"""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.backends.cpu.cross_attention import LANES, EraseOptions, native_settings


class _Pairs:
    """B queries with N candidates each: sides (B, N or 1, F, D), zero beyond their lengths."""

    def __init__(
        self,
        regions: Tensor,
        words: Tensor,
        region_lengths: Tensor | None,
        word_lengths: Tensor | None,
    ) -> None:
        self.batch, self.pairs = regions.shape[0], max(regions.shape[1], words.shape[1])
        self.total = self.batch * self.pairs
        self.lanes = -(-self.total // LANES) * LANES
        self.regions, region_counts = _cleaned(regions, region_lengths)
        self.words, word_counts = _cleaned(words, word_lengths)
        self.order = self._flat(word_counts).argsort(stable=True)
        self.region_counts = self._counts(region_counts)
        self.word_counts = self._counts(word_counts)

    def _flat(self, values: Tensor) -> Tensor:
        """(B, N or 1, ...) as (B N, ...)."""
        return values.expand(-1, self.pairs, *values.shape[2:]).flatten(0, 1)

    def _counts(self, counts: Tensor) -> Tensor:
        lanes = counts.new_zeros(self.lanes)
        lanes[: self.total] = self._flat(counts)[self.order]
        return lanes

    def to_lanes(self, values: Tensor) -> Tensor:
        """(B, N or 1, ...) as (..., lanes), zero in lanes that hold no pair."""
        shape = values.shape[2:]
        index = self.order
        if values.shape[1] != self.pairs:
            index = index.div(self.pairs, rounding_mode="floor")
        columns = values.reshape(-1, shape.numel()).T
        out = columns.new_zeros(shape.numel(), self.lanes)
        torch.index_select(columns, 1, index, out=out[:, : self.total])
        return out.view(*shape, self.lanes)

    def from_lanes(self, lanes: Tensor) -> Tensor:
        """The reverse of ``to_lanes``: (..., lanes) as (B, N, ...)."""
        shape = lanes.shape[:-1]
        columns = lanes.reshape(-1, self.lanes)[:, : self.total]
        out = columns.new_empty(self.total, shape.numel())
        out[self.order] = columns.T
        return out.view(self.batch, self.pairs, *shape)

    def scores(self) -> Tensor:
        """S of every pair, (R, L, lanes)."""
        (_, of_regions, R, D), (_, of_words, L, _) = self.regions.shape, self.words.shape
        if of_regions == of_words:
            s = self.regions @ self.words.transpose(2, 3)
        elif of_regions == 1:
            flat = self.words.reshape(self.batch, -1, D)
            s = self.regions[:, 0] @ flat.transpose(1, 2)
            s = s.view(self.batch, R, self.pairs, L).transpose(1, 2)
        else:
            s = self.regions.reshape(self.batch, -1, D) @ self.words[:, 0].transpose(1, 2)
            s = s.view(self.batch, self.pairs, R, L)
        return self.to_lanes(s)

    def gram(self, sources: Tensor) -> Tensor:
        """(n, n, lanes) dot products of the sources of each pair."""
        return self.to_lanes(sources @ sources.transpose(2, 3))

    def call(
        self, s: Tensor, gram: Tensor, norms: Tensor, starts: Tensor, lane_source: bool
    ) -> tuple[int | bool, ...]:
        """The arguments of the native call; the tensors must outlive it."""
        return (
            s.data_ptr(),
            self.lanes // LANES,
            s.shape[1],
            self.lanes,
            starts.data_ptr(),
            self.word_counts.data_ptr(),
            lane_source,
            gram.data_ptr(),
            0,
            norms.data_ptr(),
            self.region_counts.data_ptr(),
        )


def _cleaned(sets: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """fp32 with zeroed padding (it may hold anything), and the lengths."""
    longest = sets.shape[2]
    sets = sets.to(torch.float32)
    if lengths is None:
        return sets, torch.full(sets.shape[:2], longest, dtype=torch.int64)
    beyond = torch.arange(longest) >= lengths.unsqueeze(2)
    return sets.masked_fill(beyond.unsqueeze(3), 0.0), lengths.to(torch.int64)


def cross_attention_pairs(
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
    """See ``sede_kernels.ops.cross_attention_pairs``."""
    settings = native_settings(smoothing, aggregate, aggregate_scale, erase)
    with torch.autocast("cpu", enabled=False):
        pairs = _Pairs(regions, words, region_lengths, word_lengths)
        out = torch.zeros(pairs.lanes)
        if pairs.total and regions.shape[2] and words.shape[2]:
            t2i = direction == "t2i"
            source, query = (pairs.regions, pairs.words) if t2i else (pairs.words, pairs.regions)
            s, gram, norms = pairs.scores(), pairs.gram(source), pairs.to_lanes(query.norm(dim=3))
            starts = torch.tensor([0, regions.shape[2]])
            call = pairs.call(s, gram, norms, starts, not t2i)
            _native.module().cross_attention(call, settings, out.data_ptr())
        return pairs.from_lanes(out)


def cross_attention_pairs_backward(
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
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.cross_attention_pairs``."""
    settings = native_settings(smoothing, aggregate, aggregate_scale, erase)
    t2i = direction == "t2i"
    with torch.autocast("cpu", enabled=False):
        if grad.numel() == 0 or regions.shape[2] == 0 or words.shape[2] == 0:
            sides = zip((regions, words), wanted, strict=True)
            zeros = [torch.zeros(side.shape if asked else (0,)) for side, asked in sides]
            return zeros[0], zeros[1]
        pairs = _Pairs(regions, words, region_lengths, word_lengths)
        source, query = (pairs.regions, pairs.words) if t2i else (pairs.words, pairs.regions)
        for_source, for_query = wanted if t2i else wanted[::-1]
        s, gram, norms = pairs.scores(), pairs.gram(source), pairs.to_lanes(query.norm(dim=3))
        starts = torch.tensor([0, regions.shape[2]])
        g = pairs.to_lanes(grad.to(torch.float32))
        ds, d_norm = torch.zeros_like(s), torch.zeros_like(norms)
        d_gram = torch.zeros(gram.shape if for_source else (0,))
        _native.module().cross_attention_backward(
            pairs.call(s, gram, norms, starts, not t2i),
            settings,
            g.data_ptr(),
            ds.data_ptr(),
            d_gram.data_ptr() if for_source else 0,
            d_norm.data_ptr(),
            pairs.lanes // LANES,
        )
        by_pair = pairs.from_lanes(ds)
        if not t2i:
            by_pair = by_pair.transpose(2, 3)
        d_source = d_query = torch.empty(0)
        if for_source:
            lower = _of_side(pairs.from_lanes(d_gram), source)
            d_source = _product(by_pair, query, source)
            d_source += 2 * ((lower + lower.transpose(2, 3)) @ source)
        if for_query:
            d_query = _product(by_pair.transpose(2, 3), source, query)
            d_query += _of_side(pairs.from_lanes(d_norm), query).unsqueeze(3) * query
    return (d_source, d_query) if t2i else (d_query, d_source)


def _of_side(values: Tensor, side: Tensor) -> Tensor:
    """(B, N, ...) summed over N where all pairs share the side."""
    return values if values.shape[1] == side.shape[1] else values.sum(dim=1, keepdim=True)


def _product(ds: Tensor, other: Tensor, side: Tensor) -> Tensor:
    """Gradient of a side (B, N or 1, F, D) from dS (B, N, F, F') and the other side."""
    if side.shape[1] == ds.shape[1]:
        return ds @ other
    batch, pairs, fragments, others = ds.shape
    flat = ds.transpose(1, 2).reshape(batch, fragments, pairs * others)
    return (flat @ other.reshape(batch, pairs * others, -1)).unsqueeze(1)
