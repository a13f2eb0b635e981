"""The ring write on the interpreter against the torch backend and the reference."""

import oracle
import pytest
import torch

from sede_kernels.ops.enqueue import enqueue


def _bank(size, dim, dtype):
    scale = torch.full((size,), 9.0) if dtype == torch.int8 else None
    state = torch.zeros(size, dim, dtype=dtype), scale, torch.full((size,), -1)
    return (*state, torch.tensor(0), torch.tensor(0))


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
            enqueue(*bank, keys, key_ids, normalize, name)
    for name, got, want in zip(
        ("rows", "scale", "ids", "ptr", "count"), banks["triton"], banks["torch"], strict=True
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
    enqueue(*bank, keys, None, True, "triton")
    assert torch.equal(bank[0][:3], keys)
    assert bank[2].tolist() == [-2, -2, -2, -1, -1]


def test_int8_rounds_half_to_even():
    keys = torch.tensor([[127.0, 0.5, 1.5, -2.5, 126.5]])
    bank = _bank(1, 5, torch.int8)
    enqueue(*bank, keys, None, False, "triton")
    assert bank[0].tolist() == [[127, 0, 2, -2, 126]]
    assert bank[1].tolist() == [1.0]


def test_nan_stays_in_its_row():
    keys = oracle.matrix(3, 20, 2)
    keys[1, 4] = torch.nan
    bank = _bank(3, 20, torch.int8)
    enqueue(*bank, keys, None, True, "triton")
    assert bank[1].isnan().tolist() == [False, True, False]
