"""BankMonitor's numbers, the statistics of SEDELoss, and the cap of a learnable temperature."""

import math

import pytest
import torch
from torch import Tensor, nn

from sede_kernels import BankMonitor, SEDELoss, WeightedInfoNCE, symmetric_info_nce
from sede_kernels.functional import InfoNCEStats
from tests.conftest import unit


class Notes:
    """What a SummaryWriter would get."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], float] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.found[name, step] = value


def pairs(rows: int = 4) -> tuple[Tensor, Tensor]:
    return unit(rows, 8, dtype=torch.float32), unit(rows, 8, dtype=torch.float32)


def test_the_numbers_are_those_of_a_dense_computation() -> None:
    criterion = SEDELoss(10, 8, temperature=0.1)
    stored, owners = pairs(6), [0, 1, 2, 3, 4, 5]
    criterion.enqueue(*stored, ids=owners)
    image, text = pairs()
    ids = [3, 9, 9, 1]
    loss, stats = criterion(image, text, ids=ids, return_stats=True)
    notes = Notes()
    monitor = BankMonitor(notes, criterion, every=5)
    monitor(10, loss, stats, image=image, text=text, ids=torch.tensor(ids))
    monitor(11, loss, stats)
    assert {step for _, step in notes.found} == {10}
    found = {name: value for (name, _), value in notes.found.items()}
    sides = (("image_to_text", image, text, stored[1]), ("text_to_image", text, image, stored[0]))
    for side, query, key, bank in sides:
        similarity = query @ torch.cat([bank, key]).T
        names = torch.tensor(owners + ids)
        negative = torch.tensor(ids).unsqueeze(1) != names
        right = (query * key).sum(1)
        hardest = similarity.masked_fill(~negative, -torch.inf).amax(1)
        ahead = (negative[:, :6] & (similarity[:, :6] >= right.unsqueeze(1))).sum(1)
        want = {
            "positive": right.mean().item(),
            "hardest": hardest.mean().item(),
            "first": (right > hardest).float().mean().item(),
            "masked": 1 - negative.sum(1).float().mean().item() / (6 + 3),
            "rank": (1 + ahead).float().median().item(),
        }
        for name, value in want.items():
            assert found[f"bank/{side}/{name}"] == pytest.approx(value, abs=1e-5), name
    assert found["bank/image_to_text/masked"] == pytest.approx(4 / 36)
    assert found["bank/loss"] == pytest.approx(loss.item())
    assert found["bank/temperature"] == pytest.approx(0.1)
    for bank in ("image_bank", "text_bank"):
        assert found[f"bank/{bank}/fill"] == pytest.approx(0.6)
        assert found[f"bank/{bank}/age"] == pytest.approx(1.5)


def test_before_the_warm_up_ends_the_batch_alone_is_expected() -> None:
    criterion = SEDELoss(10, 8, start_step=3, in_batch_negatives=False)
    criterion.enqueue(*pairs(6))
    image, text = pairs()
    loss, stats = criterion(image, text, return_stats=True)
    notes = Notes()
    BankMonitor(notes, criterion)(0, loss, stats, image=image, text=text)
    assert notes.found["bank/image_to_text/masked", 0] == pytest.approx(0.0)
    assert notes.found["bank/image_to_text/rank", 0] == 1.0


def test_statistics_of_the_loss_are_those_of_the_function() -> None:
    criterion = SEDELoss(10, 8)
    criterion.enqueue(*pairs(6), ids=range(6))
    image, text = pairs()
    loss, stats = criterion(image, text, ids=(0, 1, 7, 8), return_stats=True)
    want, expected = symmetric_info_nce(
        image, text, image, text, criterion.image_bank, criterion.text_bank,
        ids=torch.tensor([0, 1, 7, 8]), in_batch_negatives=True, return_stats=True,
    )  # fmt: skip
    assert torch.equal(loss, want)
    for side, other in zip(stats, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(side, other, strict=True))


def test_ids_as_lists_are_the_tensor_s() -> None:
    query, key = pairs()
    bank, owners = pairs(5)[0], [0, 1, 2, 3, -1]
    loss = WeightedInfoNCE()
    want = loss(query, key, bank, query_ids=torch.arange(4), bank_ids=torch.tensor(owners))
    assert torch.equal(loss(query, key, bank, query_ids=[0, 1, 2, 3], bank_ids=owners), want)
    with pytest.raises(TypeError, match="number strings first") as caught:
        loss(query, key, bank, query_ids=["a", "b", "c", "d"], bank_ids=owners)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match=r"ids must be integers, got float 1\.5"):
        SEDELoss(4, 8)(query, key, ids=[0, 1, 2, 1.5])


def test_a_learnable_temperature_stays_under_its_cap_and_can_come_back() -> None:
    loss = WeightedInfoNCE(temperature=0.02, learn_temperature=True, max_inverse_temperature=60)
    with torch.no_grad():
        loss.log_inverse_temperature.fill_(math.log(500.0))
    query, key = pairs()
    value = loss(query, key, -query)
    assert loss.temperature.item() == pytest.approx(1 / 60)
    value.backward()
    assert loss.log_inverse_temperature.grad is not None
    with torch.no_grad():
        loss.log_inverse_temperature.fill_(math.log(500.0))
    loss.eval()(query, key, -query)  # evaluation changes nothing
    assert loss.temperature.item() == pytest.approx(1 / 500)
    free = SEDELoss(4, 8, learn_temperature=True, max_inverse_temperature=None)
    with torch.no_grad():
        free.nce.log_inverse_temperature.fill_(math.log(500.0))
    free(query, key)
    assert free.nce.temperature.item() == pytest.approx(1 / 500)


def test_the_parameter_group_is_not_decayed() -> None:
    model, criterion = nn.Linear(8, 8), SEDELoss(4, 8, learn_temperature=True, learn_hardness=True)
    groups = [{"params": model.parameters()}, criterion.parameter_group()]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    before = criterion.nce.log_inverse_temperature.item()
    for parameter in criterion.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    assert criterion.nce.log_inverse_temperature.item() == before
    assert len(optimizer.param_groups[1]["params"]) == 2
    assert SEDELoss(4, 8).parameter_group()["params"] == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_inverse_temperature": 0}, "max_inverse_temperature must be None or a number > 0"),
        ({"max_inverse_temperature": "100"}, "max_inverse_temperature must be"),
        ({"temperature": 0.001}, "below 1 / max_inverse_temperature"),
    ],
)
def test_a_cap_that_cannot_be_is_one_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        WeightedInfoNCE(learn_temperature=True, **settings)
    assert "\n" not in str(caught.value)


def test_wrong_use_of_the_monitor_is_named() -> None:
    with pytest.raises(TypeError, match="criterion must have a MemoryBank image_bank"):
        BankMonitor(Notes(), nn.Identity())
    with pytest.raises(TypeError, match="writer must have add_scalar"):
        BankMonitor(object(), SEDELoss(4, 8))
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        BankMonitor(Notes(), SEDELoss(4, 8), every=0)


def test_the_other_parts_of_a_shared_bank_are_taken_to_be_as_full() -> None:
    criterion = SEDELoss(6, 8, sharded=True)
    criterion.enqueue(*pairs(3), ids=[0, 1, 2])
    for bank in (criterion.image_bank, criterion.text_bank):
        bank.part = bank.part._replace(world=2, size=12, group="two")
    six = torch.full((2,), 6)  # of 2 x 3 stored and none in the batch
    stats = InfoNCEStats(*(torch.zeros(2) for _ in range(3)), six, six, torch.zeros(2))
    notes = Notes()
    BankMonitor(notes, criterion)(0, torch.zeros(()), (stats, stats))
    inside = 1 if criterion.nce.options["in_batch_negatives"] else 0
    assert notes.found["bank/text_to_image/masked", 0] == pytest.approx(1 - 6 / (6 + inside))
