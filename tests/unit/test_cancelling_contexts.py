"""Region-word similarity where attended vectors cancel, and of sides without sets or fragments."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import cross_attention_pairs, cross_attention_similarity
from sede_kernels.testing import assert_within_budget

FUNCTIONS = {"all": cross_attention_similarity, "pairs": cross_attention_pairs}
#: (images, captions, regions, words): few pairs, and enough for a kernel of all pairs.
SIZES = {"few": (2, 3, 12, 5), "many": (5, 20, 12, 5)}


def centred(size: tuple[int, int, int, int], dim: int, direction: str) -> tuple[Tensor, Tensor]:
    """Sets whose sources add up to nothing: weak smoothing leaves contexts of lost digits."""
    images, captions, R, L = size
    regions, words = torch.randn(images, R, dim), torch.randn(captions, L, dim)
    sources = regions if direction == "t2i" else words
    sources -= sources.mean(dim=1, keepdim=True)
    return regions, words


def run(which: str, backend: str, dtype: torch.dtype, sides: tuple[Tensor, Tensor], **options):
    v, e = (x.to(dtype).requires_grad_() for x in sides)
    if which == "pairs":
        e_sets = e.unsqueeze(0).expand(v.shape[0], -1, -1, -1)
        out = cross_attention_pairs(v.unsqueeze(1), e_sets, backend=backend, **options)
    else:
        out = cross_attention_similarity(v, e, backend=backend, **options)
    weight = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), [v, e])


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("smoothing", [1e-2, 0.1, 1.0])
def test_contexts_that_cancel_keep_their_digits(smoothing, direction, which, size, backend) -> None:
    sides = centred(size, 64, direction)
    options = {"smoothing": smoothing, "direction": direction, "aggregate": "mean"}
    results = run(which, backend, torch.float32, sides, **options)
    truths = run(which, "reference", torch.float64, sides, **options)
    eagers = run(which, "reference", torch.float32, sides, **options)
    for result, truth, eager in zip(results, truths, eagers, strict=True):
        assert_within_budget(result, truth, eager)


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_vectors_of_one_element_have_cosines_of_one(direction, which, backend) -> None:
    sides = torch.randn(5, 36, 1), torch.randn(20, 12, 1)
    options = {"direction": direction, "smoothing": 9.0, "aggregate": "mean"}
    got, *_ = run(which, backend, torch.float32, sides, **options)
    want, *_ = run(which, "reference", torch.float64, sides, **options)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-7)


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_every_empty_side_gets_a_gradient_of_zeros(direction, dtype, which) -> None:
    backends = ["reference", "torch", "auto"]
    for backend, B, N, R, L in itertools.product(backends, (0, 2), (0, 3), (0, 5), (0, 4)):
        if B and N and R and L:
            continue
        lead = ((B, 1), (B, N)) if which == "pairs" else ((B,), (N,))
        v = torch.randn(*lead[0], R, 8, dtype=dtype, requires_grad=True)
        e = torch.randn(*lead[1], L, 8, dtype=dtype, requires_grad=True)
        out = FUNCTIONS[which](v, e, direction=direction, backend=backend)
        assert torch.equal(out, torch.zeros(B, N, dtype=dtype))
        for side, grad in zip((v, e), torch.autograd.grad(out.sum(), [v, e]), strict=True):
            assert torch.equal(grad, torch.zeros_like(side))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (3, 4), (40, 1)], ids=str)
def test_few_pairs_are_those_of_many(shape, direction, backend) -> None:
    regions, words = torch.randn(41, 9, 16), torch.randn(20, 4, 16)
    options = {"direction": direction, "backend": backend}
    lengths = torch.arange(41) % 9 + 1, torch.arange(20) % 4 + 1
    whole = cross_attention_similarity(
        regions, words, region_lengths=lengths[0], word_lengths=lengths[1], **options
    )
    images, captions = shape
    few = cross_attention_similarity(
        regions[:images],
        words[:captions],
        region_lengths=lengths[0][:images],
        word_lengths=lengths[1][:captions],
        **options,
    )
    torch.testing.assert_close(few, whole[:images, :captions], rtol=1e-5, atol=1e-5)
