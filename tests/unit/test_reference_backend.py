"""``SEDE_BACKEND=reference`` serves statistics and ring writes too, with the torch values."""

import itertools

import pytest
import torch

from sede_kernels import (
    FragmentBank,
    MemoryBank,
    SEDELoss,
    attention_erase,
    bank_lse,
    cross_attention_pairs,
    cross_attention_similarity,
    hardest_negatives,
    weighted_info_nce,
)

OPTIONS = {
    "plain": {},
    "weighted": {"hardness": 5.0, "in_batch_negatives": True},
    "raw-weights": {"hardness": 3.0, "normalize_weights": False},
    "margin": {"margin": 0.05, "in_batch_negatives": True},
    "debiased": {"tau_plus": 0.1, "hardness": 2.0},
    "positive": {"false_negatives": "positive", "in_batch_negatives": True},
    "keep": {"false_negatives": "keep", "in_batch_negatives": True},
    "focus": {"positive_focus": 2.0},
    "batch-not-yet": {"in_batch_negatives": torch.tensor(False), "hardness": 1.0},
    "batch-by-now": {"in_batch_negatives": torch.tensor(True)},
}


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(values, dim=1)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("slots", [0, 1, 23], ids=["K0", "K1", "K23"])
def test_statistics_are_those_of_the_torch_backend(name, slots) -> None:
    options = {"in_batch_negatives": True, **OPTIONS[name]} if slots == 0 else OPTIONS[name]
    query, positive, bank = unit(7, 5, 0), unit(7, 5, 1), unit(slots, 5, 2)
    ids, bank_ids = torch.tensor([0, 1, 2, 3, 3, -1, 4]), torch.arange(slots) % 5
    bank_ids[4:8] = -1
    found = [
        weighted_info_nce(
            query, positive, bank, query_ids=ids, bank_ids=bank_ids, return_stats=True,
            backend=backend, **options,
        )
        for backend in ("reference", "torch")
    ]  # fmt: skip
    torch.testing.assert_close(found[0][0], found[1][0])
    for field, ours, theirs in zip(found[0][1]._fields, found[0][1], found[1][1], strict=True):
        assert ours.dtype == theirs.dtype, field
        torch.testing.assert_close(ours, theirs, msg=lambda text, field=field: f"{field}: {text}")
        assert not ours.requires_grad


def test_the_loss_keeps_its_gradient_beside_the_statistics() -> None:
    query = unit(4, 3, 0).requires_grad_()
    loss, stats = weighted_info_nce(
        query, query.detach(), unit(6, 3, 1), return_stats=True, backend="reference"
    )
    loss.backward()
    assert query.grad is not None and query.grad.abs().sum() > 0
    torch.testing.assert_close(stats.loss.mean(), loss.detach())


def test_int8_bank_and_half_queries() -> None:
    bank = MemoryBank(8, 4, dtype=torch.int8)
    bank.enqueue(unit(5, 4, 3).float(), torch.arange(5))
    query = unit(3, 4, 4).bfloat16()
    _, stats = weighted_info_nce(
        query, query, bank, query_ids=torch.tensor([0, 9, 9]), return_stats=True,
        backend="reference",
    )  # fmt: skip
    assert stats.negatives.tolist() == [4, 5, 5]
    s = query.float() @ bank.dense().T
    assert stats.hardest_index[1:].tolist() == s[1:, :5].argmax(1).tolist()
    assert stats.hardest.dtype == torch.float32


def test_ties_go_to_the_lowest_row_and_to_the_bank_before_the_batch() -> None:
    axis = torch.eye(2, dtype=torch.float64)
    query, positive = axis[[0, 1]], axis[[1, 0]]  # the other row's key is as near as slot 1
    bank = torch.stack([axis[1], axis[0], axis[0]])
    _, stats = weighted_info_nce(
        query, positive, bank, in_batch_negatives=True, return_stats=True, backend="reference"
    )
    assert stats.hardest_index.tolist() == [1, 0]


def test_the_environment_reaches_ring_writes(monkeypatch) -> None:
    """A bank filled under SEDE_BACKEND=reference holds what the torch backend writes."""
    keys = unit(9, 4, 5).float()
    banks = {}
    for backend in ("reference", "torch"):
        monkeypatch.setenv("SEDE_BACKEND", backend)
        banks[backend] = MemoryBank(6, 4), MemoryBank(6, 4, dtype=torch.int8), FragmentBank(6, 3, 4)
        for start, bank in itertools.product((0, 3, 6), banks[backend][:2]):
            bank.enqueue(keys[start : start + 3], torch.arange(start, start + 3))
        banks[backend][2].enqueue(keys.view(3, 3, 4))
    for ours, theirs in zip(*banks.values(), strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    assert banks["reference"][0].ids.tolist() == [6, 7, 8, 3, 4, 5]


def test_a_criterion_trains_on_the_reference(monkeypatch) -> None:
    monkeypatch.setenv("SEDE_BACKEND", "reference")
    loss = SEDELoss(8, 4, hardness=2.0)
    image, text = unit(3, 4, 6).float().requires_grad_(), unit(3, 4, 7).float()
    for _ in range(3):
        loss(image, text, ids=torch.arange(3)).backward()
        loss.enqueue(image.detach(), text, ids=torch.arange(3))
    assert torch.isfinite(image.grad).all()
    assert len(loss.image_bank) == 8


SETS = unit(12, 8, 7).view(4, 3, 8)
LENGTHS = torch.tensor([3, 2, 1, 0])
CALLS = {
    "bank_lse": lambda x, b: bank_lse(x.flatten(0, 1), unit(9, 8, 8), [1.0, 20.0], backend=b),
    "hardest": lambda x, b: hardest_negatives(x.flatten(0, 1), unit(9, 8, 8), 2, backend=b)[0],
    "all pairs": lambda x, b: cross_attention_similarity(
        x, x.flip(0), region_lengths=LENGTHS, word_lengths=LENGTHS, backend=b
    ),
    "chosen pairs": lambda x, b: cross_attention_pairs(
        x[:, None], x.flip(0)[:, None], region_lengths=LENGTHS[:, None], backend=b
    ),
    "late": lambda x, b: cross_attention_similarity(
        x, x.flip(0), word_lengths=LENGTHS, attention="max", aggregate="sum", backend=b
    ),
    "erase": lambda x, b: attention_erase(x.abs() / 8, lengths=None, backend=b)[0],
}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", CALLS)
def test_half_inputs_are_widened_as_the_kernels_do(name, half) -> None:
    """In float16 a guard of 1e-8 is 0, and an empty set divides 0 by 0; bank rows keep theirs."""
    x = SETS.to(half).requires_grad_()
    wide = x.detach().double().requires_grad_()
    got, want = CALLS[name](x, "reference"), CALLS[name](wide, "reference")
    inside = name == "erase"  # whose result has the dtype of its input
    assert got.dtype == (half if inside else torch.float32)
    room = 2.0**-7 if half == torch.bfloat16 else 2.0**-10
    torch.testing.assert_close(got.double(), want, rtol=room if inside else 1e-5, atol=1e-5)
    upstream = torch.linspace(-1, 2, want.numel(), dtype=torch.float64).view_as(want)
    (found,) = torch.autograd.grad(got, x, upstream.to(got.dtype))
    (expected,) = torch.autograd.grad(want, wide, upstream.to(got.dtype).double())
    torch.testing.assert_close(found.double(), expected, rtol=room, atol=room)
