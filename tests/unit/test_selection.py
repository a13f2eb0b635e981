"""Which slots an op takes, with the ids of either side present or missing, by the definition."""

import itertools

import pytest
import torch
from torch import Tensor

from sede_kernels import MemoryBank, ops, weighted_info_nce
from sede_kernels.functional import symmetric_info_nce
from sede_kernels.types import Bank, Match, Want
from tests.conftest import unit

SELECTS = ["mask", "positive", "keep"]
IDS = list(itertools.product([False, True], repeat=2))
IDS_NAMES = [f"query ids {q}, bank ids {b}" for q, b in IDS]


def chosen(query_ids: Tensor | None, bank_ids: Tensor | None, select: str, shape: tuple) -> Tensor:
    """(B, K) bool, slot by slot; an empty slot has id -1."""
    valid = torch.zeros(shape, dtype=torch.bool)
    for i, j in itertools.product(*map(range, shape)):
        empty = bank_ids is not None and int(bank_ids[j]) == -1
        known = query_ids is not None and bank_ids is not None
        same = known and int(query_ids[i]) == int(bank_ids[j])
        valid[i, j] = not empty and {"mask": not same, "positive": same, "keep": True}[select]
    return valid


def log_sum(query: Tensor, bank: Tensor, valid: Tensor) -> Tensor:
    s = (query.double() @ bank.double().T).masked_fill(~valid, -torch.inf)
    return (5.0 * s).logsumexp(dim=1)


@pytest.mark.parametrize("with_ids", IDS, ids=IDS_NAMES)
@pytest.mark.parametrize("select", SELECTS)
def test_passes_over_one_and_two_banks(select, with_ids, backend) -> None:
    query, bank, other = unit(2, 5, 8), unit(40, 8), unit(40, 8)
    query_ids = torch.arange(5) if with_ids[0] else None
    bank_ids = torch.arange(40) % 8 - 1 if with_ids[1] else None
    other_ids = torch.arange(40) % 7 - 1 if with_ids[1] else None
    valid = [chosen(query_ids, found, select, (5, 40)) for found in (bank_ids, other_ids)]
    scales = torch.tensor([5.0], dtype=torch.float64)
    options = (Match(query_ids, None, select), Want((0,), True, True), None, backend)
    banks = Bank(bank, ids=bank_ids), Bank(other, ids=other_ids)
    lse, moment, acc, count, top, index = ops.bank_lse.bank_lse(
        query[0], banks[0], scales, scales.clone(), *options
    )
    torch.testing.assert_close(lse[0], log_sum(query[0], bank, valid[0]))
    assert torch.equal(count, valid[0].sum(dim=1))
    none = count == 0
    assert torch.equal(acc[0][none], torch.zeros(int(none.sum()), 8).double())
    assert (moment[0][none] == 0).all() and (index[none] == -1).all() and (top[none] < -9).all()
    pair = ops.bank_lse_pair.bank_lse_pair(query, *banks, scales, scales.clone(), *options)
    for side, rows in enumerate((bank, other)):
        torch.testing.assert_close(pair.lse[side, 0], log_sum(query[side], rows, valid[side]))
        assert torch.equal(pair.negatives[side], valid[side].sum(dim=1))


@pytest.mark.parametrize("with_ids", [False, True], ids=["no ids", "ids"])
@pytest.mark.parametrize("select", SELECTS)
def test_passes_over_the_batch(select, with_ids, backend) -> None:
    """An id of -1 is unknown in a batch: never the same as another, so always a negative."""
    query, key = unit(6, 8).requires_grad_(), unit(6, 8).requires_grad_()
    ids = torch.tensor([0, 1, 0, -1, -1, 2])
    known = torch.where(ids == -1, torch.arange(10, 16), ids)
    valid = chosen(known, known if with_ids else None, select, (6, 6))
    valid &= ~torch.eye(6, dtype=torch.bool)
    scales = torch.tensor([5.0], dtype=torch.float64)
    match = Match(ids if with_ids else None, None, select)
    lse, _, count, *_ = ops.batch_lse.batch_lse(
        query, key, scales, scales.clone(), match, Want(), False, None, None, backend
    )
    want = log_sum(query, key, valid)
    torch.testing.assert_close(lse[0], want)
    assert torch.equal(count, valid.sum(dim=1))
    some = count > 0
    got_grads = torch.autograd.grad(lse[0][some].sum(), (query, key))
    for got, truth in zip(
        got_grads, torch.autograd.grad(want[some].sum(), (query, key)), strict=True
    ):
        torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("with_ids", IDS, ids=IDS_NAMES)
def test_hardest_rows(with_ids, backend) -> None:
    query, bank = unit(5, 8), unit(40, 8)
    query_ids = torch.arange(5) if with_ids[0] else None
    bank_ids = torch.arange(40) % 8 - 1 if with_ids[1] else None
    valid = chosen(query_ids, bank_ids, "mask", (5, 40))
    values, indices = ops.hardest.hardest(query, Bank(bank, ids=bank_ids), query_ids, 3, backend)
    s = (query @ bank.T).masked_fill(~valid, -torch.inf)
    want, places = s.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(values, want[:, :3])
    assert torch.equal(indices, places[:, :3])


@pytest.mark.parametrize("backend", ["torch", "cpu", "reference"])
def test_no_row_of_a_bank_without_ids_is_a_positive(backend) -> None:
    """Soft positives are found by id: a bank without ids is all negatives, as with "mask"."""
    query, bank = unit(4, 16, dtype=torch.float32).requires_grad_(), unit(9, 16).float()
    key = unit(4, 16, dtype=torch.float32)
    anonymous = MemoryBank(12, 16)
    anonymous.enqueue(bank)
    options = {"temperature": 0.1, "query_ids": torch.arange(4), "backend": backend}
    s, own = query.double() @ bank.double().T / 0.1, (query.double() * key.double()).sum(1) / 0.1
    want = (torch.logaddexp(own, s.logsumexp(1)) - own).mean()
    for rows in (bank, anonymous):
        loss = weighted_info_nce(query, key, rows, false_negatives="positive", **options)
        torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
        grads = [torch.autograd.grad(x, query, retain_graph=True)[0] for x in (loss, want)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)
    both = symmetric_info_nce(
        query, query, key, key, bank, bank, ids=torch.arange(4), temperature=0.1,
        false_negatives="positive", backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(both.double(), want, rtol=1e-5, atol=1e-6)
