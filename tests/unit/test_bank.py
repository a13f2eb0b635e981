"""MemoryBank and FragmentBank: ring semantics, dtypes, state, and input that is refused whole."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sede_kernels import FragmentBank, MemoryBank, reference
from sede_kernels.ops.enqueue import enqueue as enqueue_op
from sede_kernels.types import RingState
from tests.conftest import CPU_BACKENDS, unit


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 14), max_size=6), st.sampled_from(CPU_BACKENDS))
def test_any_batch_size_wraps_like_one_by_one(size, batches, backend) -> None:
    bank = MemoryBank(size, 3, dtype=torch.float64)
    rows, ids, ptr = torch.zeros(size, 3, dtype=torch.float64), torch.full((size,), -1), 0
    total = 0
    for batch in batches:
        keys, key_ids = torch.randn(batch, 3, dtype=torch.float64), torch.randint(0, 99, (batch,))
        ring = RingState(bank.rows, None, bank.ids, bank.ptr, bank.count, bank.rejected)
        enqueue_op(ring, keys, key_ids, True, "torch" if backend == "cpu" else backend)
        ptr = reference.enqueue(rows, ids, ptr, keys, key_ids, normalize=True)
        total += batch
    torch.testing.assert_close(bank.rows, rows)
    assert torch.equal(bank.ids, ids)
    assert (int(bank.ptr), int(bank.count)) == (ptr, min(total, size))


@pytest.mark.parametrize("size, batches", [(5, [3, 3, 0, 7]), (1, [1, 4]), (64, [63, 2, 200])])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8], ids=str
)
@pytest.mark.parametrize("key_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_dtype_stores_the_normalised_key(size, batches, dtype, key_dtype, backend) -> None:
    bank = MemoryBank(size, 33, dtype=dtype)
    truth, ids, ptr = torch.zeros(size, 33, dtype=torch.float64), torch.full((size,), -1), 0
    for batch in batches:
        keys = (torch.randn(batch, 33) * 3).to(key_dtype)
        bank.enqueue(keys, backend=backend)
        ptr = reference.enqueue(truth, ids, ptr, keys.double(), None, normalize=True)
    step = {torch.float32: 2e-7, torch.bfloat16: 2e-3, torch.float16: 2.5e-4}
    tolerance = step.get(dtype, truth.abs().amax().item() / 127 * 0.501)
    assert (bank.dense(torch.float64) - truth).abs().amax() <= tolerance
    assert torch.equal(bank.ids, ids)
    assert int(bank.ptr) == ptr
    assert (bank.ids == -2).sum() == int(bank.count) == len(bank)


def test_unit_rows_are_stored_bit_for_bit_and_zero_rows_stay_zero(backend) -> None:
    keys = unit(20, 48, dtype=torch.float32)
    keys[3] = 0
    bank = MemoryBank(20, 48)
    bank.enqueue(keys, backend=backend)
    assert torch.equal(bank.rows, keys)
    raw = MemoryBank(20, 48, normalize=False)
    raw.enqueue(keys * 3, backend=backend)
    assert torch.equal(raw.rows, keys * 3)


def test_keys_are_untouched_and_carry_no_gradient() -> None:
    keys = torch.randn(4, 8, requires_grad=True)
    before = keys.detach().clone()
    bank = MemoryBank(6, 8)
    bank.enqueue(keys)
    assert torch.equal(keys, before)
    assert not bank.rows.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_state_survives_saving_deepcopy_and_conversion(dtype) -> None:
    bank = MemoryBank(10, 4, dtype=dtype)
    bank.enqueue(torch.randn(7, 4), torch.arange(7))
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other = MemoryBank(10, 4, dtype=dtype)
    other.load_state_dict(torch.load(file))
    twin = copy.deepcopy(bank)
    more = torch.randn(5, 4)
    for one in (bank, other, twin):
        one.enqueue(more, torch.arange(5))
    for one in (other, twin):
        for name, value in bank.state_dict().items():
            assert torch.equal(one.state_dict()[name], value), name
    converted = copy.deepcopy(bank).to(torch.bfloat16)
    assert converted.ids.dtype == torch.int64
    if dtype == torch.int8:
        assert converted.rows.dtype == torch.int8
        assert converted.row_scale is not None and converted.row_scale.dtype == torch.float32


def test_clear_and_repr() -> None:
    bank = MemoryBank(3, 2, dtype=torch.int8)
    bank.enqueue(torch.ones(2, 2))
    bank.clear()
    assert len(bank) == 0 and int(bank.ptr) == 0
    assert "size=3, dim=2, dtype=torch.int8" in repr(bank)


BAD_KEYS = [
    (torch.zeros(2, 5), None, ValueError, r"keys must be \(N, 4\), got \(2, 5\)"),
    (torch.zeros(4), None, ValueError, r"keys must be \(N, 4\), got \(4,\)"),
    (torch.zeros(2, 4).long(), None, TypeError, "must be a floating tensor, got torch.int64"),
    ([1.0], None, TypeError, "must be a floating tensor, got list"),
    (torch.zeros(2, 4), torch.zeros(3).long(), ValueError, r"ids must be \(2,\)"),
    (torch.zeros(2, 4), torch.zeros(2), TypeError, "ids must be integers"),
    (torch.zeros(2, 4), torch.tensor([0, -1]), ValueError, "ids must be >= 0"),
]


@pytest.mark.parametrize("keys, ids, error, message", BAD_KEYS, ids=[m for *_, m in BAD_KEYS])
def test_a_refused_enqueue_changes_nothing(keys, ids, error, message) -> None:
    bank = MemoryBank(3, 4)
    bank.enqueue(torch.randn(2, 4), torch.arange(2))
    before = copy.deepcopy(bank.state_dict())
    with pytest.raises(error, match=message):
        bank.enqueue(keys, ids)
    for name, value in bank.state_dict().items():
        assert torch.equal(before[name], value)


@pytest.mark.parametrize("arguments", [(0, 4), (4, 0), (2.5, 4), (True, 4)], ids=str)
def test_bad_sizes(arguments) -> None:
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        MemoryBank(*arguments)
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        MemoryBank(2, 2, dtype=torch.int64)


def test_fragment_bank_pads_wraps_and_keeps_lengths() -> None:
    bank = FragmentBank(4, 5, 2)
    bank.enqueue(torch.ones(3, 3, 2), torch.tensor([3, 1, 2]), torch.tensor([5, 6, 7]))
    bank.enqueue(2 * torch.ones(2, 5, 2), ids=torch.tensor([8, 9]))
    assert bank.ids.tolist() == [9, 6, 7, 8]
    assert bank.lengths.tolist() == [5, 1, 2, 5]
    assert bank.rows[1].sum(1).tolist() == [2, 0, 0, 0, 0]
    assert (int(bank.ptr), int(bank.count)) == (1, 4)
    bank.enqueue(torch.ones(9, 1, 2))
    assert bank.ids.tolist() == [-2] * 4 and int(bank.ptr) == 2
    state = copy.deepcopy(bank.state_dict())
    for bad, message in (
        ((torch.ones(1, 6, 2),), "at most 5"),
        ((torch.ones(1, 2, 2), torch.tensor([3])), r"lengths must lie in \[1, 2\]"),
        ((torch.ones(1, 2, 2), torch.tensor([0])), r"lengths must lie in \[1, 2\]"),
        ((torch.ones(2, 2, 2), torch.tensor([1])), r"lengths must be \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.enqueue(*bad)
    for name, value in bank.state_dict().items():
        assert torch.equal(state[name], value)


def test_rows_of_the_bank_itself_are_stored_as_they_were(backend) -> None:
    """Views of the rows and ids, whose slots the call writes to while it reads them."""
    bank = MemoryBank(6, 3, dtype=torch.float64)
    bank.enqueue(torch.eye(3, dtype=torch.float64).repeat(2, 1)[:5], torch.arange(5))
    rows, ids = bank.rows.clone(), bank.ids.clone()
    bank.enqueue(bank.rows[1:5], bank.ids[1:5], backend=backend)
    assert torch.equal(bank.rows, torch.stack([*rows[2:5], rows[3], rows[4], rows[1]]))
    assert bank.ids.tolist() == [*ids[2:5].tolist(), 3, 4, 1]

    sets = FragmentBank(4, 2, 3)
    sets.enqueue(torch.arange(18.0).view(3, 2, 3), torch.tensor([1, 2, 1]), torch.arange(3))
    rows, lengths = sets.rows.clone(), sets.lengths.clone()
    sets.enqueue(sets.rows[:3], sets.lengths[:3], sets.ids[:3], backend=backend)
    assert torch.equal(sets.rows, torch.stack([rows[1], rows[2], rows[2], rows[0]]))
    assert torch.equal(sets.lengths, torch.stack([lengths[1], lengths[2], lengths[2], lengths[0]]))
    assert sets.ids.tolist() == [1, 2, 2, 0]


@pytest.mark.parametrize("strict", [False, True], ids=["strict=False", "refused"])
def test_rows_and_ids_alone_are_counted(strict) -> None:
    """Of a state dict that somebody cut; torch refuses it when all of it has been taken."""
    bank, cut = MemoryBank(4, 2), MemoryBank(4, 2)
    bank.enqueue(torch.eye(2), torch.tensor([1, 2]))
    part = {name: bank.state_dict()[name] for name in ("rows", "ids")}
    if strict:
        with pytest.raises(RuntimeError, match="Missing key"):
            cut.load_state_dict(part)
    else:
        cut.load_state_dict(part, strict=False)
    assert (len(cut), cut.ids.tolist()) == (2, [1, 2, -1, -1])
    cut.enqueue(torch.eye(2).repeat(2, 1)[:3])
    assert (len(cut), cut.ids.tolist()) == (3, [-2, -2, -2, -1])
