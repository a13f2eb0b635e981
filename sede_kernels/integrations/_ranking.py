"""Recall, median and mean rank of a score matrix, as the retrieval code bases report them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sede_kernels.functional.ranks import Comparison, best_right_ranks

Metrics = tuple[float, float, float, float, float]
Ranks = tuple[NDArray[np.float64], NDArray[np.float64]]


def ranks_of(scores: NDArray[Any], each: int) -> tuple[Ranks, Ranks]:
    """(rank from 0 of the best right answer, top answer) of every image and of every caption.

    Captions of image i are the columns ``i each .. (i + 1) each - 1``. A wrong answer that ties
    with the best right one, or a NaN, counts as ahead of it: a collapsed model scores nothing.
    """
    single = scores.dtype in (np.float16, np.float32)
    dtype = torch.float32 if single else torch.float64

    def block(down: slice, across: slice) -> Tensor:
        # A copy: torch takes no negative strides and warns of arrays that are not to be written.
        part = np.array(scores[down, across], np.float32 if single else np.float64, order="C")
        return torch.from_numpy(part)

    def right(down: slice, across: slice) -> tuple[Tensor, Tensor]:
        columns = torch.arange(across.start, across.stop, device="cpu")
        rows = columns // each
        inside = (rows >= down.start) & (rows < down.stop)
        return rows[inside] - down.start, columns[inside] - across.start

    found = best_right_ranks(Comparison(block), right, scores.shape, dtype=dtype)
    images, captions = (ranks.numpy().astype(np.float64) for ranks in found)
    best = scores.argmax(axis=1).astype(np.float64), scores.argmax(axis=0).astype(np.float64)
    return (images, best[0]), (captions, best[1])


def report(ranks: Ranks, return_ranks: bool) -> Metrics | tuple[Metrics, Ranks]:
    """(R@1, R@5, R@10 in percent, median rank, mean rank), ranks from 1; and the ranks."""
    found = ranks[0]
    recalls = [100.0 * float((found < k).mean()) for k in (1, 5, 10)]
    median = float(np.floor(np.median(found)) + 1)
    metrics = (recalls[0], recalls[1], recalls[2], median, float(found.mean()) + 1)
    return (metrics, ranks) if return_ranks else metrics


def numbers(name: str, argument: str, values: ArrayLike) -> NDArray[Any]:
    """An array of numbers; a torch tensor on any device passes."""
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.promote_types(values.dtype, torch.float32))
    found = np.asarray(values)
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name}: {argument} must be an array of numbers, got {found.dtype}.")
    return found


def vectors(name: str, images: ArrayLike, captions: ArrayLike) -> tuple[Tensor, Tensor]:
    """(N, D) images and (C, D) captions in float32."""
    im, s = numbers(name, "images", images), numbers(name, "captions", captions)
    if im.ndim != 2 or s.ndim != 2 or im.shape[1] != s.shape[1]:
        raise ValueError(
            f"{name}: images must be (N, D) and captions (C, D), got {im.shape} and {s.shape}."
        )
    image, caption = (torch.as_tensor(x, dtype=torch.float32, device="cpu") for x in (im, s))
    return image, caption


def _matrix(name: str, sims: ArrayLike) -> tuple[NDArray[Any], int]:
    """(N, C) scores and the captions per image."""
    scores = numbers(name, "sims", sims)
    if scores.ndim != 2 or not scores.size or scores.shape[1] % scores.shape[0]:
        raise ValueError(
            f"{name}: sims must be (N images, m N captions) with the m captions of an image "
            f"side by side, got {scores.shape}."
        )
    return scores, scores.shape[1] // scores.shape[0]


def image_to_text(
    name: str, sims: ArrayLike, return_ranks: bool
) -> Metrics | tuple[Metrics, Ranks]:
    """Images as queries of (N, m N) scores."""
    scores, each = _matrix(name, sims)
    return report(ranks_of(scores, each)[0], return_ranks)


def text_to_image(
    name: str, sims: ArrayLike, return_ranks: bool
) -> Metrics | tuple[Metrics, Ranks]:
    """Captions as queries of (N, m N) scores."""
    scores, each = _matrix(name, sims)
    return report(ranks_of(scores, each)[1], return_ranks)
