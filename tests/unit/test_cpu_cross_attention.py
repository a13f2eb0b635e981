"""Native region-word similarity against sede_kernels.reference in fp64, gradients included."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import AttentionErase, cross_attention_similarity
from sede_kernels.backends.cpu import _native, cross_attention, cross_attention_layout
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.testing import FLOORS, assert_within_budget

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)

#: (images, captions, regions, words, dim): one, primes, more than a vector on either side.
SIZES = {
    "one": (1, 1, 1, 1, 1),
    "small": (2, 3, 5, 4, 7),
    "images-in-lanes": (17, 5, 7, 6, 19),
    "captions-in-lanes": (3, 19, 11, 5, 16),
    "both": (33, 18, 6, 9, 8),
}
ERASE = {
    "none": None,
    "mean": "mean",
    "prob": "prob",
    "topk": AttentionErase(rule="topk", threshold=2),
    "quantile": AttentionErase(rule="quantile", threshold=0.3, keep_min=2),
    "relative": AttentionErase(rule="relative", threshold=0.5),
    "absolute": AttentionErase(rule="absolute", threshold=0.2, renormalize=False),
    "high": AttentionErase(rule="mean", erase="high"),
    "one-left": AttentionErase(rule="absolute", threshold=0.95),
    "one-left-high": AttentionErase(rule="absolute", threshold=1e-4, erase="high"),
    "two-left": AttentionErase(rule="absolute", threshold=0.95, keep_min=2),
}


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1) if shape[-1] > 1 else torch.randn(*shape)


def lengths_from(least: int, most: int, sets: int) -> Tensor:
    """Random lengths, an empty set among them."""
    lengths = torch.randint(min(least, most), most + 1, (sets,))
    lengths[sets // 2] = 0
    return lengths


def run(
    backend: str, dtype: torch.dtype, regions: Tensor, words: Tensor, grad: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor]:
    # Leaves of this run alone: a call must not see the gradients of another.
    v, e = (x.detach().to(dtype, copy=True).requires_grad_() for x in (regions, words))
    similarity = cross_attention_similarity(v, e, backend=backend, **options)
    similarity.backward(grad.to(similarity.dtype))
    return similarity.detach(), v.grad, e.grad


def check(regions: Tensor, words: Tensor, dtype: torch.dtype = torch.float32, **options) -> None:
    grad = torch.randn(regions.shape[0], words.shape[0])
    results = run("cpu", dtype, regions, words, grad, **options)
    truths = run("reference", torch.float64, regions, words, grad, **options)
    eagers = run("torch", dtype, regions, words, grad, **options)
    for result, truth, eager in zip(results, truths, eagers, strict=True):
        if truth.norm() > 1e-6:
            assert_within_budget(result, truth, eager, dtype)
        else:  # one fragment only: the cosine is 1 whatever the vectors, and its gradient is 0
            assert (result - truth).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregate", ["lse", "mean", "max", "sum"])
def test_aggregates(size: str, direction: str, aggregate: str) -> None:
    images, captions, most_regions, most_words, dim = SIZES[size]
    regions, words = unit(images, most_regions, dim), unit(captions, most_words, dim)
    check(regions, words, direction=direction, aggregate=aggregate)
    check(
        regions,
        words,
        direction=direction,
        aggregate=aggregate,
        smoothing=20.0,
        region_lengths=lengths_from(1, most_regions, images),
        word_lengths=lengths_from(1, most_words, captions),
    )


@pytest.mark.parametrize("size", ["images-in-lanes", "captions-in-lanes"])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("erase", [name for name in ERASE if name != "none"])
def test_erasing_inside(size: str, direction: str, erase: str) -> None:
    """Sets of three fragments or more: with fewer, the attention ties exactly."""
    images, captions, most_regions, most_words, dim = SIZES[size]
    check(
        unit(images, most_regions, dim),
        unit(captions, most_words, dim),
        direction=direction,
        erase=ERASE[erase],
        region_lengths=lengths_from(3, most_regions, images),
        word_lengths=lengths_from(3, most_words, captions),
    )


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("erase", ["mean", "prob", "high", "one-left", "two-left"])
def test_erasing_among_one_fragment(direction: str, erase: str) -> None:
    lengths = torch.tensor([1, 4, 1, 3, 1] * 4)
    sides = (unit(5, 6, 12), unit(20, 4, 12)), (unit(20, 4, 12), unit(5, 6, 12))
    regions, words = sides[direction == "t2i"]
    of = "region_lengths" if direction == "t2i" else "word_lengths"
    check(regions, words, direction=direction, erase=ERASE[erase], **{of: lengths})


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_every_instruction_set(isa: str, direction: str) -> None:
    for size, erase in itertools.product(("small", "both"), ("none", "mean")):
        images, captions, most_regions, most_words, dim = SIZES[size]
        check(
            unit(images, most_regions, dim),
            unit(captions, most_words, dim),
            direction=direction,
            erase=ERASE[erase],
            word_lengths=lengths_from(3, most_words, captions),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_half_precision(dtype: torch.dtype, direction: str) -> None:
    regions, words = unit(17, 7, 19).to(dtype), unit(5, 6, 19).to(dtype)
    check(regions, words, dtype, direction=direction)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_many_blocks(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_attention_layout, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(cross_attention_layout, "_GROUP_COLUMNS", 16)
    check(unit(21, 5, 8), unit(23, 4, 8), direction=direction, word_lengths=lengths_from(1, 4, 23))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("size", ["images-in-lanes", "captions-in-lanes"])
def test_what_the_forward_keeps(size: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S kept or computed again, once or twice: the same gradients; each side alone as well."""
    B, C, R, L, D = SIZES[size]
    regions, words, weight = unit(B, R, D), unit(C, L, D), torch.randn(B, C)
    lengths = lengths_from(1, L, C)

    def gradients(*sides: Tensor) -> list[Tensor]:
        """Gradients of these sides, twice from one forward."""
        for side in (regions, words):
            side.requires_grad_(any(side is one for one in sides))
        similarity = cross_attention_similarity(
            regions, words, word_lengths=lengths, direction=direction, erase="mean", backend="cpu"
        )
        loss = (similarity * weight).sum()
        return [
            grad
            for keep in (True, False)
            for grad in torch.autograd.grad(loss, sides, retain_graph=keep)
        ]

    assert cross_attention.cross_attention_kept(regions, words) > 0
    kept = gradients(regions, words)
    alone = [grad for side in (regions, words) for grad in gradients(side)]
    monkeypatch.setattr(cross_attention, "_KEPT_ELEMENTS", 0)
    assert cross_attention.cross_attention_kept(regions, words) == 0
    again = gradients(regions, words)
    for grad, want in zip(kept + again, again[:2] * 4, strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=0)
    for grad, want in zip(alone, [again[0]] * 2 + [again[1]] * 2, strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_extremes(direction: str) -> None:
    """Huge, tiny and zero vectors, and a smoothing that underflows a static exponent.

    Many pairs: the error of one is set by how nearly its norm vanishes, in either backend.
    """
    regions, words = 1e3 * unit(17, 6, 12), unit(18, 5, 12)
    words[0] *= 1e-3
    words[1, 2] = 0.0
    regions[2, 1] = 0.0
    check(regions, words, direction=direction)
    check(unit(17, 6, 12), unit(18, 5, 12), direction=direction, smoothing=200.0)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_nan_stays_with_its_set(direction: str) -> None:
    regions, words = unit(18, 6, 12), unit(5, 4, 12)
    clean = cross_attention_similarity(regions, words, direction=direction, backend="cpu")
    regions[3, 2, 1] = torch.nan
    words[4, 0, 0] = torch.nan
    dirty = cross_attention_similarity(regions, words, direction=direction, backend="cpu")
    spoilt = torch.zeros(18, 5, dtype=torch.bool)
    spoilt[3], spoilt[:, 4] = True, True
    assert dirty[spoilt].isnan().all()
    torch.testing.assert_close(dirty[~spoilt], clean[~spoilt])


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_padding_may_hold_anything(direction: str) -> None:
    regions, words, grad = unit(3, 6, 12), unit(19, 5, 12), torch.randn(3, 19)
    options = {
        "direction": direction,
        "region_lengths": torch.tensor([6, 0, 4]),
        "word_lengths": lengths_from(0, 5, 19),
    }
    clean = run("cpu", torch.float32, regions, words, grad, **options)
    for sets, lengths in ((regions, "region_lengths"), (words, "word_lengths")):
        beyond = torch.arange(sets.shape[1]) >= options[lengths][:, None]
        sets[beyond] = torch.nan
    dirty = run("cpu", torch.float32, regions, words, grad, **options)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (3, 0, 4, 5), (3, 2, 0, 5), (3, 2, 4, 0)], ids=str)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_empty(shape: tuple[int, int, int, int], direction: str) -> None:
    images, captions, most_regions, most_words = shape
    v = torch.randn(images, most_regions, 8, requires_grad=True)
    e = torch.randn(captions, most_words, 8, requires_grad=True)
    similarity = cross_attention_similarity(v, e, direction=direction, backend="cpu")
    assert torch.equal(similarity, torch.zeros(images, captions))
    similarity.sum().backward()
    assert torch.equal(v.grad, torch.zeros_like(v))
    assert torch.equal(e.grad, torch.zeros_like(e))


def test_strided_inputs_are_left_alone() -> None:
    base = torch.randn(12, 7, 10)
    regions, words = base.permute(1, 2, 0)[:, ::2], base.permute(2, 1, 0)[1:, :4]
    before = base.clone()
    check(regions, words, direction="t2i")
    assert torch.equal(base, before)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_repeats_to_the_bit_and_agrees_across_threads(direction: str) -> None:
    regions, words, grad = unit(20, 9, 64), unit(30, 8, 64), torch.randn(20, 30)
    options = {"direction": direction, "word_lengths": lengths_from(1, 8, 30)}
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (2, 2, 1):
            torch.set_num_threads(count)
            results.append(run("cpu", torch.float32, regions, words, grad, **options))
    finally:
        torch.set_num_threads(threads)
    for first, again, single in zip(*results, strict=True):
        assert torch.equal(first, again)
        assert (first - single).norm() <= FLOORS[torch.float32] * single.norm()


def test_fp64_is_for_the_torch_backend() -> None:
    v, e = torch.rand(2, 3, 4, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    with pytest.raises(BackendUnavailableError, match="float64"):
        cross_attention_similarity(v, e, backend="cpu")
    assert cross_attention_similarity(v, e).dtype == torch.float64
