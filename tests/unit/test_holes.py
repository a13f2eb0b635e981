"""Keys that are not finite: they leave holes, in every backend, and no loss ever sees them."""

import pytest
import torch

from sede_kernels import (
    FragmentBank,
    MemoryBank,
    SEDELoss,
    hardest_negatives,
    reference,
    weighted_info_nce,
)
from tests.conftest import CPU_BACKENDS, unit

BAD = [float("nan"), float("inf"), -float("inf")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8]


def f32(*shape: int) -> torch.Tensor:
    return unit(*shape, dtype=torch.float32)


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("key_dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ring_is_that_of_the_reference(dtype, key_dtype, normalize, backend) -> None:
    """Holes over empty slots, over filled ones and filled again; batches that wrap and overflow."""
    size, dim = 11, 17
    bank = MemoryBank(size, dim, dtype=dtype, normalize=normalize)
    truth, ids, ptr = torch.zeros(size, dim, dtype=torch.float64), torch.full((size,), -1), 0
    rejected = 0
    for step, total in enumerate((4, 5, 6, 0, 11, 3, 25, 1)):
        keys = (torch.randn(total, dim) * 3).to(key_dtype)
        for row in range(step % 3, total, 4):
            keys[row, row % dim] = BAD[row % 3]
        names = torch.arange(total) + 100 * step
        bank.enqueue(keys, names if step % 2 else None, backend=backend)
        ptr = reference.enqueue(
            truth, ids, ptr, keys.double(), names if step % 2 else None, normalize
        )
        rejected += int((~keys[-size:].isfinite().all(1)).sum())
        assert torch.equal(bank.ids, ids)
        assert (int(bank.ptr), int(bank.rejected)) == (ptr, rejected)
        assert len(bank) == int((bank.ids != -1).sum())
        holes = bank.ids == -1
        assert not bank.rows[holes].any()
        assert bank.row_scale is None or not bank.row_scale[holes].any()
        torch.testing.assert_close(
            bank.dense(torch.float64), truth, rtol=0.01, atol=float(truth.abs().max()) / 120
        )


@pytest.mark.parametrize("value, dtype, normalize, held", [
    (1e6, torch.float16, False, False), (65504.0, torch.float16, False, True),
    (1e6, torch.float16, True, True), (1e20, torch.float32, True, False),
    (1e20, torch.float32, False, True), (1e30, torch.int8, False, True),
    (1e20, torch.int8, True, False),
], ids=str)  # fmt: skip
def test_what_the_dtype_of_the_bank_cannot_hold(value, dtype, normalize, held, backend) -> None:
    bank = MemoryBank(2, 3, dtype=dtype, normalize=normalize)
    bank.enqueue(torch.tensor([[value, 0.0, value]]), backend=backend)
    assert (len(bank), int(bank.rejected), int(bank.ptr)) == (int(held), int(not held), 1)
    assert bank.dense().isfinite().all()


def test_a_bad_key_spoils_no_loss_but_its_own(backend) -> None:
    """Losses after it equal those of a bank that lacks the key."""
    keys, query = f32(12, 8), f32(4, 8).requires_grad_()
    spoiled, clean = keys.clone(), [n for n in range(12) if n != 5]
    spoiled[5, 2] = float("nan")
    bank = MemoryBank(16, 8)
    bank.enqueue(spoiled, torch.arange(12), backend=backend)
    got = weighted_info_nce(query, query.detach(), bank, hardness=2.0, backend=backend)
    want = weighted_info_nce(query, query.detach(), keys[clean], hardness=2.0, backend=backend)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, query), torch.autograd.grad(want, query))


def test_sede_loss_is_finite_in_the_step_after_a_bad_picture() -> None:
    criterion = SEDELoss(16, 8)
    image, text = f32(4, 8), f32(4, 8)
    bad = image.clone()
    bad[1] = float("nan")
    assert not criterion(bad, text, bad, text).isfinite()
    criterion.enqueue(bad, text, ids=torch.arange(4))
    assert criterion(image, text, image, text).isfinite()
    assert (int(criterion.image_bank.rejected), int(criterion.text_bank.rejected)) == (1, 0)


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_fragment_sets_with_a_bad_fragment_leave_holes(dtype) -> None:
    bank = FragmentBank(4, 3, 2, dtype=dtype)
    sets = torch.ones(3, 3, 2)
    sets[0, 2, 0] = float("nan")  # beyond its length: not valid, hence no matter
    sets[1, 1, 1] = float("inf")
    bank.enqueue(sets, torch.tensor([2, 2, 3]), torch.tensor([5, 6, 7]))
    assert bank.ids.tolist() == [5, -1, 7, -1]
    assert bank.lengths.tolist() == [2, 0, 3, 0]
    assert not bank.rows[1].any() and bank.rows.isfinite().all()
    assert (int(bank.ptr), len(bank), int(bank.rejected)) == (3, 2, 1)
    bank.enqueue(torch.full((2, 1, 2), float("nan")))  # one over the empty slot, one over id 5
    assert bank.ids.tolist() == [-1, -1, 7, -1]
    assert (int(bank.ptr), len(bank), int(bank.rejected)) == (1, 1, 3)
    bank.enqueue(torch.ones(9, 3, 2))
    assert (int(bank.ptr), len(bank), int(bank.rejected)) == (2, 4, 3)


def test_a_plain_tensor_is_not_scanned(backend) -> None:
    keys = f32(6, 8)
    keys[2] = float("nan")
    query = f32(3, 8)
    assert weighted_info_nce(query, query, keys, backend=backend).isnan()


def test_rows_that_a_cast_makes_infinite_are_dropped() -> None:
    bank = MemoryBank(3, 2, normalize=False)
    bank.enqueue(torch.tensor([[1.0, 2.0], [1e6, 0.0]]), torch.tensor([3, 4]))
    bank.half()
    assert bank.ids.tolist() == [3, -1, -1] and bank.rows.isfinite().all()
    assert (len(bank), int(bank.rejected), int(bank.ptr)) == (1, 1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_a_poisoned_checkpoint_loads_without_its_poison(dtype) -> None:
    bank = MemoryBank(3, 2, dtype=dtype)
    bank.enqueue(torch.ones(2, 2), torch.tensor([3, 4]))
    state = {name: value.clone() for name, value in bank.state_dict().items()}
    state["rows" if dtype == torch.float32 else "row_scale"][1] = float("nan")
    for assign in (False, True):
        fresh = MemoryBank(3, 2, dtype=dtype)
        fresh.load_state_dict({k: v.clone() for k, v in state.items()}, assign=assign)
        assert fresh.ids.tolist() == [3, -1, -1]
        assert (len(fresh), int(fresh.rejected), int(fresh.ptr)) == (1, 1, 2)
        assert fresh.dense().isfinite().all()


@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chosen", ["reference", *CPU_BACKENDS])
def test_nan_never_ranks_as_hardest(chosen, dtype, k) -> None:
    """Oracle: the same search without the rows that are NaN."""
    query, bank = unit(5, 8, dtype=dtype).requires_grad_(), unit(30, 8, dtype=dtype)
    bad = [0, 13, 29]
    kept = torch.tensor([n for n in range(30) if n not in bad])
    clean = bank[kept]
    bank[bad[0]], bank[bad[1], 2], bank[bad[2], 7] = torch.nan, torch.nan, torch.nan
    values, indices = hardest_negatives(query, bank, k, backend=chosen)
    right, places = hardest_negatives(query, clean, k, backend=chosen)
    torch.testing.assert_close(values, right)
    assert torch.equal(indices, torch.where(places < 0, -1, kept[places.clamp(min=0)]))
    (grad,) = torch.autograd.grad(values[:, :1].sum(), query)
    assert grad.isfinite().all()


@pytest.mark.parametrize("chosen", ["reference", *CPU_BACKENDS])
def test_a_nan_query_finds_nothing_and_leaves_the_others_alone(chosen) -> None:
    query, bank = f32(4, 8), f32(30, 8)
    right = hardest_negatives(query, bank, 2, backend=chosen)
    query[1, 3] = torch.nan
    values, indices = hardest_negatives(query, bank, 2, backend=chosen)
    assert indices[1].tolist() == [-1, -1] and values[1].tolist() == [-torch.inf] * 2
    others = [0, 2, 3]
    assert torch.equal(indices[others], right[1][others])
    torch.testing.assert_close(values[others], right[0][others])
