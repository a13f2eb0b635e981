"""Native erasing against sede_kernels.reference: every rule, direction, length, instruction set."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import attention_erase
from sede_kernels.backends.cpu import _native
from sede_kernels.errors import BackendUnavailableError
from sede_kernels.testing import FLOORS, assert_within_budget

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)

ISAS = _native.module().supported_isas() if _native.unavailable_reason() is None else []
RULES = {
    "mean": None,
    "prob": None,
    "absolute": 0.25,
    "relative": 0.5,
    "topk": 3,
    "quantile": 0.5,
    "quantile-odd": 0.3,
    "quantile-top": 1.0,
}


def rows_of(kind: str, rows: int, length: int) -> Tensor:
    if kind == "ties":
        return torch.randint(0, 4, (rows, length)).float() / 8
    if kind == "zero":
        return torch.zeros(rows, length)
    if kind == "uniform":
        return torch.full((rows, length), 0.25)
    return torch.softmax({"soft": 2.0, "peaked": 12.0}[kind] * torch.randn(rows, length), dim=-1)


def erase(a: Tensor, rule: str, backend: str, **options) -> tuple[Tensor, Tensor]:
    threshold = RULES[rule]
    if rule == "topk":
        threshold = min(threshold, max(a.shape[-1], 1))
    return attention_erase(
        a, rule=rule.split("-", maxsplit=1)[0], threshold=threshold, backend=backend, **options
    )


def gradient_error(grad: Tensor, truth: Tensor, mask: Tensor, g: Tensor, scaled: bool) -> float:
    """Relative to g / (kept sum): the gradient is a difference of terms of that size."""
    kept = (truth.detach() * mask).sum(dim=-1, keepdim=True) if scaled else torch.ones(1)
    return float(((grad.double() - truth.grad) * kept).norm() / g.double().norm())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("direction", ["low", "high"])
def test_equals_the_reference(isa: str, rule: str, direction: str) -> None:
    """Mask equal to the fp64 reference's, values and gradient within the budget."""
    lengths_of = (1, 2, 7, 16, 36, 67) if isa == ISAS[-1] else (7, 36)
    for length, kind in itertools.product(
        lengths_of, ("soft", "peaked", "ties", "zero", "uniform")
    ):
        a = rows_of(kind, 13, length)
        counts = torch.randint(0, length + 1, (13,))
        g = torch.randn(13, length)
        for keep_min, lengths, renormalize in itertools.product(
            (1, 3), (None, counts), (True, False)
        ):
            options = {
                "erase": direction,
                "keep_min": keep_min,
                "lengths": lengths,
                "renormalize": renormalize,
            }
            x, y = a.clone().requires_grad_(), a.double().requires_grad_()
            out, mask = erase(x, rule, "cpu", **options)
            truth, truth_mask = erase(y, rule, "reference", **options)
            assert torch.equal(mask, truth_mask), (length, kind, options)
            assert_within_budget(out, truth)
            out.backward(g)
            truth.backward(g.double())
            error = gradient_error(x.grad, y, mask, g, renormalize)
            assert error < FLOORS[torch.float32], (length, kind, options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_is_judged_in_fp32(isa: str, rule: str, dtype: torch.dtype) -> None:
    a = torch.softmax(2 * torch.randn(19, 36), dim=-1).to(dtype)
    x, y = a.clone().requires_grad_(), a.double().requires_grad_()
    out, mask = erase(x, rule, "cpu")
    truth, truth_mask = erase(y, rule, "reference")
    eager, _ = erase(a, rule, "torch")
    assert out.dtype == dtype
    assert torch.equal(mask, truth_mask)
    assert_within_budget(out, truth, eager)
    g = torch.randn(19, 36).to(dtype)
    out.backward(g)
    truth.backward(g.double())
    assert gradient_error(x.grad, y, mask, g, True) < FLOORS[dtype]


@pytest.mark.parametrize("rule", RULES)
def test_long_rows(rule: str) -> None:
    a = torch.softmax(3 * torch.randn(3, 4099), dim=-1)
    out, mask = erase(a, rule, "cpu")
    truth, truth_mask = erase(a.double(), rule, "reference")
    assert torch.equal(mask, truth_mask)
    assert_within_budget(out, truth)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("direction", ["low", "high"])
def test_nan_and_extremes_stay_in_their_row(rule: str, direction: str) -> None:
    a = torch.softmax(torch.randn(9, 20), dim=-1)
    plain, plain_mask = erase(a, rule, "cpu", erase=direction)
    a[4, 7] = torch.nan
    a[6] = 1e-42
    a[7, ::2] = 1e37
    out, mask = erase(a, rule, "cpu", erase=direction)
    _, truth_mask = erase(a, rule, "reference", erase=direction)
    others = torch.tensor([0, 1, 2, 3, 5, 8])
    assert torch.equal(out[others], plain[others])
    assert torch.equal(mask[others], plain_mask[others])
    assert torch.equal(mask[4], truth_mask[4])
    if rule not in ("mean", "prob"):  # their fp32 sums of subnormals are no yardstick
        assert torch.equal(mask, truth_mask)


def test_padding_may_hold_anything() -> None:
    a = torch.softmax(torch.randn(5, 12), dim=-1)
    lengths = torch.tensor([12, 0, 5, 1, 7])
    clean, clean_mask = attention_erase(a, lengths=lengths, backend="cpu")
    dirty = a.masked_fill(torch.arange(12) >= lengths[:, None], torch.nan)
    out, mask = attention_erase(dirty, lengths=lengths, backend="cpu")
    assert torch.equal(out, clean)
    assert torch.equal(mask, clean_mask)
    assert not mask[1].any()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (2, 0, 3), (1, 1), (7,), (2, 3, 4, 5)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    a = torch.rand(shape, requires_grad=True)
    out, mask = attention_erase(a, backend="cpu")
    truth, truth_mask = attention_erase(a.detach().double(), backend="reference")
    assert out.shape == mask.shape == a.shape
    assert torch.equal(mask, truth_mask)
    torch.testing.assert_close(out.detach().double(), truth, rtol=1e-6, atol=1e-7)
    out.sum().backward()
    assert a.grad.shape == a.shape


def test_strided_inputs_are_left_alone() -> None:
    base = torch.rand(6, 10, 4)
    a = base.permute(2, 0, 1)[:, ::2]
    lengths = (
        torch.arange(20).view(10, 2).to(torch.int32)[:6, :1].T.expand(4, 6)[:, ::2].clamp(max=10)
    )
    before = base.clone()
    out, mask = attention_erase(a, rule="topk", threshold=2, lengths=lengths, backend="cpu")
    truth, truth_mask = attention_erase(
        a.double(), rule="topk", threshold=2, lengths=lengths, backend="reference"
    )
    assert torch.equal(mask, truth_mask)
    assert_within_budget(out, truth)
    assert torch.equal(base, before)


@pytest.mark.parametrize("rule", RULES)
def test_same_bits_for_any_number_of_threads(rule: str) -> None:
    a = torch.softmax(torch.randn(3001, 37), dim=-1)
    g = torch.randn_like(a)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1, 4):
            torch.set_num_threads(count)
            x = a.clone().requires_grad_()
            out, mask = erase(x, rule, "cpu")
            out.backward(g)
            results.append((out.detach(), mask, x.grad))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


def test_fp64_is_for_the_torch_backend() -> None:
    a = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(BackendUnavailableError, match="float64"):
        attention_erase(a, backend="cpu")
    out, _ = attention_erase(a)
    assert out.dtype == torch.float64
