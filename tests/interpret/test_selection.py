"""Which slots the Triton kernels take, with the ids of either side present or missing."""

import itertools

import oracle
import pytest
import torch

from sede_kernels import functional, ops
from sede_kernels.types import Bank, Match, Want

IDS = list(itertools.product([False, True], repeat=2))
IDS_NAMES = [f"query ids {q}, bank ids {b}" for q, b in IDS]


def _valid(query_ids, bank_ids, select, shape):
    valid = torch.zeros(shape, dtype=torch.bool)
    for i, j in itertools.product(*map(range, shape)):
        empty = bank_ids is not None and int(bank_ids[j]) == -1
        known = query_ids is not None and bank_ids is not None
        same = known and int(query_ids[i]) == int(bank_ids[j])
        valid[i, j] = not empty and {"mask": not same, "positive": same, "keep": True}[select]
    return valid


@pytest.mark.parametrize("with_ids", IDS, ids=IDS_NAMES)
@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["one pass", "chunks"])
def test_one_and_two_banks(dtype, select, with_ids):
    queries = torch.stack([oracle.matrix(5, 16, seed, dtype) for seed in (1, 2)])
    banks = [oracle.matrix(40, 16, seed, dtype) for seed in (3, 4)]
    query_ids = torch.arange(5) if with_ids[0] else None
    all_ids = [torch.arange(40) % n - 1 if with_ids[1] else None for n in (8, 7)]
    scales = torch.tensor([5.0])
    options = (Match(query_ids, None, select), Want((0,)), None, "triton")
    full = [Bank(rows, ids=ids) for rows, ids in zip(banks, all_ids, strict=True)]
    single = ops.bank_lse.bank_lse(queries[0], full[0], scales, scales, *options)
    pair = ops.bank_lse_pair.bank_lse_pair(queries, *full, scales, scales, *options)
    results = [(single, 0), *(([out[side] for out in pair], side) for side in (0, 1))]
    for (lse, _, acc, count, *_), side in results:
        valid = _valid(query_ids, all_ids[side], select, (5, 40))
        s = (queries[side].double() @ banks[side].double().T).masked_fill(~valid, -torch.inf)
        oracle.assert_close("lse", lse[0], (5.0 * s).logsumexp(dim=1), oracle.FLOORS[dtype])
        assert torch.equal(count, valid.sum(dim=1))
        assert (acc[0][count == 0] == 0).all()


def test_no_row_of_a_bank_without_ids_is_a_positive():
    query, bank = oracle.matrix(4, 16, 5), oracle.matrix(9, 16, 6)
    loss = functional.weighted_info_nce(
        query, query, bank, temperature=0.1, query_ids=torch.arange(4), false_negatives="positive",
        backend="triton",
    )  # fmt: skip
    s = query.double() @ bank.double().T / 0.1
    own = (query.double() ** 2).sum(1) / 0.1
    want = (torch.logaddexp(own, s.logsumexp(1)) - own).mean()
    oracle.assert_close("loss", loss, want, 2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mean_logit_of_soft_positives_is_an_exact_sum(dtype):
    """No weight of the second product enters the loss's value."""
    query, rows = oracle.matrix(6, 32, 7, dtype), oracle.matrix(60, 32, 8)
    rows[:6] = query.float()
    scale = rows.abs().amax(dim=1) / 127
    bank = (rows / scale[:, None]).round().to(torch.int8)
    ids, bank_ids = torch.arange(6), torch.arange(60) % 20
    scales = torch.tensor([1 / 0.02, 0.0])
    match, want = Match(ids, None, "positive"), Want((0, 1), moments=True)
    _, moment, *_ = ops.bank_lse.bank_lse(
        query, Bank(bank, scale, bank_ids), scales, scales, match, want, None, "triton"
    )
    s = query.double() @ (bank.double() * scale.double()[:, None]).T
    same = ids[:, None] == bank_ids
    oracle.assert_close("mean", moment[1], (s * same).sum(1) / same.sum(1), 2e-6)
