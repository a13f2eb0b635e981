"""Half gradients: the parts of a loss add up in fp32 and are rounded once."""

import itertools

import pytest
import torch

from sede_kernels import MemoryBank, bank_lse, symmetric_info_nce, weighted_info_nce
from sede_kernels.testing import relative_error
from tests.conftest import unit

HALF = [torch.bfloat16, torch.float16]
#: The most that one rounding of a result changes it by, relative to its size.
ONE_ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12}


def near(rows: torch.Tensor) -> torch.Tensor:
    """Rows so close that the pulls of positive and negatives nearly cancel."""
    return torch.nn.functional.normalize(rows.double() + 0.02 * unit(*rows.shape), dim=1)


@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "bank+batch"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_parts_that_cancel_keep_their_digits(dtype, in_batch, backend) -> None:
    query = near(unit(1, 64).expand(6, 64)).to(dtype)
    key, bank = near(query).to(dtype), near(query.repeat(5, 1)).to(dtype).float()
    options = {"temperature": 0.05, "hardness": 3.0, "in_batch_negatives": in_batch}
    outcome = []
    for name, to in ((backend, dtype), ("reference", torch.float64)):
        q, k = query.to(to).requires_grad_(), key.to(to).requires_grad_()
        loss = weighted_info_nce(q, k, bank.to(to if to != dtype else bank.dtype), backend=name,
                                 **options)  # fmt: skip
        outcome.append(torch.autograd.grad(loss, (q, k)))
    for got, want in zip(*outcome, strict=True):
        assert got.dtype == dtype
        assert relative_error(got, want) < 1.5 * ONE_ROUNDING[dtype]


@pytest.mark.parametrize(
    "query_dtype, key_dtype", itertools.product([*HALF, torch.float32], repeat=2)
)
def test_each_side_gets_its_own_dtype(query_dtype, key_dtype, backend) -> None:
    query, key = (unit(5, 16, dtype=d).requires_grad_() for d in (query_dtype, key_dtype))
    bank = MemoryBank(9, 16)
    bank.enqueue(unit(9, 16, dtype=torch.float32))
    loss = weighted_info_nce(query, key, bank, in_batch_negatives=True, backend=backend)
    grads = torch.autograd.grad(loss, (query, key))
    assert [grad.dtype for grad in grads] == [query_dtype, key_dtype]
    double = [x.detach().double().requires_grad_() for x in (query, key)]
    truth = weighted_info_nce(*double, bank, in_batch_negatives=True, backend="reference")
    torch.testing.assert_close(loss.double(), truth, rtol=1e-2, atol=1e-3)
    for got, want in zip(grads, torch.autograd.grad(truth, double), strict=True):
        assert relative_error(got, want) < 1e-2


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_both_directions_and_log_sums(dtype, backend) -> None:
    image, text = (unit(6, 32, dtype=dtype).requires_grad_() for _ in range(2))
    banks = unit(20, 32, dtype=torch.float32), unit(20, 32, dtype=torch.float32)
    scales = [14.0, 5.0, 1.0]
    outcome = []
    for name, to in ((backend, dtype), ("reference", torch.float64)):
        x, y = (rows.detach().to(to).requires_grad_() for rows in (image, text))
        rows = [bank if to == dtype else bank.double() for bank in banks]
        loss = symmetric_info_nce(x, y, x, y, *rows, hardness=2.0, backend=name)
        sums = bank_lse(x, rows[0], scales, backend=name)
        assert sums.dtype == (torch.float32 if to == dtype else torch.float64)
        outcome.append((*torch.autograd.grad(loss, (x, y)), *torch.autograd.grad(sums.sum(), x)))
    for got, want in zip(*outcome, strict=True):
        assert got.dtype == dtype
        assert relative_error(got, want) < 1.5 * ONE_ROUNDING[dtype]
