"""cross_attention_similarity: the fp64 reference, SCAN's published loop, gradients, padding."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import AttentionErase, CrossAttentionSimilarity, cross_attention_similarity
from sede_kernels.testing import assert_within_budget

ERASES = [
    pytest.param(None, id="whole"),
    pytest.param("mean", id="mean"),
    pytest.param(AttentionErase(rule="topk", threshold=2), id="topk"),
    pytest.param(AttentionErase(rule="relative", threshold=0.5, erase="high"), id="high"),
    pytest.param(AttentionErase(rule="prob", renormalize=False), id="prob-raw"),
]


def sets(
    images: int, captions: int, R: int, L: int, dim: int, shortest: int = 1
) -> tuple[Tensor, ...]:
    regions = torch.randn(images, R, dim, dtype=torch.float64)
    words = torch.randn(captions, L, dim, dtype=torch.float64)
    regions = regions / regions.norm(dim=-1, keepdim=True)
    words = words / words.norm(dim=-1, keepdim=True)
    return (
        regions,
        words,
        torch.randint(min(shortest, R), R + 1, (images,)),
        torch.randint(min(shortest, L), L + 1, (captions,)),
    )


def scan_t2i(regions: Tensor, words: Tensor, lengths: list[int], lam: float, lse: float) -> Tensor:
    """SCAN t2i from its paper (Lee et al. 2018, eqs. 1-9), one caption at a time."""
    columns = []
    for caption, length in zip(words, lengths, strict=True):
        e = caption[:length].expand(regions.shape[0], -1, -1)
        s = torch.nn.functional.leaky_relu(regions @ e.transpose(1, 2), 0.1)
        s = s / (s.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
        attention = (lam * s).softmax(1)
        context = attention.transpose(1, 2) @ regions
        cosine = torch.nn.functional.cosine_similarity(e, context, dim=2, eps=1e-8)
        columns.append((lse * cosine).exp().sum(1).log() / lse)
    return torch.stack(columns, 1)


def test_reference_is_scan() -> None:
    regions, words, _, lengths = sets(4, 5, 6, 7, 8)
    want = scan_t2i(regions, words, lengths.tolist(), 9.0, 6.0)
    for backend in ("reference", "torch"):
        got = cross_attention_similarity(regions, words, word_lengths=lengths, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("erase", ERASES)
def test_values_and_gradients_match_the_reference(direction, erase, backend) -> None:
    for aggregate, shape in itertools.product(
        ["lse", "mean", "max", "sum"], [(1, 1, 1, 1, 3), (3, 2, 5, 7, 11)]
    ):
        # The norm over a single query makes its similarities equal but for the 1e-8 in the norm,
        # which fp32 drops: what is then erased is decided by the dtype.
        regions, words, r_len, w_len = sets(*shape, shortest=1 if erase is None else 2)
        options = {"direction": direction, "erase": erase, "aggregate": aggregate,
                   "region_lengths": r_len, "word_lengths": w_len, "smoothing": 4.0}  # fmt: skip
        results = []
        weight = torch.rand(shape[0], shape[1], dtype=torch.float64)
        for which, dtype in (("reference", torch.float64), ("torch", torch.float64),
                             (backend, torch.float32), ("reference", torch.float32)):  # fmt: skip
            v, e = (x.to(dtype).requires_grad_() for x in (regions, words))
            out = cross_attention_similarity(v, e, backend=which, **options)
            grads = torch.autograd.grad((out * weight.to(dtype)).sum(), [v, e])
            results.append([out.detach(), *grads])
        for truth, double, single, eager in zip(*results, strict=True):
            torch.testing.assert_close(double, truth, rtol=1e-8, atol=1e-9)
            assert_within_budget(single, truth, eager, torch.float32)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_padding_may_hold_anything(direction, backend) -> None:
    regions, words, r_len, w_len = sets(3, 4, 5, 6, 8)
    regions, words = regions.float(), words.float()
    options = {"direction": direction, "backend": backend, "region_lengths": r_len,
               "word_lengths": w_len}  # fmt: skip
    clean = cross_attention_similarity(regions, words, **options)
    dirty = [x.clone() for x in (regions, words)]
    for x, lengths in zip(dirty, (r_len, w_len), strict=True):
        x[torch.arange(x.shape[1]) >= lengths[:, None]] = float("nan")
        x.requires_grad_()
    out = cross_attention_similarity(*dirty, **options)
    torch.testing.assert_close(out, clean)
    for grad, lengths in zip(torch.autograd.grad(out.sum(), dirty), (r_len, w_len), strict=True):
        padding = torch.arange(grad.shape[1]) >= lengths[:, None]
        assert torch.isfinite(grad).all()
        assert torch.equal(grad[padding], torch.zeros_like(grad[padding]))


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_empty_sets_and_zero_vectors(direction, backend) -> None:
    regions = torch.randn(2, 3, 4, requires_grad=True)
    words = torch.randn(3, 5, 4, requires_grad=True)
    out = cross_attention_similarity(
        regions, words, word_lengths=torch.tensor([0, 5, 2]), direction=direction, backend=backend
    )
    grads = torch.autograd.grad(out.sum(), [regions, words])
    assert torch.equal(out[:, 0], torch.zeros(2)) and torch.equal(grads[1][0], torch.zeros(5, 4))
    zero = torch.zeros(2, 3, 4, requires_grad=True)
    out = cross_attention_similarity(zero, words, direction=direction, backend=backend)
    grads = torch.autograd.grad(out.sum(), [zero, words])
    assert torch.isfinite(out).all() and all(torch.isfinite(g).all() for g in grads)
    for v, e in ((torch.zeros(0, 3, 4), words), (regions, torch.zeros(0, 5, 4))):
        empty = cross_attention_similarity(v, e, direction=direction, backend=backend)
        assert empty.shape == (v.shape[0], e.shape[0])


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("aggregate", ["lse", "mean", "sum"])
def test_gradcheck(direction, aggregate) -> None:
    regions, words, r_len, w_len = sets(2, 3, 3, 4, 5)
    assert torch.autograd.gradcheck(
        lambda v, e: cross_attention_similarity(
            v, e, region_lengths=r_len, word_lengths=w_len, direction=direction,
            aggregate=aggregate, backend="torch",
        ),
        (regions.requires_grad_(), words.requires_grad_()),
    )  # fmt: skip


def test_blocks_agree_with_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from sede_kernels.backends.torch import cross_attention as module

    regions, words, r_len, w_len = sets(5, 7, 4, 6, 8)
    options = {"region_lengths": r_len, "word_lengths": w_len, "backend": "torch"}
    results = []
    for elements in (1 << 21, 24, 120):
        monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
        v, e = regions.clone().requires_grad_(), words.clone().requires_grad_()
        out = cross_attention_similarity(v, e, **options)
        results.append([out, *torch.autograd.grad(out.sum(), [v, e])])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"words": torch.zeros(2, 3, 5)}, r"words must be \(C, L, 4\) to match regions"),
        ({"words": torch.zeros(3, 4)}, r"words must be \(sets, fragments, dim\)"),
        ({"direction": "both"}, "direction must be one of t2i, i2t"),
        ({"aggregate": "min"}, "aggregate must be one of lse, mean, max, sum"),
        ({"smoothing": 0.0}, "smoothing must be > 0"),
        ({"erase": "topk"}, "rule 'topk' needs threshold"),
        ({"erase": "best"}, "rule must be one of"),
        ({"word_lengths": torch.tensor([1, 4])}, r"word_lengths must lie in \[0, 3\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(options, message) -> None:
    arguments = {"regions": torch.zeros(2, 3, 4), "words": torch.zeros(2, 3, 4), **options}
    with pytest.raises(ValueError, match=message):
        cross_attention_similarity(**arguments)
    with pytest.raises(TypeError, match="must share a dtype"):
        cross_attention_similarity(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2).double())


def test_module_twin() -> None:
    regions, words, _, lengths = sets(2, 3, 4, 5, 6)
    module = CrossAttentionSimilarity(direction="i2t", smoothing=4.0, erase="mean")
    want = cross_attention_similarity(
        regions, words, word_lengths=lengths, direction="i2t", smoothing=4.0, erase="mean"
    )
    assert torch.equal(module(regions, words, word_lengths=lengths), want)
