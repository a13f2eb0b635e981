"""cross_attention_pairs: the fp64 reference, all-pairs scores, gradients, padding, bad input."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import AttentionErase, cross_attention_pairs, cross_attention_similarity
from sede_kernels.backends.cpu import _native
from sede_kernels.testing import assert_within_budget

ISAS = _native.module().supported_isas() if _native.unavailable_reason() is None else []
#: (B, N of regions, N of words, R, L, D).
SIZES = {
    "one": (1, 1, 1, 2, 2, 3),
    "images-ask": (5, 1, 3, 7, 4, 19),
    "captions-ask": (4, 5, 1, 36, 3, 16),
    "aligned": (3, 2, 2, 17, 21, 40),
}
ERASES = [
    pytest.param(None, id="whole"),
    pytest.param("mean", id="mean"),
    pytest.param(AttentionErase(rule="topk", threshold=2), id="topk"),
    pytest.param(AttentionErase(rule="relative", threshold=0.5, erase="high"), id="high"),
    pytest.param(AttentionErase(rule="prob", renormalize=False), id="prob-raw"),
]


def sides(size: tuple[int, ...], shortest: int = 1) -> tuple[Tensor, ...]:
    B, of_regions, of_words, R, L, D = size
    regions = F.normalize(torch.randn(B, of_regions, R, D, dtype=torch.float64), dim=3)
    words = F.normalize(torch.randn(B, of_words, L, D, dtype=torch.float64), dim=3)
    r_len = torch.randint(min(shortest, R), R + 1, (B, of_regions))
    return regions, words, r_len, torch.randint(min(shortest, L), L + 1, (B, of_words))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("erase", ERASES)
def test_values_and_gradients_match_the_reference(size, direction, erase, backend) -> None:
    for aggregate, vary in itertools.product(["lse", "mean", "max", "sum"], [True, False]):
        regions, words, r_len, w_len = sides(size, shortest=1 if erase is None else 2)
        options = {"direction": direction, "erase": erase, "aggregate": aggregate, "smoothing": 4.0}
        if vary:
            options |= {"region_lengths": r_len, "word_lengths": w_len}
        weight = torch.rand(size[0], max(size[1:3]), dtype=torch.float64)
        results = []
        for which, dtype in (("reference", torch.float64), ("torch", torch.float64),
                             (backend, torch.float32), ("reference", torch.float32)):  # fmt: skip
            v, e = (x.to(dtype).requires_grad_() for x in (regions, words))
            out = cross_attention_pairs(v, e, backend=which, **options)
            grads = torch.autograd.grad((out * weight.to(dtype)).sum(), [v, e])
            results.append([out.detach(), *grads])
        for truth, double, single, eager in zip(*results, strict=True):
            torch.testing.assert_close(double, truth, rtol=1e-8, atol=1e-9)
            assert_within_budget(single, truth, eager, torch.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_every_instruction_set(isa, direction) -> None:
    module = _native.module()
    before = module.isa()
    regions, words, r_len, w_len = sides((9, 1, 4, 23, 6, 24), shortest=2)
    options = {"direction": direction, "erase": AttentionErase(rule="quantile", threshold=0.4),
               "region_lengths": r_len, "word_lengths": w_len}  # fmt: skip
    results = []
    try:
        module.select_isa(isa)
        for which, dtype in (("reference", torch.float64), ("cpu", torch.float32),
                             ("reference", torch.float32)):  # fmt: skip
            v, e = (x.to(dtype).requires_grad_() for x in (regions, words))
            out = cross_attention_pairs(v, e, backend=which, **options)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [v, e])])
    finally:
        module.select_isa(before)
    for truth, single, eager in zip(*results, strict=True):
        assert_within_budget(single, truth, eager, torch.float32)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_pairs_are_entries_of_all_pairs(direction, backend) -> None:
    regions, words, _, w_len = sides((4, 1, 3, 6, 5, 8))
    whole = cross_attention_similarity(
        regions[:, 0], words.flatten(0, 1), word_lengths=w_len.flatten(), direction=direction
    ).view(4, 4, 3)
    got = cross_attention_pairs(
        regions.float(), words.float(), word_lengths=w_len, direction=direction, backend=backend
    )
    torch.testing.assert_close(got, whole[range(4), range(4)].float())


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_padding_may_hold_anything(direction, backend) -> None:
    regions, words, r_len, w_len = sides((3, 1, 4, 5, 6, 8))
    options = {"direction": direction, "backend": backend, "region_lengths": r_len,
               "word_lengths": w_len}  # fmt: skip
    clean = cross_attention_pairs(regions.float(), words.float(), **options)
    dirty = [regions.float(), words.float()]
    for x, lengths in zip(dirty, (r_len, w_len), strict=True):
        x[torch.arange(x.shape[2]) >= lengths[..., None]] = float("nan")
        x.requires_grad_()
    out = cross_attention_pairs(*dirty, **options)
    torch.testing.assert_close(out, clean)
    for grad, lengths in zip(torch.autograd.grad(out.sum(), dirty), (r_len, w_len), strict=True):
        padding = torch.arange(grad.shape[2]) >= lengths[..., None]
        assert torch.isfinite(grad).all()
        assert torch.equal(grad[padding], torch.zeros_like(grad[padding]))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_empty_sets_and_zero_vectors(direction, backend) -> None:
    regions = torch.randn(2, 1, 3, 4, requires_grad=True)
    words = torch.randn(2, 3, 5, 4, requires_grad=True)
    counts = torch.tensor([[0, 5, 2], [1, 0, 4]])
    options = {"direction": direction, "backend": backend}
    out = cross_attention_pairs(regions, words, word_lengths=counts, **options)
    (grad,) = torch.autograd.grad(out.sum(), [words])
    assert torch.equal(out[counts == 0], torch.zeros(2))
    assert torch.equal(grad[counts == 0], torch.zeros(2, 5, 4))
    zero = torch.zeros(2, 1, 3, 4, requires_grad=True)
    out = cross_attention_pairs(zero, words, **options)
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), [zero, words]))
    for v, e in ((torch.zeros(0, 1, 3, 4), torch.zeros(0, 2, 5, 4)),
                 (torch.zeros(2, 1, 0, 4), torch.randn(2, 3, 5, 4))):  # fmt: skip
        assert torch.equal(cross_attention_pairs(v, e, **options), torch.zeros(len(v), e.shape[1]))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("wanted", ["regions", "words"])
def test_a_side_without_a_gradient_changes_nothing(direction, wanted, backend) -> None:
    regions, words, r_len, w_len = sides((3, 1, 2, 5, 4, 6))
    options = {"region_lengths": r_len, "word_lengths": w_len, "direction": direction}
    both = [x.float().requires_grad_() for x in (regions, words)]
    one = [
        x.float().requires_grad_(name == wanted)
        for name, x in (("regions", regions), ("words", words))
    ]
    for inputs in (both, one):
        cross_attention_pairs(*inputs, backend=backend, **options).square().sum().backward()
    for a, b in zip(both, one, strict=True):
        assert b.grad is None if not b.requires_grad else torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregate", ["lse", "mean", "sum"])
def test_gradcheck(direction, aggregate) -> None:
    regions, words, r_len, w_len = sides((2, 1, 2, 3, 4, 5))
    assert torch.autograd.gradcheck(
        lambda v, e: cross_attention_pairs(
            v, e, region_lengths=r_len, word_lengths=w_len, direction=direction,
            aggregate=aggregate, backend="torch",
        ),
        (regions.requires_grad_(), words.requires_grad_()),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_give_fp32_and_a_gradient_in_their_dtype(dtype, backend) -> None:
    regions, words, *_ = sides((2, 1, 3, 5, 4, 8))
    v = regions.to(dtype).requires_grad_()
    out = cross_attention_pairs(v, words.to(dtype), backend=backend)
    want = cross_attention_pairs(v.detach().double(), words.to(dtype).double())
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(out.sum(), v)
    assert out.dtype == torch.float32 and grad.dtype == dtype


@pytest.mark.parametrize(
    ("regions", "words", "message"),
    [
        pytest.param((2, 1, 3, 4), (3, 2, 5, 4), "same B and N, or N = 1", id="batch"),
        pytest.param((2, 2, 3, 4), (2, 3, 5, 4), "same B and N, or N = 1", id="pairs"),
        pytest.param((2, 1, 3, 4), (2, 2, 5, 6), r"\(B, N, L, 4\) to match regions", id="dim"),
        pytest.param((2, 3, 4), (2, 2, 5, 4), "regions", id="axes"),
    ],
)
def test_bad_shapes_get_one_sentence(regions, words, message) -> None:
    with pytest.raises(ValueError, match=f"^cross_attention_pairs: .*{message}"):
        cross_attention_pairs(torch.zeros(regions), torch.zeros(words))


def test_lengths_follow_their_side() -> None:
    regions, words = torch.randn(2, 1, 3, 4), torch.randn(2, 3, 5, 4)
    with pytest.raises(ValueError, match=r"word_lengths must be \(2, 3\), got \(2,\)"):
        cross_attention_pairs(regions, words, word_lengths=torch.ones(2, dtype=torch.int64))
