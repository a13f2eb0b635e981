"""A sharded bank on one process is a memory bank whose state any number of ranks can load."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from sede_kernels import (
    FragmentBank,
    MemoryBank,
    SEDELoss,
    ShardedFragmentBank,
    ShardedMemoryBank,
    hardest_negatives,
    weighted_info_nce,
)
from sede_kernels.resharding import unsharded, whole_state
from tests.conftest import unit


def pair(**options) -> tuple[ShardedMemoryBank, MemoryBank]:
    return ShardedMemoryBank(7, 4, **options), MemoryBank(7, 4, **options)


def fill(*banks: MemoryBank, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        keys = torch.randn(3, 4, generator=generator)
        for bank in banks:
            bank.enqueue(keys, torch.arange(3) + 10 * step)


def same(one: MemoryBank, other: MemoryBank) -> bool:
    names = [name for name, _ in other.named_buffers()]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["fp32", "int8"])
def test_it_is_a_memory_bank(dtype) -> None:
    bank, plain = pair(dtype=dtype)
    fill(bank, plain)
    assert same(bank, plain) and bank.size == 7 and len(bank) == 7
    query = unit(5, 4, dtype=torch.float32).requires_grad_()
    for reduction in ("mean", "sum", "none"):
        losses = [
            weighted_info_nce(query, query.detach(), b, hardness=3.0, reduction=reduction)
            for b in (bank, plain)
        ]
        assert torch.equal(*losses)
        assert torch.equal(*(torch.autograd.grad(loss.sum(), query)[0] for loss in losses))
    for one, other in zip(*(hardest_negatives(query, b, 9) for b in (bank, plain)), strict=True):
        assert torch.equal(one, other)


def test_stamps_say_which_call_stored_a_row() -> None:
    bank, _ = pair()
    fill(bank)  # 9 keys into 7 slots: the last two are in the first two slots
    assert (bank.stamps >> 32).tolist() == [3, 3, 1, 2, 2, 2, 3]
    assert (bank.stamps & 0xFFFFFFFF).tolist() == [2, 3, 3, 1, 2, 3, 1]
    assert int(bank.step) == 3 and int(bank.dealt_to) == 1
    bank.enqueue(torch.zeros(0, 4))
    assert int(bank.step) == 4
    bank.clear()
    assert (int(bank.step), int(bank.dealt_to), len(bank)) == (0, 1, 0)


def test_its_state_comes_back() -> None:
    bank, plain = pair()
    fill(bank, plain, steps=2)
    bank.enqueue(torch.full((1, 4), torch.nan))
    state = bank.state_dict()
    assert sorted(state) == ["dealt_to", "ids", "rows", "stamps", "step"]
    again = ShardedMemoryBank(7, 4)
    again.load_state_dict(state)
    assert same(again, bank)
    fill(again, bank)
    assert same(again, bank)
    others = copy.deepcopy(bank), pickle.loads(pickle.dumps(bank))
    fill(bank, *others)
    assert all(same(other, bank) for other in others)


def test_the_state_of_a_memory_bank_is_taken() -> None:
    bank, plain = pair()
    fill(plain)
    bank.load_state_dict(plain.state_dict())
    assert same(bank, plain)
    fill(bank, plain)
    assert same(bank, plain)


def test_it_comes_empty_off_the_meta_device() -> None:
    bank = ShardedMemoryBank(7, 4, device="meta").to_empty(device="cpu")
    assert len(bank) == 0 and int(bank.dealt_to) == 1 and int(bank.stamps.sum()) == 0
    fill(bank)
    assert len(bank) == 7


def test_wrong_settings_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="ShardedMemoryBank: max_batch must be an integer >= 1"):
        ShardedMemoryBank(7, 4, max_batch=0)
    with pytest.raises(ValueError, match="group and max_batch are those of sharded=True"):
        SEDELoss(7, 4, max_batch=3)
    with pytest.raises(ValueError, match="stored must have the 7 slots of this rank first"):
        ShardedMemoryBank(7, 4).fetch(torch.zeros(3, 2), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(TypeError, match="sharded must be True or False"):
        SEDELoss(7, 4, sharded="yes")


def sets(*banks: FragmentBank, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        keys = torch.randn(3, 2, 4, generator=generator)
        for bank in banks:
            bank.enqueue(keys, torch.tensor([1, 2, 1]), torch.arange(3) + 10 * step)


def test_a_sharded_fragment_bank_alone_is_a_fragment_bank() -> None:
    bank, plain = ShardedFragmentBank(7, 2, 4), FragmentBank(7, 2, 4)
    sets(bank, plain)
    assert same(bank, plain) and bank.size == 7
    indices = torch.tensor([[6, -1], [0, 3]])
    rows, lengths = bank.fetch(indices)
    assert torch.equal(rows[0, 0], plain.rows[6]) and torch.equal(rows[1, 1], plain.rows[3])
    assert not rows[0, 1].any() and lengths.tolist() == [
        [int(plain.lengths[6]), 0],
        [int(plain.lengths[0]), int(plain.lengths[3])],
    ]


def test_what_several_ranks_save_fits_banks_that_are_not_sharded() -> None:
    """The oldest rows stay the next to go, for vectors and for sets."""
    shared = nn.ModuleDict({"a": ShardedFragmentBank(7, 2, 4), "b": ShardedMemoryBank(7, 4)})
    plain = nn.ModuleDict({"a": FragmentBank(7, 2, 4), "b": MemoryBank(7, 4)})
    sets(shared["a"])
    fill(shared["b"])
    state = unsharded(whole_state(shared))
    assert not any(name.endswith(("stamps", "step", "dealt_to")) for name in state)
    plain.load_state_dict(state)
    for name in ("a", "b"):
        assert torch.equal(plain[name].ids, shared[name].ids)
        assert torch.equal(plain[name].rows, shared[name].rows)
        assert plain[name].ptr == shared[name].ptr and plain[name].count == 7
    sets(shared["a"], plain["a"], steps=1)
    assert torch.equal(plain["a"].ids, shared["a"].ids)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ShardedFragmentBank(0, 2, 4), "size must be"),
        (lambda: ShardedFragmentBank(4, 2, 4).fetch(torch.zeros(3)), "must be (B, k) int64, got"),
        (lambda: ShardedFragmentBank(4, 2, 4).fetch([[1]]), "must be (B, k) int64, got list"),
    ],
    ids=["size", "dtype", "list"],
)
def test_what_a_sharded_fragment_bank_refuses(call, words) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
