"""Two banks in one launch on the interpreter, against fp64 and against two launches."""

import oracle
import pytest
import torch

from sede_kernels import MemoryBank, functional
from sede_kernels.backends.triton import bank_lse as bank_module
from sede_kernels.backends.triton import launch
from sede_kernels.ops.bank_lse import bank_lse
from sede_kernels.ops.bank_lse_pair import bank_lse_pair
from sede_kernels.types import Bank, Match, Want

NAMES = ("lse", "moment", "acc", "count", "top", "top_index")


def _bank(rows, dim, seed, dtype, *, holes):
    """A bank whose empty slots hold NaN."""
    ids = oracle.ids(rows, seed, low=-1) if holes else None
    if dtype == torch.int8:
        store = MemoryBank(rows, dim, dtype=dtype)
        store.enqueue(oracle.matrix(rows - 3, dim, seed), oracle.ids(rows - 3, seed))
        return Bank(store.rows, store.row_scale, store.ids)
    bank = oracle.matrix(rows, dim, seed, dtype)
    if holes:
        bank[ids == -1] = torch.nan
    return Bank(bank, ids=ids)


#: Variant A, variant B, the pass without rows, 8-bit rows; whole and with empty slots.
CASES = [
    (torch.bfloat16, torch.bfloat16, [0]),
    (torch.float16, torch.float16, [1]),
    (torch.float32, torch.float32, [0]),
    (torch.float32, torch.float32, []),
    (torch.bfloat16, torch.int8, [0]),
]
CASE_IDS = ["one-pass", "fp16", "chunks", "no-rows", "int8"]


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize("dtype,stored,accumulate", CASES, ids=CASE_IDS)
@pytest.mark.parametrize("B,K,D", [(1, 1, 8), (17, 150, 40)], ids=["one", "odd"])
def test_each_side_equals_a_launch_of_its_own(B, K, D, dtype, stored, accumulate, holes):
    if stored == torch.int8 and (K == 1 or not holes):
        pytest.skip("an 8-bit bank here has ids and some rows")
    query = torch.stack([oracle.matrix(B, D, seed, dtype) for seed in (1, 2)])
    bank, other = (_bank(K, D, seed, stored, holes=holes) for seed in (3, 4))
    ids = oracle.ids(B, 5) if holes else None
    limit = torch.stack([torch.full((B,), 0.4), torch.full((B,), 0.1)])
    scales = torch.tensor([14.3, 5.0])
    match, want = Match(ids, limit), Want(tuple(accumulate), moments=True, hardest=True)
    found = bank_lse_pair(query, bank, other, scales, scales, match, want, None, "triton")
    for side, its in enumerate((bank, other)):
        own = match.of_side(side)
        alone = bank_lse(query[side], its, scales, scales, own, want, None, "triton")
        for name, both, one in zip(NAMES, found, alone, strict=True):
            # The parts of a shared launch are longer, so that sums round differently.
            oracle.assert_close(name, both[side], one.double(), oracle.FLOORS[dtype])
        assert torch.equal(found[3][side], alone[3]) and torch.equal(found[5][side], alone[5])


@pytest.mark.parametrize("unit", [False, True], ids=["running", "fixed"])
@pytest.mark.parametrize("parts", [1, 3])
def test_one_launch_serves_both(monkeypatch, parts, unit):
    launched = []
    kernel = bank_module._bank_lse_fwd_kernel

    class Counting:
        def __getitem__(self, grid):
            launched.append(grid)
            return kernel[grid]

    monkeypatch.setattr(bank_module, "_bank_lse_fwd_kernel", Counting())
    monkeypatch.setattr(bank_module, "parts_of_bank", lambda *_: parts)
    architecture, _ = launch.device_class(torch.device("cpu"))
    key = "128/static" if unit else "128/lean"
    tile = launch.candidates("bank_lse_pair", key, architecture)[0]
    query = torch.stack([oracle.matrix(20, 40, seed, torch.bfloat16) for seed in (1, 2)])
    banks = [oracle.matrix(5 * tile.cols - 10, 40, s, torch.bfloat16) for s in (3, 4)]
    scales = torch.tensor([14.3])
    want = Want((0,), unit_length=unit)
    lse, _, acc, _, _, _ = bank_lse_pair(
        query, *map(Bank, banks), scales, scales, Match(), want, None, "triton"
    )
    assert launched == [(-(-20 // tile.rows), parts, 2)]
    for side in (0, 1):
        s = query[side].double() @ banks[side].double().T
        want = torch.logsumexp(14.3 * s, 1)
        oracle.assert_close("lse", lse[side, 0], want, oracle.FLOORS[torch.bfloat16])
        rows = (14.3 * s).softmax(1) @ banks[side].double()
        oracle.assert_close("acc", acc[side, 0], rows, oracle.FLOORS[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_symmetric_loss_and_gradients(dtype, detach):
    image, text, image_key, text_key = (oracle.matrix(5, 16, s, dtype) for s in (1, 2, 3, 4))
    banks = [oracle.matrix(40, 16, s, dtype) for s in (5, 6)]
    outcome = []
    for backend, to in (("triton", dtype), ("reference", torch.float64)):
        leaves = [x.to(to).requires_grad_() for x in (image, text, image_key, text_key)]
        tau = torch.tensor(0.1, dtype=torch.promote_types(to, torch.float32), requires_grad=True)
        loss = functional.symmetric_info_nce(
            *leaves, *(bank.to(to) for bank in banks), temperature=tau, hardness=4.0,
            detach_weights=detach, ids=oracle.ids(5, 7), margin=0.3, in_batch_negatives=True,
            backend=backend,
        )  # fmt: skip
        outcome.append((loss.detach(), *torch.autograd.grad(loss, (*leaves, tau))))
    floor = 5e-6 if dtype == torch.float32 else oracle.FLOORS[dtype]
    names = ("loss", "image", "text", "image_key", "text_key", "tau")
    for name, got, want in zip(names, *outcome, strict=True):
        oracle.assert_close(name, got, want, floor)


def test_a_nan_in_one_bank_stays_there():
    query = torch.stack([oracle.matrix(5, 40, seed, torch.bfloat16) for seed in (1, 2)])
    banks = [oracle.matrix(70, 40, seed, torch.bfloat16) for seed in (3, 4)]
    scales = torch.tensor([14.3])

    def run():
        full = map(Bank, banks)
        return bank_lse_pair(query, *full, scales, scales, Match(), Want((0,)), None, "triton")

    clean = run()
    banks[1][7, 3] = torch.nan
    lse, _, acc, _, _, _ = run()
    assert lse[1].isnan().all() and acc[1].isnan().any()
    assert torch.equal(lse[0], clean[0][0]) and torch.equal(acc[0], clean[2][0])
