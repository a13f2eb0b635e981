"""Erasing on the interpreter: exactly the reference's masks in fp64, and its gradient."""

import pytest
import torch

from sede_kernels import functional, reference_erase

RULES = [
    ("mean", None), ("prob", None), ("absolute", 0.03), ("relative", 0.5), ("topk", 3.0),
    ("topk", 100.0), ("quantile", 0.0), ("quantile", 0.37), ("quantile", 1.0),
]  # fmt: skip
RULE_IDS = [f"{rule}-{value}" for rule, value in RULES]


def _attention(rows, fragments, seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    if ties:
        # Few distinct values, all exact in binary.
        return torch.randint(0, 4, (rows, fragments), generator=generator) / 16.0
    return torch.randn(rows, fragments, generator=generator).mul(2).softmax(1)


@pytest.mark.parametrize("rule,threshold", RULES, ids=RULE_IDS)
@pytest.mark.parametrize("erase", ["low", "high"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_masks_and_gradient(rule, threshold, erase, ties):
    fragments = 37
    attention = _attention(9, fragments, 1, ties)
    attention[3] = 0.0625
    lengths = torch.tensor([0, 1, 2, 37, 36, 5, 17, 30, 8])
    keep_min = 2
    value = min(threshold, fragments) if rule == "topk" else threshold
    truth_input = attention.double().requires_grad_()
    truth, truth_mask = reference_erase.attention_erase(
        truth_input,
        rule=rule,
        threshold=value or 0.0,
        erase=erase,
        keep_min=keep_min,
        lengths=lengths,
    )
    found_input = attention.clone().requires_grad_()
    found, mask = functional.attention_erase(
        found_input,
        rule=rule,
        threshold=threshold,
        erase=erase,
        keep_min=keep_min,
        lengths=lengths,
        backend="triton",
    )
    assert torch.equal(mask, truth_mask)
    assert torch.allclose(found.double(), truth, atol=1e-7, rtol=1e-6)
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (got,) = torch.autograd.grad(found, found_input, grad)
    (want,) = torch.autograd.grad(truth, truth_input, grad.double())
    assert torch.allclose(got.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("fragments", [1, 16, 130])
def test_half_types_shapes_and_no_renormalisation(dtype, fragments):
    attention = _attention(6, fragments, 3).to(dtype).view(2, 3, fragments)
    for renormalize in (True, False):
        options = {"rule": "relative", "threshold": 0.25, "renormalize": renormalize}
        found, mask = functional.attention_erase(attention, backend="triton", **options)
        truth, truth_mask = reference_erase.attention_erase(attention.double(), **options)
        assert torch.equal(mask, truth_mask)
        assert torch.allclose(found.double(), truth, rtol=8e-3, atol=1e-4)


def test_nan_stays_in_its_row_and_empty_input():
    attention = _attention(4, 20, 4)
    clean, clean_mask = functional.attention_erase(attention, rule="mean", backend="triton")
    attention[1, 2] = torch.nan
    found, mask = functional.attention_erase(attention, rule="mean", backend="triton")
    other = [0, 2, 3]
    assert torch.equal(found[other], clean[other]) and torch.equal(mask[other], clean_mask[other])
    for shape in ((0, 5), (3, 0)):
        found, mask = functional.attention_erase(torch.rand(shape), backend="triton")
        assert found.shape == shape and mask.shape == shape
