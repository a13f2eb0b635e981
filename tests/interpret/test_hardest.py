"""The k hardest rows on the interpreter: exactly the order of a stable fp64 sort."""

import oracle
import pytest
import torch

from sede_kernels import functional
from sede_kernels.ops.hardest import hardest
from sede_kernels.types import Bank

CASES = [(1, 1, 3, 1), (5, 130, 7, 3), (17, 70, 40, 20), (2, 5, 8, 9)]


@pytest.mark.parametrize("B,K,D,k", CASES, ids=[f"B{b}-K{k}-D{d}-top{n}" for b, k, d, n in CASES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_indices_and_gradient(B, K, D, k, dtype):
    query, bank = oracle.matrix(B, D, 1, dtype), oracle.matrix(K, D, 2, dtype)
    bank[K // 2] = bank[0]  # a tie: the lower index comes first
    query_ids, bank_ids = oracle.ids(B, 3), oracle.ids(K, 4, low=-1)
    bank[bank_ids == -1] = torch.nan
    outcome = []
    for backend, to in (("triton", dtype), ("reference", torch.float64)):
        q = query.to(to).requires_grad_()
        values, indices = functional.hardest_negatives(
            q, bank.to(to), k, query_ids=query_ids, bank_ids=bank_ids, backend=backend
        )
        finite = values.masked_fill(values.isinf(), 0.0)
        (grad,) = torch.autograd.grad(finite.square().sum(), q)
        outcome.append((values.detach(), indices, grad))
    found, truth = outcome
    assert torch.equal(found[1], truth[1])
    oracle.assert_close("values", found[0], truth[0], 2e-6)
    oracle.assert_close("gradient", found[2], truth[2], oracle.FLOORS[dtype])


def test_int8_bank_and_a_nan_query():
    generator = torch.Generator().manual_seed(5)
    query = oracle.matrix(3, 20, 6)
    query[1, 2] = torch.nan
    bank = torch.randint(-127, 128, (60, 20), generator=generator).to(torch.int8)
    scale = torch.rand(60, generator=generator)
    found = hardest(query, Bank(bank, scale), None, 4, "triton")
    plain = hardest(query, Bank(bank, scale), None, 4, "torch")
    assert torch.equal(found[1], plain[1])
    assert (found[1][1] == -1).all() and (found[0][1] == -torch.inf).all()
    oracle.assert_close("values", found[0], plain[0].double(), 2e-6)


def test_nothing_valid():
    query, bank = oracle.matrix(3, 8, 7), oracle.matrix(40, 8, 8)
    ids = torch.full((40,), -1)
    values, indices = functional.hardest_negatives(query, bank, 2, bank_ids=ids, backend="triton")
    assert (values == -torch.inf).all() and (indices == -1).all()


def test_a_nan_row_never_ranks():
    query, bank = oracle.matrix(4, 20, 9), oracle.matrix(50, 20, 10)
    bank[3], bank[40, 7] = torch.nan, torch.nan
    outcome = [
        functional.hardest_negatives(query, bank, 50, backend=backend)
        for backend in ("triton", "reference")
    ]
    assert torch.equal(outcome[0][1], outcome[1][1])
    assert (outcome[0][1] == -1).sum(1).tolist() == [2] * 4
