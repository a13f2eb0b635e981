"""Training batches, read and padded by worker processes ahead of the step that needs them."""

import math
import signal
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sede_kernels.training.data.precomp import Part
from sede_kernels.training.data.text import pad
from sede_kernels.training.ranks import Ranks

_AHEAD = 2  # batches that a worker has ready


class Batch(NamedTuple):
    """What a step takes of B captions.

    Attributes:
        regions: (B, R, F) float32 of their images.
        words: (B, L) int64, 0 beyond each length.
        lengths: (B,) int64.
        sentences: (B, S) frozen embeddings, or None.
        ids: (B,) int64, what each pair is of.
    """

    regions: Tensor
    words: Tensor
    lengths: Tensor
    sentences: Tensor | None
    ids: Tensor

    def to(self, device: str) -> "Batch":
        """The same on a device; from pinned memory the copies do not block."""
        parts = (None if part is None else part.to(device, non_blocking=True) for part in self)
        return Batch(*parts)  # type: ignore[arg-type]


class Batches(Dataset[Batch]):
    """The batches of an epoch by their numbers.

    Args:
        part: images and captions.
        words: numbers of each caption's words.
        order: (C,) captions in the order of the epoch.
        size: captions a batch, of all ranks together; the last one may have fewer.
        ranks: of which this one reads its part, or the first row of a batch where it has none.
        start: place of the epoch's first caption in the run.
    """

    def __init__(
        self,
        part: Part,
        words: list[list[int]],
        order: np.ndarray[Any, Any],
        size: int,
        ranks: Ranks = Ranks(),  # noqa: B008
        start: int = 0,
    ) -> None:
        self.part, self.words, self.order, self.size = part, words, order, size
        self.ranks, self.start = ranks, start

    def __len__(self) -> int:
        """Batches of the epoch."""
        return math.ceil(len(self.order) / self.size)

    def __getitem__(self, number: int) -> Batch:
        """Read one."""
        first = number * self.size
        every = self.order[first : first + self.size]
        longest = max(len(self.words[caption]) for caption in every)
        mine = every[self.ranks.rows(self.start + first, len(every))]
        captions = mine if len(mine) else every[:1]
        rows = self.part.image_of[captions]
        numbers, lengths = pad([self.words[caption] for caption in captions], longest)
        return Batch(
            self.part.regions(rows),
            numbers,
            lengths,
            self.part.sentence_rows(captions),
            self.part.image_ids[rows],
        )


def read_ahead(batches: Batches, first: int, workers: int, device: str) -> Iterator[Batch]:
    """The batches from number ``first`` on, on a device.

    Args:
        batches: of the epoch.
        first: number of the first one.
        workers: processes that read ahead; 0 reads each batch when it is asked for.
        device: where they go. For a GPU they are read into pinned memory.

    Yields:
        The same batches in the same order, whatever the number of workers. The generator of torch
        is not touched, so neither are dropout and the resumed run.
    """
    numbers = range(first, len(batches))
    if not workers or not numbers:
        yield from (batches[number].to(device) for number in numbers)
        return
    loader: DataLoader[Batch] = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=_AHEAD,
        pin_memory=torch.device(device).type == "cuda",
        worker_init_fn=_quiet,
        # A pickle of the features would copy the whole file; a forked worker shares the mapping.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield batch.to(device)


def _as_it_is(batch: Any) -> Any:
    return batch


def _quiet(_: int) -> None:
    """Ctrl-C is for the process that trains; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
