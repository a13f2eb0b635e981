"""The lightly twin against the real NTXentLoss."""

import copy
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sede_kernels.integrations.lightly import NTXentLoss
from tests.conftest import unit


def views(rows: int = 6) -> tuple[Tensor, Tensor]:
    return (
        unit(rows, 8, dtype=torch.float32).mul(3.0).requires_grad_(),
        unit(rows, 8, dtype=torch.float32).mul(2.0).requires_grad_(),
    )


def test_equals_the_real_loss_while_the_bank_is_full(lightly_loss: ModuleType) -> None:
    """Bank of 18, batches of 6: the host drops no row, so both banks hold the same keys."""
    host = lightly_loss.NTXentLoss(temperature=0.2, memory_bank_size=(18, 8))
    ours = NTXentLoss(temperature=0.2, memory_bank_size=(18, 8))
    for step in range(8):
        out0, out1 = views()
        got, want = ours(out0, out1), host(out0, out1)
        if step >= 3:
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(
                torch.autograd.grad(got, (out0, out1)), torch.autograd.grad(want, (out0, out1))
            )
    torch.testing.assert_close(ours.memory_bank.rows, host.memory_bank.bank)


@pytest.mark.parametrize("rows", [1, 6])
def test_equals_the_real_loss_without_a_bank(lightly_loss: ModuleType, rows: int) -> None:
    out0, out1 = views(rows)
    got, want = NTXentLoss()(out0, out1), lightly_loss.NTXentLoss()(out0, out1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, (out0, out1)), torch.autograd.grad(want, (out0, out1))
    )


def test_drops_no_row_at_the_wrap_where_the_host_does(lightly_loss: ModuleType) -> None:
    host = lightly_loss.NTXentLoss(memory_bank_size=(8, 8))
    ours = NTXentLoss(memory_bank_size=(8, 8))
    keys = []
    for _ in range(2):
        out0, out1 = views()
        keys.append(nn.functional.normalize(out1.detach(), dim=1))
        ours(out0, out1), host(out0, out1)
    last = torch.cat(keys)[-8:]

    def kept(rows: Tensor) -> int:
        return int((torch.cdist(last, rows) < 1e-3).any(1).sum())

    assert kept(ours.memory_bank.rows) == 8
    assert kept(host.memory_bank.bank) < 8


def test_bank_is_in_the_checkpoint() -> None:
    ours = NTXentLoss(memory_bank_size=(10, 8))
    for _ in range(3):
        ours(*views())
    resumed = NTXentLoss(memory_bank_size=(10, 8))
    resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    data = views()
    assert torch.equal(ours(*data), resumed(*data))
    assert torch.equal(ours.memory_bank.rows, resumed.memory_bank.rows)


def test_test_set_loss_stores_nothing_and_accumulation_each_part_once() -> None:
    ours = NTXentLoss(memory_bank_size=(100, 8))
    for _ in range(3):
        (ours(*views()) / 3).backward()
    assert len(ours.memory_bank) == 18
    with torch.no_grad():
        ours(*views())
    ours.eval()
    ours(*views())
    assert len(ours.memory_bank) == 18


@pytest.mark.parametrize("size", [0, (12, 8)], ids=["batch", "bank"])
def test_ids_hide_false_negatives(size: object) -> None:
    ours = NTXentLoss(temperature=0.2, memory_bank_size=size)
    out0, out1 = views()
    if size:
        ours(*views(), ids=[0, 1, 2, 3, 4, 5])
        stored = ours.memory_bank.rows[:6].clone()
    ids = torch.tensor([1, 1, 7, 8, 9, 9])
    got = ours(out0, out1, ids=ids)
    a, b = (nn.functional.normalize(v.detach(), dim=1) for v in (out0, out1))
    if size:
        logits = torch.cat([(a * b).sum(1, keepdim=True), a @ stored.T], 1) / 0.2
        logits[:, 1:].masked_fill_(ids.unsqueeze(1) == torch.arange(6), -torch.inf)
        want = nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    else:
        both, twice = torch.cat([a, b]), ids.repeat(2)
        target = (torch.arange(12) + 6) % 12
        hidden = twice.unsqueeze(1) == twice
        hidden[torch.arange(12), target] = False
        logits = (both @ both.T / 0.2).masked_fill(hidden, -torch.inf)
        want = nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(got.detach(), want)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(lambda: NTXentLoss(memory_bank_size=64), r"must be \(K, D\)", id="size"),
        pytest.param(lambda: NTXentLoss(temperature=0.0), "temperature", id="tau"),
        pytest.param(lambda: NTXentLoss(hardness=1.0), "hardness needs a bank", id="hardness"),
        pytest.param(
            lambda: NTXentLoss()(torch.ones(2, 3), torch.ones(3, 3)), r"both be \(B, D\)", id="rows"
        ),
    ],
)
def test_wrong_use_gets_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_gathering_without_torch_distributed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs torch\.distributed") as caught:
        NTXentLoss(gather_distributed=True)
    assert "\n" not in str(caught.value)
