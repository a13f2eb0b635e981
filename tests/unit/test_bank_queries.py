"""bank_lse and hardest_negatives against logsumexp and sort in fp64."""

import pytest
import torch

from sede_kernels import MemoryBank, bank_lse, hardest_negatives
from sede_kernels.testing import assert_within_budget
from tests.conftest import CPU_BACKENDS, unit

SHAPES = [(1, 1, 1), (3, 0, 4), (0, 7, 4), (5, 17, 7), (13, 1031, 33), (2, 9001, 12)]


@pytest.mark.parametrize("scales", [[1.0], [0.0, 3.0], [14.0, 5.0, 0.5]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bank_lse_and_gradients(shape, scales, backend) -> None:
    rows, size, dim = shape
    query, bank = unit(rows, dim).float(), unit(size, dim).float()
    ids, bank_ids = torch.randint(0, 4, (rows,)), torch.randint(-1, 4, (size,))
    results = []
    for which, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        q = query.to(dtype).requires_grad_()
        c = torch.tensor(scales, dtype=dtype, requires_grad=True)
        out = bank_lse(q, bank.to(dtype), c, query_ids=ids, bank_ids=bank_ids, backend=which)
        assert out.shape == (rows, len(scales))
        weight = torch.arange(1.0, out.numel() + 1, dtype=dtype).view_as(out)
        loss = (out.masked_fill(out == -torch.inf, 0.0) * weight).sum()
        grads = torch.autograd.grad(loss, [q, c]) if rows else []
        results.append([out, *grads])
    for got, want in zip(*results, strict=True):
        # Sums over up to thousands of rows: fp32 eager itself is at a few 1e-7.
        assert_within_budget(got, want, None, torch.float32)


def test_scalar_scale_gives_a_vector_and_matches_logsumexp(backend) -> None:
    query, bank = unit(4, 6).float(), unit(50, 6).float()
    got = bank_lse(query, bank, 1 / 0.07, backend=backend)
    torch.testing.assert_close(got, (query @ bank.T / 0.07).logsumexp(1))


def test_bank_lse_gradcheck() -> None:
    query, bank = unit(3, 4).requires_grad_(), unit(11, 4)
    scales = torch.tensor([2.0, 0.5, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, c: bank_lse(q, bank, c, backend="torch"),
                                    (query, scales))  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hardest_negatives(shape, k, backend) -> None:
    rows, size, dim = shape
    # Small integers: similarities are exact in every precision, and ties are plenty.
    query = torch.randint(-2, 3, (rows, dim)).float().requires_grad_()
    bank = torch.randint(-2, 3, (size, dim)).float()
    ids, bank_ids = torch.randint(0, 4, (rows,)), torch.randint(-1, 4, (size,))
    values, indices = hardest_negatives(
        query, bank, k, query_ids=ids, bank_ids=bank_ids, backend=backend
    )
    for i in range(rows):
        valid = [j for j in range(size) if bank_ids[j] != -1 and bank_ids[j] != ids[i]]
        s = (query[i].detach() @ bank.T).tolist()
        order = sorted(valid, key=lambda j: (-s[j], j))[:k]
        padding = k - len(order)
        assert indices[i].tolist() == order + [-1] * padding
        assert values[i].tolist() == [s[j] for j in order] + [-float("inf")] * padding
    kept = values.masked_fill(indices < 0, 0.0)
    if rows:
        (grad,) = torch.autograd.grad(kept.sum(), query)
        rows_of = bank[indices.clamp(min=0)] if size else torch.zeros(rows, k, dim)
        want = (rows_of * (indices >= 0).unsqueeze(2)).sum(1)
        torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "reference"])
def test_an_infinite_row_has_no_part_in_the_gradient_of_a_query_that_did_not_select_it(
    backend,
) -> None:
    query = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    bank = torch.tensor([[-torch.inf, 0.0], [torch.inf, 1.0], [3.0, 1.0]])
    ids, bank_ids = torch.tensor([7, 8]), torch.tensor([1, 7, 2])
    values, indices = hardest_negatives(
        query, bank, query_ids=ids, bank_ids=bank_ids, backend=backend
    )
    assert values.tolist() == [[5.0], [torch.inf]]
    assert indices.tolist() == [[2], [1]]
    (grad,) = torch.autograd.grad(values[0, 0], query)
    assert grad[0].tolist() == [3.0, 1.0]


def test_hardest_in_an_int8_memory_bank(backend) -> None:
    bank = MemoryBank(37, 16, dtype=torch.int8)
    bank.enqueue(unit(37, 16).float(), torch.arange(37))
    query = unit(5, 16).float().requires_grad_()
    values, indices = hardest_negatives(query, bank, 4, backend=backend)
    want, order = (query @ bank.dense().T).topk(4)
    torch.testing.assert_close(values, want)
    assert torch.equal(indices, order)
    (grad,) = torch.autograd.grad(values.sum(), query)
    torch.testing.assert_close(grad, bank.dense()[order].sum(1))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda q, m: bank_lse(q, m, []), "scales must hold 1 to 3 exponents, got 0"),
        (lambda q, m: bank_lse(q, m, [1.0] * 4), "scales must hold 1 to 3 exponents, got 4"),
        (lambda q, m: bank_lse(q, m, -1.0), "scales must be >= 0"),
        (lambda q, m: hardest_negatives(q, m, 0), "k must be an integer >= 1, got 0"),
        (lambda q, m: hardest_negatives(q, m, 1.5), "k must be an integer >= 1, got 1.5"),
        (lambda q, m: hardest_negatives(q, m[0]), r"bank must be \(K, 4\) to match query"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 4), torch.zeros(3, 4))
