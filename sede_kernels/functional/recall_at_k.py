"""Recall at k of images and texts by their embeddings, for sets of any size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels.checks import (
    check_count,
    check_float_matrix,
    check_ids,
    check_same_device,
    shape_of,
)
from sede_kernels.functional import ranks as blocks
from sede_kernels.precision import full_precision
from sede_kernels.types import result_dtype

NAME = "recall_at_k"


class Recalls(NamedTuple):
    """What ``recall_at_k`` finds.

    Attributes:
        image_to_text: for each k, percent of the images that find one of their texts in the first
            k; images without a text do not ask.
        text_to_image: the same for the texts.
        median_ranks: median rank of the best right answer, both ways, counted from 1.
        queries: number of images and of texts that asked.
        k: the cutoffs.
    """

    image_to_text: tuple[float, ...]
    text_to_image: tuple[float, ...]
    median_ranks: tuple[float, float]
    queries: tuple[int, int]
    k: tuple[int, ...]

    @property
    def rsum(self) -> float:
        """Sum of all recalls: at most 600 for three cutoffs."""
        return sum(self.image_to_text) + sum(self.text_to_image)


def recall_at_k(
    images: Tensor,
    texts: Tensor,
    *,
    image_ids: Tensor,
    text_ids: Tensor,
    k: int | Sequence[int] = (1, 5, 10),
    group: "dist.ProcessGroup | None" = None,
) -> Recalls:
    """Recall at k and median ranks in both directions, without the N x M scores in memory.

    An image and a text belong together where their ids are equal. The rank of a query is the number
    of wrong answers whose similarity is not below that of its best right one, plus 1: a tie counts
    as ahead, and so does a NaN, so a collapsed model finds nothing.

    Args:
        images: (N, D) float32, bfloat16, float16 or float64, unit length where the similarity is
            to be a cosine.
        texts: (M, D) on the device of ``images``.
        image_ids: (N,) integers >= 0 naming what each image is of; a negative one belongs to
            nothing.
        text_ids: (M,) the same for the texts.
        k: the cutoffs, integers >= 1.
        group: process group whose ranks share the work; each brings all the embeddings
            (``sede_kernels.distributed.gather_keys`` collects them). None: this process alone, and
            no collective.

    Returns:
        ``Recalls``: percents of both directions, ``rsum``, median ranks and numbers of queries.

    Raises:
        ValueError, TypeError: one sentence on what was expected and what came; also where no image
            has a text.

    Cost:
        2NMD FLOPs for both directions, in float32 (float64 for float64 input); on a CPU native
        kernels compare in the same pass, unless ``SEDE_BACKEND`` names another. Memory: a copy of
        each side that is not in the order of its ids, O(N + M), and some 30 MB. Reads the result
        on the host.

    Gradients:
        None.

    Source:
        Recall at k as image-text retrieval reports it; docs/method.md.

    Example:
        >>> ids = torch.arange(3)
        >>> found = recall_at_k(torch.eye(3), torch.eye(3), image_ids=ids, text_ids=ids, k=1)
        >>> found.image_to_text, found.rsum
        ((100.0,), 200.0)
    """
    check_float_matrix(NAME, "images", images)
    check_float_matrix(NAME, "texts", texts)
    if texts.shape[1] != images.shape[1]:
        raise ValueError(
            f"{NAME}: texts must be (M, {images.shape[1]}) to match images, got {shape_of(texts)}."
        )
    check_same_device(NAME, images, texts=texts, image_ids=image_ids, text_ids=text_ids)
    cutoffs = _cutoffs(k)
    left, left_ids = _by_id("image_ids", images, image_ids)
    right, right_ids = _by_id("text_ids", texts, text_ids)
    dtype = torch.promote_types(result_dtype(images), result_dtype(texts))
    with full_precision(images.device.type):
        ranks = blocks.best_right_ranks(
            blocks.dot_products(left, right, dtype),
            _same_ids(left_ids, right_ids),
            (images.shape[0], texts.shape[0]),
            device=images.device,
            dtype=dtype,
            block=blocks.BLOCK,
            group=group,
        )
    return _summary(ranks, cutoffs)


def _cutoffs(k: int | Sequence[int]) -> tuple[int, ...]:
    values = tuple(k) if isinstance(k, Sequence) else (k,)
    if not values:
        raise ValueError(f"{NAME}: k must hold at least one cutoff, got none.")
    return tuple(check_count(NAME, "k", value, least=1) for value in values)


def _by_id(name: str, rows: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows and ids in the order of the ids, so that right answers lie in few blocks."""
    found = check_ids(NAME, name, ids, rows.shape[0])
    if found is None:
        raise TypeError(f"{NAME}: {name} must be a torch.Tensor of integers, got None.")
    rows = rows.detach()
    if bool((found[1:] >= found[:-1]).all()):
        return rows, found
    ordered, order = found.sort(stable=True)
    return rows[order], ordered


def _same_ids(left: Tensor, right: Tensor) -> blocks.Right:
    """The right answers of a block; both sides in ascending order."""
    spans = []
    for ids, size in zip((left.cpu(), right.cpu()), blocks.BLOCK, strict=True):
        parts = torch.split(ids, size)
        spans.append([(int(part[0]), int(part[-1])) for part in parts if len(part)])

    def inside(rows: slice, columns: slice) -> tuple[Tensor, Tensor] | None:
        top, bottom = spans[0][rows.start // blocks.BLOCK[0]]
        least, most = spans[1][columns.start // blocks.BLOCK[1]]
        if most < max(top, 0) or bottom < max(least, 0):
            return None
        mine, others = left[rows], right[columns]
        first = torch.searchsorted(others, mine)
        found = torch.searchsorted(others, mine, right=True) - first
        found[mine < 0] = 0
        total = int(found.sum())
        if not total:
            return None
        row = torch.repeat_interleave(found, output_size=total)
        # Of all pairs in a row: the first ones before its own.
        shift = first - (found.cumsum(0) - found)
        return row, torch.arange(total, device=row.device) + shift[row]

    return inside


def _summary(ranks: tuple[Tensor, Tensor], cutoffs: tuple[int, ...]) -> Recalls:
    asked = [way[way >= 0].to("cpu") for way in ranks]
    if not all(len(way) for way in asked):
        raise ValueError(
            f"{NAME}: no image has the id of a text; pass ids that name what both are of."
        )
    recalls = [tuple(100.0 * float((way < k).double().mean()) for k in cutoffs) for way in asked]
    medians = [_median(way) for way in asked]
    return Recalls(
        recalls[0], recalls[1], (medians[0], medians[1]), (len(asked[0]), len(asked[1])), cutoffs
    )


def _median(ranks: Tensor) -> float:
    """From 1, rounded down between two."""
    ordered = ranks.sort().values
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return float((low + high) // 2 + 1)
