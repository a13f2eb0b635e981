"""Weights in half precision are summed twice: whole for the log-sum-exp, rounded for the rows."""

import oracle
import pytest
import torch

from sede_kernels import functional, ops
from sede_kernels.backends.triton import _chunks
from sede_kernels.backends.triton import bank_lse as bank_module
from sede_kernels.types import Bank, Match, Want

HALF = [torch.bfloat16, torch.float16]
#: (columns, exponents, accumulators): variant A; with statistics; in chunks, for width or for O.
PASSES = [
    pytest.param(32, [14.3, 5.0], [0], {}, id="one pass"),
    pytest.param(32, [14.3, 5.0], [1], {"unit": True}, id="fixed maximum"),
    pytest.param(32, [14.3, 0.0, 5.0], [2], {"moments": True, "hardest": True}, id="statistics"),
    pytest.param(32, [14.3, 5.0], [1, 0], {"moments": True}, id="chunks, two accumulators"),
    pytest.param(600, [14.3, 5.0, 1.0], [0], {}, id="chunks, wide"),
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Variant B takes several chunks and several parts of each."""
    monkeypatch.setattr(_chunks, "CHUNK_BYTES", 9000)


def _run(query, bank, scales, accumulate, *, ids=None, unit=False, moments=False, hardest=False):
    want, bank = Want(tuple(accumulate), moments, hardest, unit), Bank(bank, ids=ids)
    return ops.bank_lse.bank_lse(query, bank, scales, scales, Match(), want, None, "triton")


@pytest.mark.parametrize("dim, exponents, accumulate, options", PASSES)
@pytest.mark.parametrize("K", [1, 2, 300])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_log_sum_exp_beside_rows_is_that_of_whole_weights(
    dtype, K, dim, exponents, accumulate, options
):
    query, bank = oracle.matrix(5, dim, 1, dtype), oracle.matrix(K, dim, 2, dtype)
    ids = torch.arange(K)
    ids[3::7] = -1
    scales = torch.tensor(exponents)
    s = query.double() @ bank.double().T
    for found in (None, ids):
        logits = scales.double()[:, None, None] * s
        if found is not None:
            logits = logits.masked_fill(found == -1, -torch.inf)
        lse, moment, acc, *_ = _run(query, bank, scales, accumulate, ids=found, **options)
        oracle.assert_close("lse", lse, logits.logsumexp(dim=2), 1e-6)
        if options.get("moments"):
            oracle.assert_close("moment", moment, (logits.softmax(dim=2) * s).sum(dim=2), 2e-6)
        rows = logits.softmax(dim=2)[accumulate] @ bank.double()
        oracle.assert_close("acc", acc, rows, oracle.FLOORS[dtype])
        if K == 1:  # one weight over itself, whatever it was rounded to
            oracle.assert_close("acc", acc[:, 0], bank.double().expand(len(accumulate), -1), 1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_parts_are_weighed_by_whole_sums(dtype, monkeypatch):
    monkeypatch.setattr(bank_module, "parts_of_bank", lambda *_: 3)
    query, bank = oracle.matrix(5, 32, 3, dtype), oracle.matrix(500, 32, 4, dtype)
    scales = torch.tensor([14.3, 5.0])
    logits = scales.double()[:, None, None] * (query.double() @ bank.double().T)
    for unit in (False, True):
        lse, _, acc, *_ = _run(query, bank, scales, [0], unit=unit)
        oracle.assert_close("lse", lse, logits.logsumexp(dim=2), 1e-6)
        rows = logits.softmax(dim=2)[[0]] @ bank.double()
        oracle.assert_close("acc", acc, rows, oracle.FLOORS[dtype])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_two_banks_and_an_8_bit_bank(dtype):
    queries = torch.stack([oracle.matrix(5, 32, seed, dtype) for seed in (5, 6)])
    banks = [oracle.matrix(100, 32, seed, dtype) for seed in (7, 8)]
    scales = torch.tensor([14.3])
    tail = (Match(), Want((0,), moments=True), None, "triton")
    lse, moment, *_ = ops.bank_lse_pair.bank_lse_pair(
        queries, *map(Bank, banks), scales, scales, *tail
    )
    for side in (0, 1):
        s = queries[side].double() @ banks[side].double().T
        oracle.assert_close("lse", lse[side, 0], (14.3 * s).logsumexp(dim=1), 1e-6)
        mean = ((14.3 * s).softmax(dim=1) * s).sum(dim=1)
        oracle.assert_close("moment", moment[side, 0], mean, 2e-6)
    rows = banks[0].float()
    scale = rows.abs().amax(dim=1) / 127
    small = (rows / scale[:, None]).round().to(torch.int8)
    lse, *_ = ops.bank_lse.bank_lse(queries[0], Bank(small, scale), scales, scales, *tail)
    s = queries[0].double() @ (small.double() * scale.double()[:, None]).T
    oracle.assert_close("lse", lse[0], (14.3 * s).logsumexp(dim=1), 1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_loss_does_not_change_with_the_wish_for_a_gradient(dtype):
    query, bank = oracle.matrix(5, 32, 9, dtype), oracle.matrix(64, 32, 10, dtype)
    losses = [
        functional.weighted_info_nce(
            query.clone().requires_grad_(wish), query, bank, temperature=0.05, hardness=5.0,
            backend="triton",
        ).detach()
        for wish in (False, True)
    ]  # fmt: skip
    truth = functional.weighted_info_nce(
        query.double(), query.double(), bank.double(), temperature=0.05, hardness=5.0,
        backend="reference",
    )  # fmt: skip
    for loss in losses:
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-6)
