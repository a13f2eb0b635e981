"""Region-word similarity of chosen pairs on the interpreter against the fp64 reference."""

import oracle
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import AttentionErase, cross_attention_pairs, cross_attention_similarity
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.fragment_types import Attend, Fragments, Wanted
from sede_kernels.ops.cross_attention_pairs import cross_attention_pairs_backward

#: (B, N of regions, N of words, R, L, D): either side shared, none, and both padded sizes.
SIZES = {
    "one": (1, 1, 1, 2, 2, 1),
    "images-ask": (2, 1, 3, 7, 4, 19),
    "captions-ask": (2, 2, 1, 36, 3, 33),
    "long": (1, 2, 2, 33, 40, 5),
}
ERASE = {
    "mean": "mean",
    "prob": "prob",
    "topk": AttentionErase(rule="topk", threshold=2),
    "quantile": AttentionErase(rule="quantile", threshold=0.3, keep_min=2),
    "absolute": AttentionErase(rule="absolute", threshold=0.2, renormalize=False),
    "high": AttentionErase(rule="mean", erase="high", keep_min=2),
}
DIRECTIONS = ["t2i", "i2t"]


def sides(size: tuple[int, ...], shortest: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, of_regions, of_words, R, L, D = size
    regions, words = torch.randn(B, of_regions, R, D), torch.randn(B, of_words, L, D)
    if D > 1:
        regions, words = F.normalize(regions, dim=3), F.normalize(words, dim=3)
    r_len = torch.randint(min(shortest, R), R + 1, (B, of_regions))
    return regions, words, r_len, torch.randint(min(shortest, L), L + 1, (B, of_words))


def run(
    backend: str, dtype: torch.dtype, regions: Tensor, words: Tensor, grad: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor]:
    v, e = regions.to(dtype, copy=True), words.to(dtype, copy=True)
    similarity = cross_attention_pairs(
        v.requires_grad_(), e.requires_grad_(), backend=backend, **options
    )
    similarity.backward(grad.to(similarity.dtype))
    return similarity.detach(), v.grad, e.grad


def check(regions: Tensor, words: Tensor, dtype: torch.dtype = torch.float32, **options) -> None:
    grad = torch.randn(regions.shape[0], max(regions.shape[1], words.shape[1]))
    results = run("triton", dtype, regions, words, grad, **options)
    truths = run("reference", torch.float64, regions, words, grad, **options)
    eager = "reference" if dtype == torch.float32 else "torch"  # which computes in fp32
    eagers = run(eager, dtype, regions, words, grad, **options)
    for result, truth, eager in zip(results, truths, eagers, strict=True):
        if truth.norm() > 1e-6:
            oracle.assert_product_within_budget(result, truth, eager, dtype)
        else:  # one fragment only: the cosine is 1 whatever the vectors, and its gradient is 0
            assert (result - truth).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", ["lse", "mean", "max", "sum"])
@pytest.mark.parametrize("vary", [True, False], ids=["lengths", "whole"])
def test_values_and_gradients(size, direction, aggregate, vary) -> None:
    regions, words, r_len, w_len = sides(size)
    lengths = {"region_lengths": r_len, "word_lengths": w_len} if vary else {}
    check(regions, words, direction=direction, aggregate=aggregate, **lengths)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("erase", ERASE.values(), ids=ERASE)
def test_erasing_inside(direction, erase) -> None:
    """Sets of three fragments or more: with fewer, the attention ties exactly."""
    regions, words, r_len, w_len = sides((2, 1, 2, 6, 5, 12), shortest=3)
    lengths = {"region_lengths": r_len, "word_lengths": w_len}
    check(regions, words, direction=direction, erase=erase, **lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision(dtype, direction) -> None:
    regions, words, r_len, w_len = sides((2, 3, 1, 7, 6, 40))
    lengths = {"region_lengths": r_len, "word_lengths": w_len}
    check(regions.to(dtype), words.to(dtype), dtype, direction=direction, **lengths)


def test_fp16_keeps_small_gradients() -> None:
    regions, words, *_ = sides((2, 1, 3, 7, 6, 16))
    results = []
    for factor in (1.0, 2.0**-30):
        grads = cross_attention_pairs_backward(
            torch.full((2, 3), factor), Fragments(regions.half(), words.half()),
            Attend("t2i", 9.0, "lse", 6.0, None), Wanted(True, True), "triton",
        )  # fmt: skip
        results.append([grad / factor for grad in grads])
    for large, small in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_pairs_are_entries_of_all_pairs(direction) -> None:
    regions, words, _, w_len = sides((2, 1, 3, 6, 5, 8))
    whole = cross_attention_similarity(
        regions[:, 0], words.flatten(0, 1), word_lengths=w_len.flatten(), direction=direction
    ).view(2, 2, 3)
    got = cross_attention_pairs(
        regions, words, word_lengths=w_len, direction=direction, backend="triton"
    )
    torch.testing.assert_close(got, whole[range(2), range(2)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padding_may_hold_anything_and_runs_repeat(direction) -> None:
    regions, words, r_len, w_len = sides((2, 1, 3, 5, 6, 12))
    w_len[0, 1] = r_len[1, 0] = 0
    options = {"direction": direction, "region_lengths": r_len, "word_lengths": w_len}
    grad = torch.randn(2, 3)
    clean = run("triton", torch.float32, regions, words, grad, **options)
    for x, lengths in ((regions, r_len), (words, w_len)):
        x[torch.arange(x.shape[2]) >= lengths[..., None]] = torch.nan
    dirty = run("triton", torch.float32, regions, words, grad, **options)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    similarity, d_regions, d_words = clean
    assert not similarity[0, 1].any() and not similarity[1].any()
    assert not d_words[0, 1].any() and not d_words[1].any() and not d_regions[1].any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_nan_stays_with_its_pair(direction) -> None:
    regions, words, *_ = sides((2, 1, 3, 6, 4, 12))
    options = {"direction": direction, "backend": "triton"}
    clean = cross_attention_pairs(regions, words, **options)
    words[1, 2, 0, 3] = torch.nan
    dirty = cross_attention_pairs(regions, words, **options)
    spoilt = torch.zeros(2, 3, dtype=torch.bool)
    spoilt[1, 2] = True
    assert dirty[spoilt].isnan().all()
    assert torch.equal(dirty[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_side_alone(direction) -> None:
    """What the backward leaves out for a side without a gradient is of that side alone."""
    regions, words, *_ = sides((2, 1, 3, 4, 5, 8))
    grad = torch.randn(2, 3)
    _, *both = run("triton", torch.float32, regions, words, grad, direction=direction)
    for side, want in enumerate(both):
        inputs = [regions.clone(), words.clone()]
        inputs[side].requires_grad_()
        cross_attention_pairs(*inputs, direction=direction, backend="triton").backward(grad)
        assert torch.equal(inputs[side].grad, want) and inputs[1 - side].grad is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_extremes(direction) -> None:
    regions, words, *_ = sides((2, 1, 3, 6, 5, 12))
    check(1e3 * regions, 1e-3 * words, direction=direction)
    check(regions, words, direction=direction, smoothing=200.0)
    zero = run("triton", torch.float32, 0 * regions, words, torch.ones(2, 3), direction=direction)
    assert all(torch.isfinite(tensor).all() for tensor in zero)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_empty_and_strided(direction) -> None:
    for shape in ((0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)):
        batch, pairs, most_regions, most_words = shape
        v = torch.randn(batch, 1, most_regions, 8, requires_grad=True)
        e = torch.randn(batch, pairs, most_words, 8, requires_grad=True)
        similarity = cross_attention_pairs(v, e, direction=direction, backend="triton")
        assert torch.equal(similarity, torch.zeros(batch, pairs))
        similarity.sum().backward()
        assert torch.equal(v.grad, torch.zeros_like(v))
        assert torch.equal(e.grad, torch.zeros_like(e))
    base = torch.randn(6, 2, 3, 5)
    regions, words = base.permute(1, 2, 0, 3)[:, :1], base.permute(1, 0, 2, 3)[:, ::2]
    before = base.clone()
    check(regions, words, direction=direction)
    assert torch.equal(base, before)


def test_too_many_fragments() -> None:
    with pytest.raises(BackendUnavailableError, match="at most 64 fragments"):
        cross_attention_pairs(torch.rand(1, 1, 65, 4), torch.rand(1, 2, 2, 4), backend="triton")
