"""false_negatives="positive": the loss comes from fp32 sums, whatever its gradient rounds."""

import pytest
import torch
from torch.nn import functional as F

from sede_kernels import MemoryBank, score_info_nce, weighted_info_nce
from tests.conftest import unit

BANKS = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


@pytest.mark.parametrize("grad", [False, True], ids=["value", "with gradient"])
@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "bank+batch"])
@pytest.mark.parametrize("bank_dtype", BANKS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_value_in_half_precision_is_that_of_the_same_inputs(
    dtype, bank_dtype, in_batch, grad, backend
) -> None:
    """Loss by hand in fp64 from the very rows of the bank: 1 / tau times an fp32 rounding apart."""
    worst = 0.0
    for temperature in (0.01, 0.07):
        query = unit(8, 64, dtype=dtype)
        rows = torch.randn(64, 64)
        rows[:8] = query.float() + 0.05 * torch.randn(8, 64)
        bank = MemoryBank(64, 64, dtype=bank_dtype)
        bank.enqueue(rows, torch.arange(64) % 40)
        ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
        got = weighted_info_nce(
            query.clone().requires_grad_(grad), query, bank, temperature=temperature, query_ids=ids,
            false_negatives="positive", in_batch_negatives=in_batch, reduction="none",
            backend=backend,
        )  # fmt: skip
        q, m = query.double(), bank.dense(torch.float64)
        logits = torch.cat([(q * q).sum(1, keepdim=True), q @ m.T], dim=1) / temperature
        same = torch.cat([torch.ones(8, 1, dtype=torch.bool), ids[:, None] == bank.ids], dim=1)
        if in_batch:
            other = ~torch.eye(8, dtype=torch.bool)
            logits = torch.cat([logits, (q @ q.T / temperature).masked_fill(~other, -1e4)], dim=1)
            same = torch.cat([same, (ids[:, None] == ids) & other], dim=1)
        targets = same.double() / same.sum(dim=1, keepdim=True)
        want = -(F.log_softmax(logits, dim=1) * targets).sum(dim=1)
        error = (got.detach().double() - want).abs().max() * temperature
        worst = max(worst, error.item())
    assert worst < 1e-6


def test_gradient_of_a_single_extra_positive_in_int8_is_its_row(backend) -> None:
    """One weight, whatever its rounding, divided by itself: the mean of rows is that row."""
    query = unit(4, 64, dtype=torch.bfloat16).requires_grad_()
    bank = MemoryBank(4, 64, dtype=torch.int8)
    bank.enqueue(unit(4, 64, dtype=torch.float32), torch.arange(4))
    loss = weighted_info_nce(
        query, query.detach(), bank, query_ids=torch.arange(4), false_negatives="positive",
        temperature=0.5, reduction="sum", backend=backend,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss, query)
    double = query.detach().double().requires_grad_()
    want = weighted_info_nce(
        double, double.detach(), bank, query_ids=torch.arange(4), false_negatives="positive",
        temperature=0.5, reduction="sum", backend="reference",
    )  # fmt: skip
    (truth,) = torch.autograd.grad(want, double)
    torch.testing.assert_close(grad.double(), truth, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "bank+batch"])
def test_without_negatives_the_soft_targets_are_left(in_batch, backend) -> None:
    """Of positives alone: log sum exp less their mean, log(1 + m) where they are equal."""
    query, key, bank = unit(2, 8), unit(2, 8), unit(3, 8)
    leaf = query.clone().requires_grad_()
    ids, of = torch.tensor([4, 4]), torch.tensor([4, 4, -1])
    got = weighted_info_nce(
        leaf, key, bank, query_ids=ids, bank_ids=of, false_negatives="positive",
        in_batch_negatives=in_batch, temperature=0.2, hardness=2.0, reduction="none",
        backend=backend,
    )  # fmt: skip
    x = query.clone().requires_grad_()
    rights = torch.cat([(x * key).sum(1, keepdim=True), x @ bank[:2].T], dim=1) / 0.2
    if in_batch:
        rights = torch.cat([rights, (x * key.flip(0)).sum(1, keepdim=True) / 0.2], dim=1)
    want = rights.logsumexp(1) - rights.mean(1)
    torch.testing.assert_close(got, want)
    upstream = torch.tensor([1.5, -0.5], dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaf, upstream), torch.autograd.grad(want, x, upstream)
    )
    scores = torch.zeros(1, 3, dtype=torch.float64)
    alone = score_info_nce(
        scores, scores[0, :1], query_ids=ids[:1], key_ids=of, false_negatives="positive",
        backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(alone, torch.tensor(3.0, dtype=torch.float64).log())
