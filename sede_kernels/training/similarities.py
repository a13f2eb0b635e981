"""The similarity of every image of a part with every caption, and what retrieval makes of it.

Models with one vector a side are compared block by block from their vectors, so that the memory
grows with N + C. A score of fragment sets costs more than its number: those are kept, N x C.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from sede_kernels.functional.ranks import BLOCK, Comparison, best_right_ranks, dot_products
from sede_kernels.training.data.precomp import Ints, Part
from sede_kernels.training.data.text import pad
from sede_kernels.training.models import Encoded, RetrievalModel

Floats = np.ndarray[Any, np.dtype[np.float32]]
_BLOCK = 128  # images, and captions, encoded at a time


@dataclass(frozen=True)
class Similarities:
    """Similarity of N images with C captions.

    Attributes:
        images: (N, D) float32 vectors, or the (N, C) similarities themselves.
        captions: (C, D) float32 vectors, or None beside the similarities themselves.
    """

    images: Tensor
    captions: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, C)."""
        if self.captions is None:
            return self.images.shape[0], self.images.shape[1]
        return self.images.shape[0], self.captions.shape[0]

    def block(self, rows: slice, columns: slice) -> Tensor:
        """(rows, columns) of the similarities; not to be written to."""
        if self.captions is None:
            return self.images[rows, columns]
        return self.images[rows] @ self.captions[columns].T

    def column(self, caption: int) -> Floats:
        """(N,) of one caption."""
        found: Floats = self.block(slice(None), slice(caption, caption + 1))[:, 0].numpy()
        return found

    def part(self, rows: slice, columns: Ints) -> "Similarities":
        """Those of some images with some captions."""
        if self.captions is None:
            return Similarities(self.images[rows][:, columns])
        return Similarities(self.images[rows], self.captions[columns])

    def ranks(self, pairs: Ints, group: "dist.ProcessGroup | None" = None) -> tuple[Ints, Ints]:
        """Rank, from 0, of the best right answer of every query, both ways.

        A wrong answer that ties with the best right one counts as ahead of it, so a collapsed model
        scores nothing; so does a NaN.

        Args:
            pairs: (P, 2) right (caption, image) pairs.
            group: process group whose ranks share the work; None for this process alone.

        Returns:
            Ranks of the images that have a caption, in their order, and of the captions that have
            an image.
        """
        right = _right_answers(pairs)
        if self.captions is None:
            compare = Comparison(self.block)
        else:
            compare = dot_products(self.images, self.captions, torch.float32)
        found = best_right_ranks(compare, right, self.shape, block=BLOCK, group=group)
        images, captions = (ranks[ranks >= 0].numpy() for ranks in found)
        return images, captions


def _right_answers(pairs: Ints) -> Callable[[slice, slice], tuple[Tensor, Tensor] | None]:
    """The pairs by the block of images and captions that they lie in."""
    captions, images = np.unique(pairs, axis=0).T
    blocks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    place = images // BLOCK[0], captions // BLOCK[1]
    order = np.lexsort(place)
    edges = np.flatnonzero(np.diff(place[0][order]) | np.diff(place[1][order])) + 1
    for inside in np.split(order, edges):
        if len(inside):
            down, across = int(place[0][inside[0]]), int(place[1][inside[0]])
            blocks[down, across] = (
                torch.from_numpy(images[inside] - down * BLOCK[0]),
                torch.from_numpy(captions[inside] - across * BLOCK[1]),
            )
    return lambda rows, columns: blocks.get((rows.start // BLOCK[0], columns.start // BLOCK[1]))


@torch.inference_mode()
def compare_part(
    model: RetrievalModel,
    part: Part,
    words: list[list[int]],
    *,
    progress: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> Similarities:
    """Similarity of every image with every caption, in fp32.

    Args:
        model: put into evaluation mode here, and back.
        part: images and captions.
        words: numbers of each caption's words.
        progress: show a progress bar.
        group: process group whose ranks share the work, all with equal weights, and get the same
            similarities; None for this process alone.

    Cost:
        Each image and caption is encoded once and its vector kept. Of a model that compares
        fragments the N x C scores, see ``score_part``. With a group one sum of either over it.
    """
    if model.compares_fragments:
        scores = score_part(model, part, words, progress=progress, group=group)
        return Similarities(torch.from_numpy(scores))
    rank, world = _place(group)
    encoders = image_encoder(model, part), caption_encoder(model, part, words)
    counts = len(part.rows), len(words)
    sides = []
    total = sum(-(-count // _BLOCK) for count in counts)
    bar = tqdm(total=total, desc="encoding", unit="block", disable=None if progress else True)
    with _evaluating(model), bar:
        for count, encode in zip(counts, encoders, strict=True):
            vectors = torch.zeros(count, model.sizes.dim)
            for rows in _runs(count, _BLOCK)[rank::world]:
                vectors[rows.start : rows.stop] = encode(rows).unit_vector().float().cpu()
                bar.update()
            sides.append(_of_all(vectors, group))
    return Similarities(sides[0], sides[1])


@contextmanager
def _evaluating(model: RetrievalModel) -> Iterator[None]:
    """The model in evaluation mode, and back however the block ends."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _place(group: "dist.ProcessGroup | None") -> tuple[int, int]:
    """Rank and number of ranks."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def _of_all(parts: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """What each rank has filled in, the rest being 0."""
    if group is not None:
        dist.all_reduce(parts, group=group)
    return parts


def _runs(count: int, block: int) -> list[range]:
    return [range(start, min(start + block, count)) for start in range(0, count, block)]


def image_encoder(model: RetrievalModel, part: Part) -> Callable[[range], Encoded]:
    """Encodes some images of a part."""
    device = next(model.parameters()).device
    return lambda rows: _needed(model, model.image_encoder(part.regions(rows).to(device)))


def caption_encoder(
    model: RetrievalModel, part: Part, words: list[list[int]]
) -> Callable[[range], Encoded]:
    """Encodes some captions of a part."""
    device = next(model.parameters()).device

    def encode(rows: range) -> Encoded:
        numbers, lengths = pad([words[row] for row in rows])
        sentences = part.sentence_rows(rows)
        sentences = None if sentences is None else sentences.to(device)
        return _needed(model, model.text_encoder(numbers.to(device), lengths.to(device), sentences))

    return encode


@torch.inference_mode()
def score_part(
    model: RetrievalModel,
    part: Part,
    words: list[list[int]],
    *,
    block: int = _BLOCK,
    hold_bytes: int = 1 << 28,
    progress: bool = False,
    group: "dist.ProcessGroup | None" = None,
) -> Floats:
    """Similarity of every image with every caption, fp32, block by block.

    Of the encodings, only ``hold_bytes`` of captions and one block of images are in memory: where
    the captions need more (fragments of 25,000 captions), the images are encoded several times.

    Args:
        model: put into evaluation mode here, and back.
        part: images and captions.
        words: numbers of each caption's words.
        block: images (and captions) a block.
        hold_bytes: most bytes of caption encodings at a time.
        progress: show a progress bar.
        group: as of ``compare_part``; each rank takes some blocks of images.

    Returns:
        (N, C) float32.
    """
    rank, world = _place(group)
    images, captions = len(part.rows), len(words)
    scores = np.zeros((images, captions), np.float32)
    encode_images, encode = image_encoder(model, part), caption_encoder(model, part, words)
    total = -(-images // block) * -(-captions // block)
    bar = tqdm(total=total, desc="scoring", unit="block", disable=None if progress else True)
    with _evaluating(model), bar:
        first = 0
        while first < captions:
            held: list[tuple[range, Encoded]] = []
            size = 0
            while first < captions and (not held or size < hold_bytes):
                columns = range(first, min(first + block, captions))
                held.append((columns, encode(columns)))
                size += sum(t.nbytes for t in held[-1][1] if t is not None)
                first = columns.stop
            for rows in _runs(images, block)[rank::world]:
                encoded = encode_images(rows)
                for columns, texts in held:
                    found = model.score(encoded, texts).float().cpu().numpy()
                    scores[rows.start : rows.stop, columns.start : columns.stop] = found
                    bar.update()
    _of_all(torch.from_numpy(scores), group)
    return scores


def _needed(model: RetrievalModel, encoded: Encoded) -> Encoded:
    """Without the fragments, where a score only looks at vectors."""
    if model.compares_fragments:
        return encoded
    return encoded._replace(fragments=encoded.unit_vector()[:, None], lengths=None, attention=None)
