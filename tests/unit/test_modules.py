"""Modules equal their functions; the two-bank loss."""

import copy

import pytest
import torch

from sede_kernels import ScoreInfoNCE, SEDELoss, WeightedInfoNCE, weighted_info_nce
from tests.conftest import unit


def test_weighted_info_nce_module_equals_the_function() -> None:
    query, positive, bank = (unit(n, 6).float() for n in (4, 4, 20))
    module = WeightedInfoNCE(temperature=0.2, hardness=3.0, margin=0.2, tau_plus=0.05)
    want = weighted_info_nce(
        query, positive, bank, temperature=0.2, hardness=3.0, margin=0.2, tau_plus=0.05
    )
    assert torch.equal(module(query, positive, bank), want)
    loss, stats = module(query, positive, bank, return_stats=True)
    assert torch.equal(loss, want) and stats.hardest.shape == (4,)


def test_learnable_temperature_and_hardness_move() -> None:
    module = WeightedInfoNCE(
        temperature=0.5, hardness=1.0, learn_temperature=True, learn_hardness=True
    )
    assert float(module.temperature) == pytest.approx(0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    query, bank = unit(8, 6).float(), unit(20, 6).float()
    module(query, query, bank).backward()
    optimizer.step()
    assert len(list(module.parameters())) == 2
    assert float(module.temperature) < 0.5  # the positives are perfect: colder is better
    assert float(module.hardness) < 1.0
    with torch.no_grad():
        module.hardness.fill_(-3.0)
    assert torch.isfinite(module(query, query, bank))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"hardness": -1.0}], ids=str)
def test_module_refuses_what_the_function_refuses(options) -> None:
    with pytest.raises(ValueError, match="must be"):
        WeightedInfoNCE(**options)


def test_sede_loss_is_the_mean_of_both_directions_and_masks_ids() -> None:
    image, text = unit(6, 8).float(), unit(6, 8).float()
    ids = torch.arange(6)
    past = unit(20, 8).float(), unit(20, 8).float()
    for given, counts in (({}, True), ({"in_batch_negatives": False}, False)):
        criterion = SEDELoss(32, 8, temperature=0.1, hardness=2.0, **given)
        criterion.enqueue(*past, ids=torch.arange(20))
        banks = criterion.text_bank, criterion.image_bank
        first, second = (
            weighted_info_nce(
                *pair, bank, temperature=0.1, hardness=2.0, query_ids=ids, in_batch_negatives=counts
            )
            for pair, bank in zip(((image, text), (text, image)), banks, strict=True)
        )
        torch.testing.assert_close(criterion(image, text, ids=ids), (first + second) / 2)
    before = copy.deepcopy(criterion.state_dict())
    criterion.eval()(image, text, ids=ids)
    for name, value in before.items():
        now = criterion.state_dict()[name]
        assert torch.equal(now, value) if isinstance(value, torch.Tensor) else now == value


def test_sede_loss_warms_up_on_the_batch_and_resumes() -> None:
    image, text = unit(5, 8).float(), unit(5, 8).float()
    criterion = SEDELoss(16, 8, start_step=2)
    want = [
        weighted_info_nce(a, b, None, in_batch_negatives=True)
        for a, b in ((image, text), (text, image))
    ]
    torch.testing.assert_close(criterion(image, text), sum(want) / 2)
    for _ in range(2):
        criterion.enqueue(image, text)
    resumed = SEDELoss(16, 8, start_step=2)
    resumed.load_state_dict(criterion.state_dict())
    assert resumed.steps == 2
    for one in (criterion, resumed):
        assert one(image, text) > 0
    assert torch.equal(criterion(image, text), resumed(image, text))
    with pytest.raises(ValueError, match="must have one shape"):
        criterion.enqueue(image, text[:2])


def test_the_first_loss_of_empty_banks_has_a_gradient_by_the_batch() -> None:
    image, text = unit(5, 8).requires_grad_(), unit(5, 8).requires_grad_()
    key, other = unit(5, 8), unit(5, 8)
    loss = SEDELoss(16, 8)(image, text, key, other)
    grad = torch.autograd.grad(loss, image)[0]
    assert loss > 0.1
    assert grad.norm() > 0.01
    alone = SEDELoss(16, 8, in_batch_negatives=False)(image, text, key, other)
    assert alone == 0
    assert not torch.autograd.grad(alone, image)[0].any()


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(2, 4, dtype=torch.int64),
        torch.ones(2, 4, device="meta"),
        torch.ones(2, 4).to(torch.float8_e4m3fn),
        torch.ones(2, 4).to_sparse(),
        torch.ones(2, 5),
        torch.ones(3, 4),
        torch.ones(4),
        [[1.0] * 4] * 2,
        None,
    ],
    ids=["integers", "meta", "float8", "sparse", "wide", "rows", "vector", "list", "none"],
)
def test_keys_that_one_bank_cannot_take_enter_neither(wrong) -> None:
    """Else the banks would hold different pairs from then on."""
    criterion = SEDELoss(8, 4, start_step=1)
    right = torch.eye(4)[:2]
    for keys in ((right, wrong), (wrong, right)):
        with pytest.raises((TypeError, ValueError), match=r"^(SEDELoss|MemoryBank)\.enqueue: "):
            criterion.enqueue(*keys, ids=[3, 4])
        assert len(criterion.image_bank) == len(criterion.text_bank) == int(criterion.steps) == 0
    criterion.enqueue(right, right.bfloat16(), ids=[3, 4])  # of two dtypes, both floating
    assert criterion.image_bank.ids.tolist() == criterion.text_bank.ids.tolist()
    torch.testing.assert_close(criterion.text_bank.rows[:2], right)


@pytest.mark.parametrize("kind", ["bank", "both", "scores"])
def test_a_hardness_that_a_step_took_below_zero_learns_again(kind) -> None:
    """As its clamp has it, it would have no gradient there."""
    options = {"hardness": 0.5, "learn_hardness": True, "normalize_weights": False}
    query, bank = unit(3, 4, dtype=torch.float32), -unit(5, 4, dtype=torch.float32).abs()
    if kind == "scores":
        module = ScoreInfoNCE(temperature=0.5, **options)
        call = lambda: module(-unit(3, 5, dtype=torch.float32).abs(), torch.zeros(3))  # noqa: E731
        loss = module
    elif kind == "bank":
        module = WeightedInfoNCE(temperature=0.5, **options)
        call = lambda: module(query.abs(), query, bank)  # noqa: E731
        loss = module
    else:
        module = SEDELoss(5, 4, temperature=0.5, in_batch_negatives=False, **options)
        module.enqueue(bank, bank)
        call = lambda: module(query.abs(), query.abs())  # noqa: E731
        loss = module.nce
    with torch.no_grad():
        loss.hardness.fill_(-0.25)
    module.eval()
    call()
    assert loss.hardness.item() == -0.25  # validation changes nothing
    module.train()
    call().backward()
    assert loss.hardness.item() == 0.0
    assert loss.hardness.grad.item() < 0  # negatives are unlike: more of it lowers the loss
