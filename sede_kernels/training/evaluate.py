"""Recall at 1, 5 and 10 in both directions, with the chance level beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sede_kernels.training.data.precomp import Ints, Part
from sede_kernels.training.data.text import pad
from sede_kernels.training.files import UserError
from sede_kernels.training.models import Encoded, RetrievalModel

CUTOFFS = (1, 5, 10)
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Retrieval:
    """Scores of one part.

    Attributes:
        image_to_text: R@1, R@5, R@10 in percent: images that find one of their captions.
        text_to_image: the same for captions that find one of their images.
        median_ranks: median rank of the first right answer, both ways, counted from 1.
        queries: number of images and of captions that asked.
        folds: number of folds the figures are means of.
    """

    image_to_text: tuple[float, float, float]
    text_to_image: tuple[float, float, float]
    median_ranks: tuple[float, float]
    queries: tuple[int, int]
    folds: int = 1

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, at most 600."""
        return sum(self.image_to_text) + sum(self.text_to_image)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "i2t": list(self.image_to_text),
            "t2i": list(self.text_to_image),
            "rsum": self.rsum,
            "median_ranks": list(self.median_ranks),
            "queries": list(self.queries),
            "folds": self.folds,
        }


def ranks(scores: Floats, pairs: Ints) -> tuple[Ints, Ints]:
    """Rank, from 0, of the best right answer of every query, both ways.

    A wrong answer that ties with the best right one counts as ahead of it, so a collapsed model
    scores nothing; so does a NaN.

    Args:
        scores: (N images, C captions).
        pairs: (P, 2) right (caption, image) pairs.

    Returns:
        Ranks of the images that have a caption, in their order, and of the C captions.
    """
    captions, images = pairs.T
    right = scores[images, captions]
    best_caption = np.full(len(scores), -np.inf, np.float32)
    best_image = np.full(scores.shape[1], -np.inf, np.float32)
    with np.errstate(invalid="ignore"):
        np.maximum.at(best_caption, images, right)
        np.maximum.at(best_image, captions, right)
    ahead_of_caption = np.empty(len(scores), np.int64)
    ahead_of_image = np.zeros(scores.shape[1], np.int64)
    for start in range(0, len(scores), 256):
        rows = slice(start, start + 256)
        ahead_of_caption[rows] = (~(scores[rows] < best_caption[rows, None])).sum(1)
        ahead_of_image += (~(scores[rows] < best_image)).sum(0)
    # Right answers were counted too: the best itself and its equals.
    np.subtract.at(ahead_of_caption, images, ~(right < best_caption[images]))
    np.subtract.at(ahead_of_image, captions, ~(right < best_image[captions]))
    return ahead_of_caption[np.unique(images)], ahead_of_image[np.unique(captions)]


def summarize(scores: Floats, pairs: Ints, folds: int = 1) -> Retrieval:
    """Recalls and median ranks of a score matrix.

    Args:
        scores: (N images, C captions).
        pairs: (P, 2) right (caption, image) pairs.
        folds: cut the images into so many equal runs with their own captions (COCO 1K: 5) and
            average.

    Raises:
        UserError: the images do not divide into the folds, or a fold has no caption.
    """
    count = len(scores)
    check_folds(count, folds)
    size = count // folds
    found = []
    for start in range(0, count, size):
        inside = pairs[(pairs[:, 1] >= start) & (pairs[:, 1] < start + size)]
        if not len(inside):
            raise UserError(
                f"images {start} to {start + size - 1} have no caption: a fold of them has no "
                "query; use fewer --folds."
            )
        columns, caption = np.unique(inside[:, 0], return_inverse=True)
        block = scores[start : start + size][:, columns] if folds > 1 else scores
        local = np.stack([caption if folds > 1 else inside[:, 0], inside[:, 1] - start], 1)
        found.append(ranks(block, local))

    def mean(direction: int, figure: Callable[[Ints], float]) -> float:
        return float(np.mean([figure(fold[direction]) for fold in found]))

    def recalls(direction: int) -> tuple[float, float, float]:
        one, five, ten = (
            mean(direction, lambda r, k=k: 100.0 * float((r < k).mean()))  # type: ignore[misc]
            for k in CUTOFFS
        )
        return one, five, ten

    def median(direction: int) -> float:
        return mean(direction, lambda r: float(np.floor(np.median(r)) + 1))

    queries = (sum(len(f[0]) for f in found), sum(len(f[1]) for f in found))
    return Retrieval(recalls(0), recalls(1), (median(0), median(1)), queries, folds)


def check_folds(images: int, folds: int) -> None:
    """Refuse folds that do not divide the images of a part.

    Raises:
        UserError: with both numbers.
    """
    if folds < 1 or images % folds:
        raise UserError(f"--folds must divide the {images} images of this part, got {folds}.")


def chance(images: int, captions: int, pairs: Ints) -> Retrieval:
    """What random order would score: 1 - C(n - m, k) / C(n, k) for m right answers among n."""

    def recalls(query: int, candidates: int) -> tuple[float, float, float]:
        _, right = np.unique(pairs[:, query], return_counts=True)
        values, counts = np.unique(right, return_counts=True)

        def at(k: int) -> float:
            k = min(k, candidates)
            hits = [1 - comb(candidates - int(m), k) / comb(candidates, k) for m in values]
            return float(100.0 * np.average(hits, weights=counts))

        return at(1), at(5), at(10)

    queries = (len(np.unique(pairs[:, 1])), len(np.unique(pairs[:, 0])))
    return Retrieval(recalls(1, captions), recalls(0, images), (captions / 2, images / 2), queries)


@torch.inference_mode()
def score_part(
    model: RetrievalModel,
    part: Part,
    words: list[list[int]],
    *,
    block: int = 128,
    hold_bytes: int = 1 << 28,
    progress: bool = False,
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

    Returns:
        (N, C) float32.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    images, captions = len(part.rows), len(words)
    scores = np.empty((images, captions), np.float32)

    def encode(rows: range) -> Encoded:
        numbers, lengths = pad([words[row] for row in rows])
        sentences = part.sentence_rows(rows)
        sentences = None if sentences is None else sentences.to(device)
        return _needed(model, model.text_encoder(numbers.to(device), lengths.to(device), sentences))

    total = -(-images // block) * -(-captions // block)
    with tqdm(total=total, desc="scoring", unit="block", disable=None if progress else True) as bar:
        first = 0
        while first < captions:
            held: list[tuple[range, Encoded]] = []
            size = 0
            while first < captions and (not held or size < hold_bytes):
                columns = range(first, min(first + block, captions))
                held.append((columns, encode(columns)))
                size += sum(t.nbytes for t in held[-1][1] if t is not None)
                first = columns.stop
            for start in range(0, images, block):
                rows = range(start, min(start + block, images))
                encoded = _needed(model, model.image_encoder(part.regions(rows).to(device)))
                for columns, group in held:
                    found = model.score(encoded, group).float().cpu().numpy()
                    scores[rows.start : rows.stop, columns.start : columns.stop] = found
                    bar.update()
    model.train(was_training)
    return scores


def _needed(model: RetrievalModel, encoded: Encoded) -> Encoded:
    """Without the fragments, where a score only looks at vectors."""
    if model.compares_fragments:
        return encoded
    return encoded._replace(fragments=encoded.unit_vector()[:, None], lengths=None, attention=None)


def table(rows: dict[str, Retrieval]) -> str:
    """The usual table, one line a result, in percent."""
    width = max(len(name) for name in rows)
    head = " " * width + "   image to text          text to image            rSum   median rank"
    names = " " * width + "   " + "   R@1   R@5  R@10" + "   " + "   R@1   R@5  R@10"
    lines = [head, names]
    for name, r in rows.items():
        ways = [
            "".join(f"{value:6.1f}" for value in way) for way in (r.image_to_text, r.text_to_image)
        ]
        medians = " / ".join(f"{m:g}" for m in r.median_ranks)
        lines.append(f"{name:<{width}}   {ways[0]}   {ways[1]}   {r.rsum:7.1f}   {medians}")
    return "\n".join(lines)
