"""Region-word similarity on the interpreter against the fp64 reference, gradients included."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import AttentionErase, cross_attention_similarity
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.fragment_types import Attend, Fragments, Wanted
from sede_kernels.ops.cross_attention import cross_attention_backward
from sede_kernels.testing import assert_within_budget

DIRECTIONS = ["t2i", "i2t"]
AGGREGATES = ["lse", "mean", "max", "sum"]
#: (images, captions, regions, words, dim): one, primes, one set and several sets to a tile.
SIZES = {
    "one": (1, 1, 1, 1, 1),
    "packed": (2, 7, 5, 3, 19),
    "dense": (4, 5, 36, 18, 33),
}
ERASE = {
    "mean": "mean",
    "prob": "prob",
    "topk": AttentionErase(rule="topk", threshold=2),
    "quantile": AttentionErase(rule="quantile", threshold=0.3, keep_min=2),
    "relative": AttentionErase(rule="relative", threshold=0.5),
    "absolute": AttentionErase(rule="absolute", threshold=0.2, renormalize=False),
    "high": AttentionErase(rule="mean", erase="high", keep_min=2),
}


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1) if shape[-1] > 1 else torch.randn(*shape)


def run(
    backend: str, dtype: torch.dtype, regions: Tensor, words: Tensor, grad: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor]:
    v, e = regions.to(dtype, copy=True), words.to(dtype, copy=True)
    similarity = cross_attention_similarity(
        v.requires_grad_(), e.requires_grad_(), backend=backend, **options
    )
    similarity.backward(grad.to(similarity.dtype))
    return similarity.detach(), v.grad, e.grad


def check(regions: Tensor, words: Tensor, dtype: torch.dtype = torch.float32, **options) -> None:
    """Against fp64, but for gradients of zero sources: 1e8 times a sum that cancels to nothing."""
    grad = torch.randn(regions.shape[0], words.shape[0])
    results = run("triton", dtype, regions, words, grad, **options)
    truths = run("reference", torch.float64, regions, words, grad, **options)
    eagers = run("torch", dtype, regions, words, grad, **options)
    source = int(options.get("direction") == "i2t")
    zero = ((regions, words)[source] == 0).all(dim=2)
    for tensors in (results, truths, eagers):
        assert torch.isfinite(tensors[1 + source][zero]).all()
        tensors[1 + source][zero] = 0.0
    for result, truth, eager in zip(results, truths, eagers, strict=True):
        if truth.norm() > 1e-6:
            assert_within_budget(result, truth, eager, dtype)
        else:  # one fragment only: the cosine is 1 whatever the vectors, and its gradient is 0
            assert (result - truth).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_aggregates(size: str, direction: str, aggregate: str) -> None:
    images, captions, most_regions, most_words, dim = SIZES[size]
    check(
        unit(images, most_regions, dim),
        unit(captions, most_words, dim),
        direction=direction,
        aggregate=aggregate,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("erase", ERASE)
def test_erasing_inside_with_lengths(direction: str, aggregate: str, erase: str) -> None:
    """Sets of three fragments or more, or none: with fewer, the attention ties exactly."""
    check(
        unit(2, 6, 12),
        unit(3, 5, 12),
        direction=direction,
        aggregate=aggregate,
        erase=ERASE[erase],
        region_lengths=torch.tensor([6, 0] if direction == "t2i" else [6, 4]),
        word_lengths=torch.tensor([5, 0, 3]),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_buckets_of_lengths(direction: str) -> None:
    """Sets on both sides of every limit that these sizes have, the longest ones alone."""
    regions, words = unit(4, 35, 7), unit(7, 40, 7)
    check(
        regions,
        words,
        direction=direction,
        smoothing=20.0,
        region_lengths=torch.tensor([35, 32, 33, 7]),
        word_lengths=torch.tensor([16, 40, 17, 32, 33, 2, 31]),
    )
    check(regions[:2], words, direction=direction, word_lengths=torch.full((7,), 16))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_36_regions_in_full_float32(direction: str) -> None:
    """The usual detector output at torch's default precision, as sources and as queries."""
    assert torch.get_float32_matmul_precision() == "highest"
    check(unit(2, 36, 20), unit(3, 33, 20), direction=direction, erase="prob")


def test_sets_are_dense_only_beside_32_columns() -> None:
    """64 columns with dense sets are not in the resource report: they spill."""
    from sede_kernels.backends.triton.attention_sets import packing

    assert packing(36, 64, 128, 32, vary=False) == (3, 36)
    assert packing(18, 32, 128, 32, vary=False) == (4, 32)  # not in the report when dense
    assert packing(36, 64, 64, 64, vary=False) == (1, 64)
    assert packing(36, 64, 128, 32, vary=True) == (2, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision(dtype: torch.dtype, direction: str) -> None:
    regions, words = unit(3, 7, 40).to(dtype), unit(5, 6, 40).to(dtype)
    check(regions, words, dtype, direction=direction)
    check(regions, words, dtype, direction=direction, erase=ERASE["topk"])


def test_fp16_keeps_small_gradients() -> None:
    """Below the smallest fp16 number the gradient of a pair is still there in fp32."""
    regions, words = unit(3, 7, 16).half(), unit(5, 6, 16).half()
    v, e = regions.requires_grad_(), words.requires_grad_()
    results = []
    for factor in (1.0, 2.0**-30):
        grads = cross_attention_backward(
            torch.full((3, 5), factor), torch.zeros(15), Fragments(v, e),
            Attend("t2i", 9.0, "lse", 6.0, None), Wanted(True, True), "triton",
        )  # fmt: skip
        results.append([grad / factor for grad in grads])
    for large, small in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_side_alone(direction: str) -> None:
    """What the backward leaves out for a side without a gradient is of that side alone."""
    regions, words, grad = unit(2, 4, 8), unit(3, 4, 8), torch.randn(2, 3)
    _, *both = run("triton", torch.float32, regions, words, grad, direction=direction)
    for side, want in enumerate(both):
        inputs = [regions.clone(), words.clone()]
        inputs[side].requires_grad_()
        similarity = cross_attention_similarity(*inputs, direction=direction, backend="triton")
        similarity.backward(grad)
        assert torch.equal(inputs[side].grad, want) and inputs[1 - side].grad is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_chunks_of_the_backward_add_up(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sede_kernels.backends.triton import cross_attention

    regions, words, grad = unit(3, 5, 8), unit(5, 4, 8), torch.randn(3, 5)
    options = {
        "direction": direction,
        "region_lengths": torch.tensor([2, 5, 3]),
        "word_lengths": torch.tensor([4, 0, 1, 3, 2]),
    }
    whole = run("triton", torch.float32, regions, words, grad, **options)
    again = run("triton", torch.float32, regions, words, grad, **options)
    monkeypatch.setattr(cross_attention, "_CHUNK_ELEMENTS", 1)
    parts = run("triton", torch.float32, regions, words, grad, **options)
    for first, second, part in zip(whole, again, parts, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(part, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_extremes(direction: str) -> None:
    """Huge, tiny and zero vectors, and a smoothing that underflows a static exponent."""
    regions, words = 1e3 * unit(2, 6, 12), unit(3, 5, 12)
    words[0] *= 1e-3
    words[1, 2] = 0.0
    regions[1, 1] = 0.0
    check(regions, words, direction=direction)
    check(unit(2, 6, 12), unit(3, 5, 12), direction=direction, smoothing=200.0)
    zero = run("triton", torch.float32, 0 * regions, words, torch.ones(2, 3), direction=direction)
    assert all(torch.isfinite(tensor).all() for tensor in zero)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", ["lse", "max"])
def test_nan_stays_with_its_set(direction: str, aggregate: str) -> None:
    regions, words = unit(3, 6, 12), unit(5, 4, 12)
    options = {"direction": direction, "aggregate": aggregate, "backend": "triton"}
    clean = cross_attention_similarity(regions, words, **options)
    regions[1, 2, 1] = torch.nan
    words[4, 0, 0] = torch.nan
    dirty = cross_attention_similarity(regions, words, **options)
    spoilt = torch.zeros(3, 5, dtype=torch.bool)
    spoilt[1], spoilt[:, 4] = True, True
    assert dirty[spoilt].isnan().all()
    assert torch.equal(dirty[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_padding_may_hold_anything(direction: str) -> None:
    regions, words, grad = unit(3, 6, 12), unit(5, 5, 12), torch.randn(3, 5)
    options = {
        "direction": direction,
        "region_lengths": torch.tensor([6, 0, 4]),
        "word_lengths": torch.tensor([1, 5, 0, 3, 4]),
    }
    clean = run("triton", torch.float32, regions, words, grad, **options)
    for sets, lengths in ((regions, "region_lengths"), (words, "word_lengths")):
        sets[torch.arange(sets.shape[1]) >= options[lengths][:, None]] = torch.nan
    dirty = run("triton", torch.float32, regions, words, grad, **options)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0)], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_empty(shape: tuple[int, int, int, int], direction: str) -> None:
    images, captions, most_regions, most_words = shape
    v = torch.randn(images, most_regions, 8, requires_grad=True)
    e = torch.randn(captions, most_words, 8, requires_grad=True)
    similarity = cross_attention_similarity(v, e, direction=direction, backend="triton")
    assert torch.equal(similarity, torch.zeros(images, captions))
    similarity.sum().backward()
    assert torch.equal(v.grad, torch.zeros_like(v))
    assert torch.equal(e.grad, torch.zeros_like(e))


def test_strided_inputs_are_left_alone() -> None:
    base = torch.randn(6, 3, 5)
    regions, words = base.permute(1, 2, 0)[:, ::2], base.permute(2, 1, 0)[1:, :2]
    before = base.clone()
    check(regions, words, direction="t2i")
    assert torch.equal(base, before)


def test_too_many_fragments() -> None:
    with pytest.raises(BackendUnavailableError, match="at most 64 fragments"):
        cross_attention_similarity(torch.rand(1, 65, 4), torch.rand(1, 2, 4), backend="triton")
