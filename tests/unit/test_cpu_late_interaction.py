"""Native late interaction against sede_kernels.reference in fp64, gradients included."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import cross_attention_pairs, cross_attention_similarity
from sede_kernels.backends.cpu import _native, late_interaction, late_interaction_call
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)

#: (images, captions, regions, words, dim): one, primes, more than a vector and than a block of it.
SIZES = {
    "one": (1, 1, 1, 1, 1),
    "small": (2, 3, 5, 4, 7),
    "odd": (17, 5, 7, 6, 19),
    "many-words": (3, 19, 11, 5, 130),
    "no-width": (3, 2, 4, 5, 0),
}
DIRECTIONS = ["t2i", "i2t"]
AGGREGATES = ["lse", "mean", "max", "sum"]


def ragged(sets: Tensor) -> Tensor:
    """Random lengths, an empty set among them; what lies beyond them becomes NaN."""
    lengths = torch.randint(0, sets.shape[-2] + 1, sets.shape[:-2])
    lengths.view(-1)[lengths.numel() // 2] = 0
    sets[torch.arange(sets.shape[-2]) >= lengths.unsqueeze(-1)] = torch.nan
    return lengths


def gradients(backend: str, dtype: torch.dtype, sides: list[Tensor], **options) -> list[Tensor]:
    """The similarities and both gradients."""
    form = cross_attention_similarity if sides[0].dim() == 3 else cross_attention_pairs
    leaves = [side.detach().to(dtype, copy=True).requires_grad_() for side in sides]
    found = form(*leaves, attention="max", backend=backend, **options)
    weight = torch.linspace(-1.0, 1.0, found.numel()).view(found.shape).to(found.dtype)
    return [found.detach(), *torch.autograd.grad(found, leaves, weight)]


def check(sides: list[Tensor], dtype: torch.dtype = torch.float32, **options) -> None:
    found = gradients("cpu", dtype, sides, **options)
    exact = gradients("reference", torch.float64, sides, **options)
    eager = gradients("torch", dtype, sides, **options)
    for got, truth, plain in zip(found, exact, eager, strict=True):
        assert got.dtype == plain.dtype
        if truth.norm() > 0:
            assert_within_budget(got, truth, plain, dtype)
        else:
            assert not got.any()


def problem(size: str, padded: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    B, C, R, L, D = SIZES[size]
    sides = [torch.randn(B, R, D), torch.randn(C, L, D)]
    names = "region_lengths", "word_lengths"
    lengths = dict(zip(names, map(ragged, sides), strict=True)) if padded else {}
    return sides, lengths


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_all_pairs(size, direction, aggregate, monkeypatch) -> None:
    for padded, packed, call in (
        (False, 0, 0),
        (True, 0, 0),
        (True, 1 << 24, 0),
        (False, 0, 1 << 26),
        (True, 0, 1 << 26),
    ):
        monkeypatch.setattr(late_interaction, "_PACKED_WORK", packed)
        monkeypatch.setattr(late_interaction_call, "_CALL_WORK", call)
        sides, lengths = problem(size, padded)
        check(sides, direction=direction, aggregate=aggregate, **lengths)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("shared", ["regions", "words", "none"])
def test_chosen_pairs(shared, direction, aggregate, monkeypatch) -> None:
    """Each image with captions of its own, each caption with images of its own, or both."""
    sides = [
        torch.randn(5, 1 if shared == name else 4, length, 19)
        for name, length in (("regions", 7), ("words", 6))
    ]
    options = {"direction": direction, "aggregate": aggregate}
    whole = [side.clone() for side in sides]
    lengths = {"region_lengths": ragged(sides[0]), "word_lengths": ragged(sides[1])}
    for call in (1 << 26, 0):
        monkeypatch.setattr(late_interaction_call, "_CALL_WORK", call)
        check(whole, **options)
        check(sides, **options, **lengths)
    monkeypatch.setattr(late_interaction, "_BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(late_interaction_call, "_KEPT_ELEMENTS", 0)
    check(sides, **options, **lengths)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_instruction_set(isa, direction, monkeypatch) -> None:
    for size, call in itertools.product(("small", "many-words"), (0, 1 << 26)):
        monkeypatch.setattr(late_interaction_call, "_CALL_WORK", call)
        sides, lengths = problem(size, True)
        check(sides, direction=direction, **lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision(dtype, monkeypatch) -> None:
    sides, _ = problem("odd", False)
    for call in (0, 1 << 26):
        monkeypatch.setattr(late_interaction_call, "_CALL_WORK", call)
        check([side.to(dtype) for side in sides], dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "ragged"])
def test_many_blocks_and_what_is_kept(direction, padded, monkeypatch) -> None:
    """One call, blocks of any size, scores kept or not, one side alone: the same numbers."""
    sides, lengths = problem("many-words", padded)
    sides = [side * 0 + torch.randint_like(side, -3, 4) for side in sides]  # exact sums
    monkeypatch.setattr(late_interaction, "_PACKED_WORK", 0)
    options = {"direction": direction, "aggregate": "sum", **lengths}
    want = gradients("cpu", torch.float32, sides, **options)
    exact = gradients("reference", torch.float64, sides, **options)
    assert torch.equal(want[0].double(), exact[0])
    monkeypatch.setattr(late_interaction_call, "_CALL_WORK", 0)
    for block, columns, scores, kept in itertools.product(
        (1, 1 << 19), (16, 33), (1, 400), (0, 9**9)
    ):
        monkeypatch.setattr(late_interaction, "_BLOCK_ELEMENTS", block)
        monkeypatch.setattr(late_interaction, "_COLUMNS", columns)
        monkeypatch.setattr(late_interaction, "_SCORE_ELEMENTS", scores)
        monkeypatch.setattr(late_interaction_call, "_KEPT_ELEMENTS", kept)
        got = gradients("cpu", torch.float32, sides, **options)
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    monkeypatch.setattr(late_interaction_call, "_CALL_WORK", 1 << 26)
    monkeypatch.setattr(late_interaction_call, "_KEPT_ELEMENTS", 1 << 24)
    leaf = sides[1].clone().requires_grad_()
    found = cross_attention_similarity(sides[0], leaf, attention="max", backend="cpu", **options)
    weight = torch.linspace(-1.0, 1.0, found.numel()).view(found.shape)
    for again in (True, False):
        (one,) = torch.autograd.grad(found, leaf, weight, retain_graph=again)
        assert torch.equal(one, want[2])


def test_a_whole_product_is_never_in_memory(monkeypatch) -> None:
    """Neither at once nor for the backward, whatever the number of sets."""
    largest = []
    multiply = torch.mm

    def seen(*operands: Tensor, out: Tensor) -> Tensor:
        largest.append(out.numel())
        return multiply(*operands, out=out)

    monkeypatch.setattr(torch, "mm", seen)
    monkeypatch.setattr(late_interaction_call, "_CALL_WORK", 0)
    regions = torch.randn(60, 50, 2, requires_grad=True)
    words = torch.randn(90, 40, 2, requires_grad=True)
    for kept, calls in ((1 << 24, 1), (0, 2)):
        monkeypatch.setattr(late_interaction_call, "_KEPT_ELEMENTS", kept)
        largest.clear()
        found = cross_attention_similarity(regions, words, attention="max", backend="cpu")
        torch.autograd.grad(found.sum(), [regions, words])
        assert sum(largest) == calls * 60 * 50 * 90 * 40  # computed once, or twice
        assert max(largest) <= late_interaction._BLOCK_ELEMENTS


@pytest.mark.parametrize("call", [0, 1 << 26], ids=["blocks", "one-call"])
def test_ties_zeros_and_infinities(call, monkeypatch) -> None:
    """The first of equal products wins, -0 equals 0, and the first NaN beats all."""
    monkeypatch.setattr(late_interaction_call, "_CALL_WORK", call)
    nan, inf = torch.nan, torch.inf
    columns = torch.tensor(
        [[0.0, -0.0, 0.0], [-1.0, 2.0, 2.0], [-inf, -inf, -inf], [inf, 1.0, inf], [3.0, nan, nan]]
    )
    winners = [0, 1, 0, 0, 1]
    for values, winner in zip(columns, winners, strict=True):
        side = values.view(1, 3, 1).clone().requires_grad_()
        found = cross_attention_similarity(
            side, torch.ones(1, 1, 1), attention="max", aggregate="sum", backend="cpu"
        )
        torch.testing.assert_close(found.view(()), values[winner], equal_nan=True, rtol=0, atol=0)
        (grad,) = torch.autograd.grad(found.sum(), side)
        assert torch.equal(grad.flatten(), torch.eye(3)[winner])


def test_one_thread_and_several_give_the_same_bits() -> None:
    sides = [torch.randn(13, 21, 40), torch.randn(11, 9, 40)]  # enough work to be shared
    lengths = {"region_lengths": ragged(sides[0]), "word_lengths": ragged(sides[1])}
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(gradients("cpu", torch.float32, sides, **lengths))
    torch.set_num_threads(before)
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_memory_of_other_layouts() -> None:
    """Transposed, strided and broadcast sides are read as what they are."""
    regions, words = torch.randn(7, 9, 5).transpose(0, 1), torch.randn(4, 12, 10)[:, ::2, ::2]
    shared = torch.randn(1, 6, 7)[..., :5].expand(8, 6, 5)
    for sides in ([regions, words], [regions, shared]):
        check([*sides])
        plain = [side.contiguous() for side in sides]
        for got, want in zip(
            gradients("cpu", torch.float32, sides),
            gradients("cpu", torch.float32, plain),
            strict=True,
        ):
            assert torch.equal(got, want)


def test_double_precision_is_for_the_torch_backend() -> None:
    sides = torch.randn(2, 3, 4, dtype=torch.float64)
    with pytest.raises(BackendUnavailableError, match="no float64 kernel; backend 'torch' has one"):
        cross_attention_similarity(sides, sides, attention="max", backend="cpu")
    assert cross_attention_similarity(sides, sides, attention="max").dtype == torch.float64


def test_lengths_beyond_the_sets_are_refused() -> None:
    sides = torch.randn(2, 3, 4)
    for wrong in (torch.tensor([3, 4]), torch.tensor([-1, 2])):
        for name in ("region_lengths", "word_lengths"):
            with pytest.raises(ValueError, match=r"must lie in \[0, 3\]"):
                cross_attention_similarity(
                    sides, sides, attention="max", backend="cpu", **{name: wrong}
                )


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_scores_by_hand(direction, aggregate) -> None:
    """One query fragment sees 2 and 3, the other 1 and -1: nearest are 3 and 1."""
    sources = torch.tensor([[[2.0, 1.0], [3.0, -1.0], [9.0, 9.0]]])
    queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    sides, names = [sources, queries], ["region_lengths", "word_lengths"]
    sides, names = (sides[::-1], names[::-1]) if direction == "i2t" else (sides, names)
    leaves = [side.requires_grad_() for side in sides]
    found = cross_attention_similarity(
        *leaves, attention="max", direction=direction, aggregate=aggregate, aggregate_scale=2.0,
        backend="cpu", **{names[0]: torch.tensor([2])},
    )  # fmt: skip
    shares = {"sum": [1.0, 1.0], "mean": [0.5, 0.5], "max": [1.0, 0.0]}.get(aggregate)
    large, small = shares or torch.tensor([6.0, 2.0]).softmax(0).tolist()
    value = {"sum": 4.0, "mean": 2.0, "max": 3.0}.get(aggregate)
    value = torch.tensor([6.0, 2.0]).logsumexp(0).item() / 2 if value is None else value
    assert found.shape == (1, 1)
    assert found.item() == pytest.approx(value, rel=1e-6)
    found.sum().backward()
    want = torch.tensor([[[0.0, small], [large, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(sources.grad, want)
    torch.testing.assert_close(
        queries.grad, torch.tensor([[[3.0, -1.0], [2.0, 1.0]]]) * torch.tensor([[large], [small]])
    )


def test_infinite_and_nan_scores_aggregate_as_in_torch(monkeypatch) -> None:
    """Sums of several scores, of which some are infinite or NaN."""
    inf, nan = torch.inf, torch.nan
    for values in ([inf, 1.0, 2.0], [-inf, 1.0, 2.0], [-inf, -inf, -inf], [nan, 1.0, inf]):
        queries = torch.tensor(values).view(1, 3, 1)
        for aggregate in AGGREGATES:
            seen = []
            for call in (0, 1 << 26):
                monkeypatch.setattr(late_interaction_call, "_CALL_WORK", call)
                leaf = queries.clone().requires_grad_()
                found = cross_attention_similarity(
                    torch.ones(1, 1, 1), leaf, attention="max", aggregate=aggregate, backend="cpu"
                )
                seen.append((found.detach(), *torch.autograd.grad(found.sum(), leaf)))
            for one, other in zip(*seen, strict=True):
                torch.testing.assert_close(one, other, equal_nan=True)
