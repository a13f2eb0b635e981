"""The ring write of sets as one op: every backend against a ring written by a loop."""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from sede_kernels import FragmentBank
from sede_kernels.bank import ANONYMOUS, EMPTY
from sede_kernels.ops.enqueue_fragments import enqueue_fragments
from sede_kernels.types import FragmentRing

SIZE, LONGEST, DIM = 7, 4, 5


class Loop:
    """A ring in Python: one set after the other."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.rows = torch.zeros(SIZE, LONGEST, DIM, dtype=dtype)
        self.lengths = [0] * SIZE
        self.ids = [EMPTY] * SIZE
        self.ptr = self.rejected = 0

    def enqueue(self, keys: Tensor, lengths: Tensor | None, ids: Tensor | None) -> None:
        total = keys.shape[0]
        for n in range(total):
            slot = (self.ptr + n) % SIZE
            if n < total - SIZE:
                continue
            length = keys.shape[1] if lengths is None else int(lengths[n])
            row = torch.zeros(LONGEST, DIM, dtype=self.rows.dtype)
            row[:length] = keys[n, :length].to(row.dtype)
            good = bool(row.isfinite().all())
            self.rows[slot] = row if good else 0
            self.lengths[slot] = length if good else 0
            self.ids[slot] = EMPTY if not good else ANONYMOUS if ids is None else int(ids[n])
            self.rejected += not good
        self.ptr = (self.ptr + total) % SIZE

    def check(self, bank: FragmentBank) -> None:
        assert torch.equal(bank.rows, self.rows)
        assert bank.lengths.tolist() == self.lengths
        assert bank.ids.tolist() == self.ids
        assert int(bank.ptr) == self.ptr
        assert int(bank.rejected) == self.rejected
        assert int(bank.count) == sum(name != EMPTY for name in self.ids)


def calls(dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Sets that wrap, that are more than the slots, short ones, and holes of every kind."""
    torch.manual_seed(0)

    def keys(n: int, width: int) -> Tensor:
        return torch.randn(n, width, DIM).to(dtype)

    bad, beyond = keys(6, 3), keys(4, 4)
    bad[1, 2, 0], bad[4, 0, 3] = torch.nan, -torch.inf
    beyond[2, 3] = torch.nan  # beyond its length: nobody reads it
    strided = keys(4, 3).transpose(0, 1).contiguous().transpose(0, 1)
    return [
        (keys(3, 4), torch.tensor([4, 1, 2]), torch.tensor([5, 6, 7])),
        (bad, torch.tensor([3, 3, 1, 3, 2, 3], dtype=torch.int32), None),
        (beyond, torch.tensor([4, 2, 3, 1]), torch.arange(4)),
        (keys(17, 2), None, torch.arange(17)),
        (strided, torch.tensor([3, 2, 1, 3, 9, 9])[:4], torch.arange(8)[::2]),
        (keys(0, 4), None, None),
        (keys(2, 4), None, None),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float64], ids=str)
def test_every_call_leaves_the_ring_of_a_loop(stored, dtype, backend) -> None:
    bank, loop = FragmentBank(SIZE, LONGEST, DIM, dtype=stored), Loop(stored)
    for keys, lengths, ids in calls(dtype):
        before = keys.clone()
        bank.enqueue(keys, lengths, ids, backend=backend)
        loop.enqueue(keys, lengths, ids)
        loop.check(bank)
        assert torch.equal(keys.nan_to_num(), before.nan_to_num())


def test_a_number_that_the_ring_cannot_hold_leaves_a_hole(backend) -> None:
    bank = FragmentBank(3, 1, 2, dtype=torch.float16)
    bank.enqueue(torch.tensor([[[1e6, 0.0]], [[1.0, 2.0]]]), backend=backend)
    assert bank.ids.tolist() == [EMPTY, ANONYMOUS, EMPTY]
    assert bank.rows[:, 0].tolist() == [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]
    assert (int(bank.rejected), int(bank.count)) == (1, 1)


def test_strided_buffers_are_written(backend) -> None:
    bank, loop = FragmentBank(SIZE, LONGEST, DIM), Loop(torch.float32)
    for name in ("rows", "lengths", "ids"):
        held = bank._buffers[name]
        bank._buffers[name] = torch.stack([held, held], dim=-1)[..., 0]
    for keys, lengths, ids in calls(torch.float32):
        bank.enqueue(keys, lengths, ids, backend=backend)
        loop.enqueue(keys, lengths, ids)
    loop.check(bank)


def test_opcheck(backend) -> None:
    bank = FragmentBank(SIZE, LONGEST, DIM)
    ring = FragmentRing(bank.rows, bank.lengths, bank.ids, bank.ptr, bank.count, bank.rejected)
    flat = enqueue_fragments.flat(
        ring, torch.randn(3, 2, DIM), torch.tensor([1, 2, 2]), torch.arange(3), backend
    )
    opcheck(torch.ops.sede.enqueue_fragments.default, flat)


def test_a_compiled_call_writes_the_same(backend) -> None:
    banks = [FragmentBank(SIZE, LONGEST, DIM) for _ in range(2)]
    step = torch.compile(
        lambda keys, lengths, ids: banks[0].enqueue(keys, lengths, ids, backend=backend),
        backend="aot_eager",
        fullgraph=True,
    )
    for keys, lengths, ids in calls(torch.float32)[:2]:
        step(keys, lengths, ids)
        banks[1].enqueue(keys, lengths, ids, backend=backend)
    for got, want in zip(banks[0].buffers(), banks[1].buffers(), strict=True):
        assert torch.equal(got, want)


def test_it_is_one_op() -> None:
    names = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    keys, bank = torch.randn(3, 2, DIM), FragmentBank(SIZE, LONGEST, DIM)
    with torch.no_grad(), Names():
        bank.enqueue(keys)
    # On the CPU the checks read where the ring stands.
    assert set(names) <= {"aten::detach", "aten::_local_scalar_dense", "sede::enqueue_fragments"}
    assert names.count("sede::enqueue_fragments") == 1


def test_autograd_sees_the_write(backend) -> None:
    bank = FragmentBank(SIZE, LONGEST, DIM)
    weight = torch.ones(SIZE, LONGEST, DIM, requires_grad=True)
    total = (weight * bank.rows).sum()
    bank.enqueue(torch.ones(1, 1, DIM), backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize(
    ("lengths", "ids", "message"),
    [
        ([0, 1], None, r"lengths must lie in \[1, 3\], got 0 to 1"),
        ([1, 4], None, r"lengths must lie in \[1, 3\], got 1 to 4"),
        (None, [3, -1], "ids must be >= 0"),
    ],
)
def test_nothing_is_written_where_a_value_is_wrong(lengths, ids, message) -> None:
    bank = FragmentBank(SIZE, LONGEST, DIM)
    before = {name: buffer.clone() for name, buffer in bank.named_buffers()}
    as_tensor = [None if one is None else torch.tensor(one) for one in (lengths, ids)]
    with pytest.raises(ValueError, match=message):
        bank.enqueue(torch.ones(2, 3, DIM), *as_tensor)
    for name, buffer in bank.named_buffers():
        assert torch.equal(buffer, before[name])
