"""What a state dict or a call may not bring into a bank: one sentence, and the bank as it was."""

import re

import pytest
import torch

from sede_kernels import (
    FragmentBank,
    MemoryBank,
    ShardedFragmentBank,
    ShardedMemoryBank,
)
from tests.conftest import unit


def f32(*shape: int) -> torch.Tensor:
    return unit(*shape, dtype=torch.float32)


def filled(kind: type) -> torch.nn.Module:
    if issubclass(kind, FragmentBank):
        bank = kind(4, 2, 3)
        bank.enqueue(f32(3, 2, 3), torch.tensor([1, 2, 2]), torch.tensor([7, 8, 9]))
    else:
        bank = kind(4, 3)
        bank.enqueue(f32(3, 3), torch.tensor([7, 8, 9]))
    return bank


def state_of(bank: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in bank.state_dict().items()}


KINDS = [MemoryBank, FragmentBank, ShardedMemoryBank, ShardedFragmentBank]
RESERVED = "ids must be >= 0, -1 (empty) or -2 (no id), got -5"


def refuses(bank: torch.nn.Module, state: dict[str, torch.Tensor], words: str) -> None:
    """The state is refused with these words, and the bank is what it was."""
    before = {name: value.clone() for name, value in bank.named_buffers()}
    with pytest.raises(RuntimeError, match=re.escape(words)):
        bank.load_state_dict(state)
    for name, value in bank.named_buffers():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_reserved_ids_are_refused_and_marks_are_taken(kind) -> None:
    state = state_of(filled(kind))
    refuses(filled(kind), {**state, "ids": torch.tensor([-5, 8, 9, -1])}, RESERVED)
    taken = filled(kind)
    taken.load_state_dict({**state, "ids": torch.tensor([-2, 8, -1, -1])})
    assert taken.ids.tolist() == [-2, 8, -1, -1] and len(taken) == 2


DAMAGED = [
    ("dealt_to", torch.tensor(0), "dealt_to must lie in [1, 4], got 0"),
    ("dealt_to", torch.tensor(-3), "dealt_to must lie in [1, 4], got -3"),
    ("dealt_to", torch.tensor(1 << 40), "dealt_to must lie in [1, 4], got 1099511627776"),
    ("dealt_to", torch.tensor([1, 2]), "dealt_to must be () torch.int64, got (2,) torch.int64"),
    ("step", torch.tensor(-1), "step must lie in [0, 9223372036854775807], got -1"),
    ("step", torch.tensor(2.5), "step must be () torch.int64, got () torch.float32"),
    ("stamps", torch.zeros(3, dtype=torch.int64), "stamps must have 4 rows like ids, got (3,)"),
    ("stamps", torch.zeros(4), "stamps must be (4,) torch.int64, got (4,) torch.float32"),
    ("stamps", torch.tensor([1, -1, 2, 3]), "stamps must be >= 0, got -1"),
    ("ids", torch.zeros(4), "ids must be (K,) torch.int64, got (4,) torch.float32"),
    ("ids", torch.zeros(4, 1, dtype=torch.int64), "ids must be (K,) torch.int64, got (4, 1)"),
    ("rows", torch.zeros(5, 3), "rows must have 4 rows like ids, got (5, 3)"),
]


@pytest.mark.parametrize(("name", "value", "words"), DAMAGED)
def test_damaged_state_of_a_sharded_bank_is_refused(name, value, words) -> None:
    state = state_of(filled(ShardedMemoryBank))
    refuses(filled(ShardedMemoryBank), {**state, name: value}, words)


def test_a_damaged_pointer_is_refused_by_a_sharded_bank() -> None:
    state = state_of(filled(MemoryBank))
    for value, words in (
        (torch.tensor(4), "ptr must lie in [0, 3], got 4"),
        (torch.tensor([1, 1]), "ptr must be () torch.int64, got (2,)"),
    ):
        refuses(filled(ShardedMemoryBank), {**state, "ptr": value}, words)


def test_a_bank_is_told_whether_to_normalise() -> None:
    with pytest.raises(TypeError, match="MemoryBank: normalize must be True or False, got 'no'"):
        MemoryBank(4, 3, normalize="no")


OUTSIDE = torch.tensor([[2, -1], [0, 3]])


@pytest.mark.parametrize("kind", [ShardedMemoryBank, ShardedFragmentBank])
def test_fetch_gives_nothing_for_rows_of_others(kind) -> None:
    """In ``eval()`` mode the second of two ranks knows its own two slots of four."""
    bank = filled(kind).eval()
    bank.part = bank.part._replace(rank=1, world=2, offset=2, size=6)
    bank.size = 6

    def fetch(indices: torch.Tensor) -> torch.Tensor:
        return (
            bank.fetch(bank.rows, indices) if kind is ShardedMemoryBank else bank.fetch(indices)[0]
        )

    found = fetch(OUTSIDE)
    assert torch.equal(found[0, 0], bank.rows[0]) and torch.equal(found[1, 1], bank.rows[1])
    assert not found[0, 1].any() and not found[1, 0].any()
    name = kind.__name__
    with pytest.raises(ValueError, match=f"{name}.fetch: indices must be below the 6 slots .* 6"):
        fetch(torch.tensor([[6]]))
    with pytest.raises(ValueError, match=re.escape(f"{name}.fetch: indices must be (B, k) int64")):
        fetch(torch.zeros(1, 1))
