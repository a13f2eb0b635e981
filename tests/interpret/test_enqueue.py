"""The ring write on the interpreter against the torch backend and the reference."""

import oracle
import pytest
import torch

from sede_kernels.backends.triton.enqueue import enqueue as triton_enqueue
from sede_kernels.ops.enqueue import enqueue
from sede_kernels.types import RingState


def _bank(size, dim, dtype):
    scale = torch.full((size,), 9.0) if dtype == torch.int8 else None
    state = torch.zeros(size, dim, dtype=dtype), scale, torch.full((size,), -1)
    return RingState(*state, torch.tensor(0), torch.tensor(0), torch.tensor(0))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8], ids=str
)
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
def test_matches_the_torch_backend(dtype, normalize):
    banks = {name: _bank(7, 33, dtype) for name in ("triton", "torch")}
    for step, rows in enumerate((3, 0, 5, 20)):
        keys = oracle.matrix(rows, 33, step) * (1.0 if step == 0 else 3.0)
        if rows:
            keys[0] = 0.0
        key_ids = oracle.ids(rows, step) if step != 2 else None
        for name, bank in banks.items():
            enqueue(bank, keys, key_ids, normalize, name)
    for name, got, want in zip(
        ("rows", "scale", "ids", "ptr", "count", "rejected"),
        banks["triton"],
        banks["torch"],
        strict=True,
    ):
        if got is None:
            continue
        if name == "rows" and dtype == torch.int8:
            # One step where a quotient falls on the other side of a half.
            assert (got.int() - want.int()).abs().max() <= 1
        elif got.is_floating_point():
            oracle.assert_close(name, got, want, oracle.FLOORS.get(dtype, 2e-6))
        else:
            assert torch.equal(got, want), name


def test_unit_keys_are_stored_bit_for_bit():
    keys = oracle.matrix(3, 40, 1)
    bank = _bank(5, 40, torch.float32)
    enqueue(bank, keys, None, True, "triton")
    assert torch.equal(bank[0][:3], keys)
    assert bank[2].tolist() == [-2, -2, -2, -1, -1]


def test_int8_rounds_half_to_even():
    keys = torch.tensor([[127.0, 0.5, 1.5, -2.5, 126.5]])
    bank = _bank(1, 5, torch.int8)
    enqueue(bank, keys, None, False, "triton")
    assert bank[0].tolist() == [[127, 0, 2, -2, 126]]
    assert bank[1].tolist() == [1.0]


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8], ids=str)
def test_a_key_that_is_not_finite_leaves_a_hole(dtype, normalize):
    """NaN, an infinity, a norm beyond fp32 and a number beyond fp16, over filled slots and not."""
    banks = {name: _bank(7, 20, dtype) for name in ("triton", "torch")}
    for step in range(3):
        keys = oracle.matrix(5, 20, step)
        if step != 1:
            keys[0, 4], keys[2, 19] = torch.nan, -torch.inf
        keys[3, 0] = 3e19 if step == 0 else 1e6
        for name, bank in banks.items():
            enqueue(bank, keys, oracle.ids(5, step).abs(), normalize, name)
    for got, want in zip(banks["triton"], banks["torch"], strict=True):
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 if dtype.itemsize > 1 else 1)
    rows, scale, ids, ptr, count, rejected = banks["triton"]
    assert int(ptr) == 1 and int(count) == int((ids != -1).sum())
    bad = {(True, 4): 5, (True, 2): 5, (True, 1): 5, (False, 4): 4, (False, 2): 7, (False, 1): 4}
    assert int(rejected) == bad[normalize, dtype.itemsize]
    holes = ids == -1
    assert holes.any() and not rows[holes].any()
    assert scale is None or not scale[holes].any()


def test_a_damaged_pointer_writes_inside_the_ring():
    """On a GPU nobody reads the pointer on the host; on the CPU the op refuses it."""
    keys = oracle.matrix(3, 20, 2)
    for value in (-5, 10**15, -(2**62)):
        bank = _bank(4, 20, torch.float32)
        bank[3].fill_(value)
        with pytest.raises(ValueError, match=r"ptr of the bank must lie in \[0, 3\], got"):
            enqueue(bank, keys, None, True, "triton")
        triton_enqueue(bank, keys, None, normalize=True)
        assert sorted(bank[2].tolist()) == [-2, -2, -2, -1]
        assert 0 <= int(bank[3]) < 4
