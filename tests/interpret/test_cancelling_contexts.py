"""Region-word similarity where attended vectors cancel, on the interpreter against fp64."""

import pytest
import torch
from torch import Tensor

from sede_kernels import AttentionErase, cross_attention_pairs, cross_attention_similarity
from sede_kernels.backends.triton import cross_attention, pair_launches
from sede_kernels.testing import assert_within_budget

DIRECTIONS = ["t2i", "i2t"]


def centred(R: int, L: int, dim: int, direction: str) -> tuple[Tensor, Tensor]:
    """Two images and three captions whose sources add up to nothing."""
    regions, words = torch.randn(2, R, dim), torch.randn(3, L, dim)
    sources = regions if direction == "t2i" else words
    sources -= sources.mean(dim=1, keepdim=True)
    return regions, words


def run(which: str, backend: str, dtype: torch.dtype, regions: Tensor, words: Tensor, **options):
    v, e = (x.to(dtype, copy=True).requires_grad_() for x in (regions, words))
    if which == "pairs":
        if "word_lengths" in options:
            options["word_lengths"] = options["word_lengths"].expand(2, -1)
            options["region_lengths"] = options["region_lengths"].unsqueeze(1)
        e_sets = e.unsqueeze(0).expand(2, -1, -1, -1)
        out = cross_attention_pairs(v.unsqueeze(1), e_sets, backend=backend, **options)
    else:
        out = cross_attention_similarity(v, e, backend=backend, **options)
    weight = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), [v, e])


def check(
    which: str, regions: Tensor, words: Tensor, dtype: torch.dtype = torch.float32, **options
) -> None:
    results = run(which, "triton", dtype, regions, words, **options)
    truths = run(which, "reference", torch.float64, regions, words, **options)
    eager = "reference" if dtype == torch.float32 else "torch"  # which computes in fp32
    eagers = run(which, eager, dtype, regions, words, **options)
    for result, truth, yardstick in zip(results, truths, eagers, strict=True):
        assert_within_budget(result, truth, yardstick, dtype)


@pytest.mark.parametrize("which", ["all", "pairs"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("smoothing", [1e-2, 1.0])
def test_contexts_that_cancel_keep_their_digits(smoothing, direction, which) -> None:
    sides = centred(12, 5, 40, direction)
    check(which, *sides, smoothing=smoothing, direction=direction, aggregate="mean")


@pytest.mark.parametrize("which", ["all", "pairs"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_inputs(dtype, direction, which) -> None:
    """A context of a hundredth of its sources, whose attention does not fit a half type."""
    regions, words = (x.to(dtype) for x in centred(12, 5, 40, direction))
    check(which, regions, words, dtype, smoothing=1e-2, direction=direction)


@pytest.mark.parametrize("which", ["all", "pairs"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_with_lengths_and_erasing(direction, which) -> None:
    regions, words = torch.randn(2, 6, 12), torch.randn(3, 5, 12)
    sources, lengths = (
        (regions, torch.tensor([6, 4])) if direction == "t2i" else (words, torch.tensor([5, 0, 3]))
    )
    for row, length in zip(sources, lengths.tolist(), strict=True):
        row[:length] -= row[:length].mean(dim=0)
    check(
        which,
        regions,
        words,
        direction=direction,
        smoothing=0.1,
        erase=AttentionErase(rule="absolute", threshold=0.0),
        region_lengths=torch.tensor([6, 4]),
        word_lengths=torch.tensor([5, 0, 3]),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("smoothing", [0.1, 9.0])
def test_vectors_of_few_elements(smoothing, dim, direction) -> None:
    regions, words = torch.randn(2, 33, dim), torch.randn(3, 12, dim)
    check("all", regions, words, smoothing=smoothing, direction=direction, aggregate="mean")


@pytest.mark.parametrize("which", ["all", "pairs"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_vectors_of_one_element_have_cosines_of_one(direction, which) -> None:
    regions, words = torch.randn(2, 36, 1), torch.randn(3, 12, 1)
    options = {"direction": direction, "smoothing": 9.0, "aggregate": "mean"}
    got, *_ = run(which, "triton", torch.float32, regions, words, **options)
    want, *_ = run(which, "reference", torch.float64, regions, words, **options)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-7)


@pytest.mark.parametrize("which", ["all", "pairs"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_single_query_and_strong_smoothing(direction, which) -> None:
    """The norm over one query takes away nearly all of the attention's gradient."""
    regions, words = torch.randn(2, 6, 12), torch.randn(3, 5, 12)
    one = (regions, words[:, :1]) if direction == "t2i" else (regions[:, :1], words)
    check(which, *one, direction=direction, smoothing=200.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_only_what_cancels_is_computed_again(direction, monkeypatch) -> None:
    """One set of sources is centred: its pairs are marked, in chunks of the backward as well."""
    regions, words = torch.randn(2, 6, 12) + 1, torch.randn(3, 5, 12) + 1
    sources = regions if direction == "t2i" else words
    sources[1] -= sources[1].mean(dim=0)
    marks = []
    launch = pair_launches.Pairs.launch

    def watched(call, *arguments):
        marks.append(call.lost.clone())
        launch(call, *arguments)

    monkeypatch.setattr(pair_launches.Pairs, "launch", watched)
    monkeypatch.setattr(cross_attention, "_CHUNK_ELEMENTS", 1)
    check("all", regions, words, direction=direction, smoothing=1e-2)
    want = torch.zeros(marks[0].shape, dtype=torch.int8)
    want[1] = 1
    assert torch.equal(marks[0], want)
    assert torch.equal(torch.cat(marks[1:]), want)
