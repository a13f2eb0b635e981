"""Sets of fragments by length, and how they share the tiles of the region-word similarity."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sede_kernels.backends.triton._host import padded

#: Padded sizes of a set start here: sources are columns of a tile, queries its rows.
SMALLEST_SOURCE, SMALLEST_QUERY = 32, 16
#: Sets without lengths of so many fragments are packed without padding: what the report has seen.
DENSE = (36,)


@dataclass(frozen=True)
class Bucket:
    """Sets that are padded to the same size."""

    index: int
    block: int


@dataclass(frozen=True)
class Side:
    """Sets (N, F, D), contiguous; with lengths also their order and the buckets' bounds in it."""

    sets: Tensor
    lengths: Tensor | None
    order: Tensor | None
    bounds: Tensor | None
    buckets: tuple[Bucket, ...]

    @property
    def vary(self) -> bool:
        """Whether the sets have lengths."""
        return self.lengths is not None


def side_of(sets: Tensor, lengths: Tensor | None, smallest: int) -> Side:
    """Nothing here waits for the device: kernels read from ``bounds`` how full a bucket is."""
    largest = padded(sets.shape[1], smallest)
    if lengths is None:
        return Side(sets, None, None, None, (Bucket(0, largest),))
    count = (largest // smallest).bit_length()
    lengths = lengths.to(torch.int64).contiguous()
    ordered, order = lengths.sort(stable=True)
    limits = smallest * 2 ** torch.arange(-1, count, device=lengths.device, dtype=torch.float32)
    limits[0] = -1.0
    bounds = torch.searchsorted(ordered.to(torch.float32), limits, right=True)
    buckets = tuple(Bucket(n, smallest << n) for n in range(count))
    return Side(sets, lengths, order, bounds, buckets)


def packing(fragments: int, block: int, rows: int, cols: int, vary: bool) -> tuple[int, int]:
    """(sets of a tile, rows that each takes): dense where padding would waste rows.

    Never with 64 columns: the sums over dense sets would spill.
    """
    dense = 0
    if not vary and cols == SMALLEST_SOURCE and fragments in DENSE:
        dense = rows // fragments
    return (dense, fragments) if dense > rows // block else (rows // block, block)


def bucket_pairs(query: Side, source: Side) -> Iterator[tuple[Bucket, Bucket]]:
    """Every bucket of queries with every bucket of sources: a launch each."""
    for query_bucket in query.buckets:
        for source_bucket in source.buckets:
            yield query_bucket, source_bucket
