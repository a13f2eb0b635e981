"""Recall at 1, 5 and 10 in both directions, with the chance level beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np
import torch.distributed as dist

from sede_kernels.training.data.precomp import Ints
from sede_kernels.training.files import UserError
from sede_kernels.training.similarities import Similarities

CUTOFFS = (1, 5, 10)


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


def summarize(
    scores: Similarities,
    pairs: Ints,
    folds: int = 1,
    *,
    group: "dist.ProcessGroup | None" = None,
) -> Retrieval:
    """Recalls and median ranks.

    Args:
        scores: of N images with C captions.
        pairs: (P, 2) right (caption, image) pairs.
        folds: cut the images into so many equal runs with their own captions (COCO 1K: 5) and
            average.
        group: process group whose ranks share the work; None for this process alone.

    Raises:
        UserError: the images do not divide into the folds, or a fold has no caption.
    """
    count = scores.shape[0]
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
        block = scores.part(slice(start, start + size), columns) if folds > 1 else scores
        local = np.stack([caption if folds > 1 else inside[:, 0], inside[:, 1] - start], 1)
        found.append(block.ranks(local, group))

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
