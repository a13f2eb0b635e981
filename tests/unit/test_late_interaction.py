"""``attention="max"``: late interaction of all pairs and of chosen ones."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from sede_kernels import (
    BackendUnavailableError,
    CrossAttentionSimilarity,
    cross_attention_pairs,
    cross_attention_similarity,
)
from sede_kernels.backends.torch import late_interaction as backend
from sede_kernels.fragment_types import Fragments, LateInteraction
from sede_kernels.ops.late_interaction import late_interaction, late_interaction_pairs
from sede_kernels.testing import assert_within_budget

AGGREGATES = ["lse", "mean", "max", "sum"]
NAMES = ["reference", "torch", "auto"]


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Four images, three captions; one image and one caption are empty, padding is NaN."""
    regions, words = torch.randn(4, 5, 6).to(dtype), torch.randn(3, 7, 6).to(dtype)
    lengths = {
        "region_lengths": torch.tensor([5, 0, 1, 3]),
        "word_lengths": torch.tensor([7, 2, 0]),
    }
    for sets, counts in ((regions, lengths["region_lengths"]), (words, lengths["word_lengths"])):
        sets[torch.arange(sets.shape[1]) >= counts[:, None]] = torch.nan
    return regions.requires_grad_(), words.requires_grad_(), lengths


def late(regions: Tensor, words: Tensor, **options: object) -> Tensor:
    return cross_attention_similarity(regions, words, attention="max", **options)


@pytest.mark.parametrize("name", NAMES)
def test_values_by_hand(name) -> None:
    documents = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [0.0, -3.0]]])
    queries = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, -1.0]]])
    # Largest dot products: 1, 2, 0 with the first document and 0, -1, 3 with the second.
    for aggregate, want in (("sum", [[3.0], [2.0]]), ("max", [[2.0], [3.0]])):
        got = late(documents, queries, aggregate=aggregate, backend=name)
        assert torch.equal(got, torch.tensor(want))
    mirrored = late(queries, documents, aggregate="sum", direction="i2t", backend=name)
    assert torch.equal(mirrored, torch.tensor([[3.0, 2.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_colbert_of_queries_and_documents(name) -> None:
    """einsum, largest document token, sum over the query's tokens; masked tokens count as 0."""
    queries, documents = torch.randn(3, 4, 8), torch.randn(5, 6, 8)
    scores = torch.einsum("ash,bth->abst", queries, documents)
    got = late(documents, queries, aggregate="sum", backend=name).T
    torch.testing.assert_close(got, scores.amax(-1).sum(-1))
    query_counts, counts = torch.tensor([4, 1, 3]), torch.tensor([6, 5, 3, 4, 6])
    scores = scores * (torch.arange(4) < query_counts[:, None])[:, None, :, None]
    scores = scores * (torch.arange(6) < counts[:, None])[None, :, None, :]
    best = torch.where(torch.arange(6) < counts[:, None, None], scores, -torch.inf).amax(-1)
    got = late(
        documents, queries, region_lengths=counts, word_lengths=query_counts, aggregate="sum",
        backend=name,
    ).T  # fmt: skip
    torch.testing.assert_close(got, best.sum(-1))
    # A padded token never wins here; with products masked to 0 it does where all others are below.
    assert (scores.amax(-1).sum(-1) - got).min() >= -1e-5


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_all_pairs_against_the_reference(direction, aggregate, monkeypatch) -> None:
    regions, words, lengths = problem()
    options = {"direction": direction, "aggregate": aggregate, **lengths}
    want = late(regions, words, backend="reference", **options)
    weight = torch.randn(4, 3, dtype=torch.float64)
    exact = torch.autograd.grad((want * weight).sum(), [regions, words])
    for elements in (1 << 21, 40):
        monkeypatch.setattr(backend, "_BLOCK_ELEMENTS", elements)
        got = late(regions, words, backend="torch", **options)
        torch.testing.assert_close(got, want)
        assert (got[1] == 0).all()
        assert (got[:, 2] == 0).all()
        grads = torch.autograd.grad((got * weight).sum(), [regions, words])
        for one, truth in zip(grads, exact, strict=True):
            torch.testing.assert_close(one, truth)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_chosen_pairs_are_those_of_all_pairs(direction, aggregate) -> None:
    regions, words, lengths = problem()
    options = {"direction": direction, "aggregate": aggregate, "attention": "max"}
    every = cross_attention_similarity(regions, words, **options, **lengths)
    want = torch.autograd.grad(every.square().sum(), [regions, words])
    beside = {
        "region_lengths": lengths["region_lengths"][:, None],
        "word_lengths": lengths["word_lengths"].expand(4, -1),
    }
    for name in NAMES:
        got = cross_attention_pairs(
            regions[:, None], words.expand(4, -1, -1, -1), **options, **beside, backend=name
        )
        torch.testing.assert_close(got, every)
        grads = torch.autograd.grad(got.square().sum(), [regions, words])
        for one, truth in zip(grads, want, strict=True):
            torch.testing.assert_close(one, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_budget_of_the_dtypes(dtype) -> None:
    regions, words = torch.randn(3, 5, 16).to(dtype), torch.randn(4, 6, 16).to(dtype)

    def run(name: str, of: torch.dtype) -> list[Tensor]:
        sides = [t.to(of).requires_grad_() for t in (regions, words)]
        found = late(*sides, aggregate="sum", backend=name)
        return [found.detach(), *torch.autograd.grad(found.sum(), sides)]

    eager = [t.to(dtype) for t in run("reference", torch.float32)]
    for got, exact, plain in zip(
        run("torch", dtype), run("reference", torch.float64), eager, strict=True
    ):
        assert_within_budget(got, exact, plain, dtype)
    assert run("torch", dtype)[0].dtype == torch.float32
    assert run("torch", dtype)[1].dtype == dtype


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_gradcheck(aggregate) -> None:
    regions, words = (
        torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    for direction in ("t2i", "i2t"):
        options = {"aggregate": aggregate, "direction": direction, "attention": "max"}
        assert torch.autograd.gradcheck(
            lambda a, b, o=options: cross_attention_similarity(a, b, **o), (regions, words)
        )
        assert torch.autograd.gradcheck(
            lambda a, b, o=options: cross_attention_pairs(a[:, None], b[:, None], **o),
            (regions, words),
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_first_of_equal_sources_gets_the_gradient(name) -> None:
    regions = torch.tensor([[[1.0, 0.0], [1.0, 5.0], [0.0, 7.0]]], requires_grad=True)
    words = torch.tensor([[[2.0, 0.0]]])
    for call in (
        late(regions, words, aggregate="sum", backend=name),
        cross_attention_pairs(
            regions[:, None], words[:, None], attention="max", aggregate="sum", backend=name
        ),
    ):
        (grad,) = torch.autograd.grad(call.sum(), regions)
        assert torch.equal(grad, torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]))


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_stays_in_its_pairs(name) -> None:
    regions, words = torch.randn(3, 4, 5), torch.randn(2, 6, 5)
    regions[1, 2] = torch.nan
    got = late(regions, words, backend=name)
    assert got[1].isnan().all()
    assert torch.equal(got[::2], late(regions[::2], words, backend=name))


@pytest.mark.parametrize("shapes", [(0, 3, 2, 4), (3, 0, 2, 4), (3, 2, 0, 4), (3, 2, 2, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_gives_zeros(name, shapes) -> None:
    images, fragments, captions, length = shapes
    regions = torch.randn(images, fragments, 5, requires_grad=True)
    words = torch.randn(captions, length, 5, requires_grad=True)
    found = late(regions, words, backend=name)
    assert torch.equal(found, torch.zeros(images, captions))
    assert all((g == 0).all() for g in torch.autograd.grad(found.sum(), [regions, words]))


def test_compiled_autocast_and_as_a_class() -> None:
    regions, words = torch.randn(3, 5, 8, requires_grad=True), torch.randn(4, 6, 8)
    module = CrossAttentionSimilarity(attention="max", aggregate="sum")
    want = late(regions, words, aggregate="sum")
    assert torch.equal(module(regions, words), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(regions, words), want)

    def step(regions: Tensor, words: Tensor) -> Tensor:
        pairs = cross_attention_pairs(regions[:, None], words[:3, None], attention="max")
        return module(regions, words).sum() + pairs.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, truth = (torch.autograd.grad(run(regions, words), regions)[0] for run in (compiled, step))
    torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("name", ["torch", "cpu"])
def test_opcheck(name) -> None:
    regions, words, lengths = problem(torch.float32)
    sides = Fragments(regions.detach().nan_to_num().requires_grad_(), words.detach().nan_to_num(),
                      *lengths.values())  # fmt: skip
    how = LateInteraction("t2i", "lse", 6.0)
    opcheck(torch.ops.sede.late_interaction.default, late_interaction.flat(sides, how, True, name))
    beside = Fragments(*(side[:3, None] for side in sides))
    flat = late_interaction_pairs.flat(beside, how, True, name)
    opcheck(torch.ops.sede.late_interaction_pairs.default, flat)


BAD = [
    ({"smoothing": 4.0}, ValueError, "no softmax to smooth and nothing to erase"),
    ({"erase": "mean"}, ValueError, "got smoothing=9.0 and erase='mean'; leave both out"),
    ({"attention": "hard"}, ValueError, "attention must be one of softmax, max, got 'hard'"),
    ({"backend": "triton"}, BackendUnavailableError, "backend 'triton' was asked for but"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[m for *_, m in BAD])
def test_what_is_refused(change, error, message) -> None:
    sets = torch.zeros(2, 3, 4)
    with pytest.raises(error, match=message):
        cross_attention_similarity(sets, sets, **{"attention": "max", **change})
    with pytest.raises(error, match=message):
        cross_attention_pairs(sets[:, None], sets[:, None], **{"attention": "max", **change})
    if "backend" not in change:
        with pytest.raises(error, match=message):
            CrossAttentionSimilarity(**{"attention": "max", **change})
