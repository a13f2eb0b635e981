"""``attention="max"`` beside PyLate's own scores: values, gradients, masks and pairs."""

import sys
import types
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sede_kernels import cross_attention_pairs, cross_attention_similarity

from .conftest import find_package


@pytest.fixture(scope="module")
def scores() -> ModuleType:
    """PyLate's scores without the rest of it, which wants search engines."""
    import importlib

    folder = find_package("pylate")
    for name in ("pylate", "pylate.scores", "pylate.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(folder, *name.split(".")[1:]))]
        sys.modules[name] = package
    yield importlib.import_module("pylate.scores.colbert")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pylate"]:
        del sys.modules[name]


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    queries = torch.randn(5, 7, 16, generator=drawn, dtype=torch.float64)
    documents = torch.randn(4, 9, 16, generator=drawn, dtype=torch.float64)
    return queries.requires_grad_(), documents.requires_grad_()


@pytest.mark.parametrize("seed", range(3))
def test_scores_and_gradients_are_those_of_pylate(scores, seed) -> None:
    queries, documents = problem(seed)
    theirs = scores.colbert_scores(queries, documents)
    ours = cross_attention_similarity(documents, queries, attention="max", aggregate="sum").T
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    weight = torch.rand_like(theirs)
    wanted = torch.autograd.grad((theirs * weight).sum(), (queries, documents))
    found = torch.autograd.grad((ours * weight).sum(), (queries, documents))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_lengths(scores, seed) -> None:
    """With a token above 0 for each query token, which its 0 of padding does not beat."""
    queries, documents = (side.detach().abs() for side in problem(seed))
    counts = torch.tensor([7, 3, 1, 5, 6]), torch.tensor([9, 2, 4, 1])
    masks = [
        (torch.arange(side.shape[1]) < count[:, None]).double()
        for side, count in zip((queries, documents), counts, strict=True)
    ]
    theirs = scores.colbert_scores(queries, documents, *masks)
    ours = cross_attention_similarity(
        documents,
        queries,
        word_lengths=counts[0],
        region_lengths=counts[1],
        attention="max",
        aggregate="sum",
    ).T
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_pairs_are_those_of_pylate(scores) -> None:
    queries, documents = problem(3)
    theirs = scores.colbert_scores_pairwise(queries[:4], documents)
    ours = cross_attention_pairs(
        documents[:, None], queries[:4, None], attention="max", aggregate="sum"
    )
    torch.testing.assert_close(ours.squeeze(1), theirs, rtol=1e-12, atol=0)
