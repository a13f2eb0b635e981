"""recall_at_k against a comparison of all scores: any ids, layouts, dtypes and sizes, with ties."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sede_kernels import recall_at_k
from sede_kernels.functional import ranks
from tests.property import cases

pytestmark = pytest.mark.skipif(cases.INTERPRETING, reason="ranks have no Triton kernel")

KINDS = ("captions", "classes", "strangers", "pairs")


def ids_of(rng: Any, kind: str, rows: int, columns: int) -> tuple[Any, Any]:
    if kind == "pairs":
        return rng.permutation(rows), rng.permutation(columns)
    if kind == "captions":
        return rng.permutation(rows), rng.integers(0, rows, size=columns)
    least, most = (0, 3) if kind == "classes" else (-1, 2 * rows)
    return tuple(rng.integers(least, most, size=count) for count in (rows, columns))


def percents(scores: Tensor, right: Tensor, cutoffs: tuple[int, ...]) -> tuple[Any, float, int]:
    """Recalls, median and number of the rows that have a right answer."""
    asking = right.any(dim=1)
    scores, right = scores[asking], right[asking]
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)  # NaN stays
    rank = (~(scores < best) & ~right).sum(dim=1)
    recalls = tuple(100.0 * float((rank < k).double().mean()) for k in cutoffs)
    return recalls, float(np.floor(np.median(rank.numpy())) + 1), len(rank)


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """Small whole numbers, whose products are exact in every dtype, so that ties are ties."""
    rng = np.random.default_rng(draw(cases.seeds))
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    dim, levels = draw(st.integers(0, 33)), draw(st.sampled_from([0, 1, 3]))
    sides = []
    for count in (rows, columns):
        values = torch.from_numpy(rng.integers(-levels, levels + 1, size=(count, dim))).double()
        if draw(st.booleans()) and dim:
            values[rng.integers(count), 0] = draw(st.sampled_from([torch.nan, 100.0, -100.0]))
        values = values.to(draw(st.sampled_from(cases.FLOATS)))
        layouts = [layout for layout in cases.LAYOUTS if layout != "one row repeated"]
        sides.append(cases.laid_out(values, draw(st.sampled_from(layouts))))
    image_ids, text_ids = ids_of(rng, draw(st.sampled_from(KINDS)), rows, columns)
    if not np.intersect1d(image_ids[image_ids >= 0], text_ids).size:
        image_ids[0] = text_ids[0] = 0
    return {
        "images": sides[0],
        "texts": sides[1],
        "image_ids": torch.from_numpy(np.asarray(image_ids)),
        "text_ids": torch.from_numpy(np.asarray(text_ids)),
    }


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@given(problem=problems(), block=st.sampled_from([(1024, 2048), (5, 7), (64, 150)]))
def test_recall_at_k(native: bool, problem: dict[str, Tensor], block: tuple[int, int]) -> None:
    cutoffs = (1, 3, 20)
    with pytest.MonkeyPatch.context() as patch, mock.patch.object(ranks, "BLOCK", block):
        patch.setenv("SEDE_BACKEND", "auto" if native else "torch")
        found = recall_at_k(**problem, k=cutoffs)
    images, texts = problem["images"].double(), problem["texts"].double()
    scores = images @ texts.T
    same = problem["image_ids"].unsqueeze(1) == problem["text_ids"]
    right = same & (problem["text_ids"] != -1)
    ways = percents(scores, right, cutoffs), percents(scores.T, right.T, cutoffs)
    assert found[:2] == (ways[0][0], ways[1][0])
    assert found.median_ranks == (ways[0][1], ways[1][1])
    assert found.queries == (ways[0][2], ways[1][2])
