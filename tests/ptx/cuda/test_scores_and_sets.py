"""The loss of given scores, and ring writes: one launch each."""

import pytest
import torch
from torch import Tensor

from sede_kernels import MemoryBank, functional
from sede_kernels.ops.enqueue_fragments import enqueue_fragments
from sede_kernels.types import FragmentRing
from tests.ptx.cuda.oracle import assert_close
from tests.ptx.cuda.test_info_nce import launches
from tests.ptx.machine import cuda

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
FLOORS = {F32: 5e-6, BF16: 8e-3, F16: 1e-3}
#: normalize_weights, detach_weights, false_negatives, reduction.
OPTIONS = (
    (True, True, "mask", "mean"),
    (True, False, "positive", "none"),
    (False, True, "positive", "sum"),
    (False, False, "keep", "none"),
)


def outcome(
    scores: Tensor, positive: Tensor | None, backend: str, options: dict[str, object]
) -> list[Tensor]:
    number = torch.float64 if scores.dtype == torch.float64 else F32
    leaves = {"scores": scores.detach().requires_grad_()}
    if positive is not None:
        leaves["positive"] = positive.detach().requires_grad_()
    for name, value in (("temperature", 0.3), ("hardness", 2.0)):
        leaves[name] = torch.tensor(value, dtype=number, requires_grad=True)
    loss, stats = functional.score_info_nce(**leaves, backend=backend, return_stats=True, **options)
    grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return [loss.detach(), *grads, *stats]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_scores(options: tuple[object, ...], own: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, columns = 9, 1100 if own else 37
    scores = torch.randn(rows, columns, generator=generator).to(dtype)
    positive = None if own else torch.randn(rows, generator=generator).to(dtype)
    valid = torch.rand(rows, columns, generator=generator) < 0.7
    valid[1] = False
    if not own:
        scores = scores.t().contiguous().t()
    names = ("normalize_weights", "detach_weights", "false_negatives", "reduction")
    given: dict[str, object] = dict(zip(names, options, strict=True)) | {
        "valid": valid, "query_ids": torch.arange(rows) % 5,
        "key_ids": torch.arange(columns) % 7 - 1,
    }  # fmt: skip
    count, found = launches(lambda: outcome(scores, positive, "cuda", given))
    wide = None if positive is None else positive.double()
    truth = outcome(scores.double(), wide, "reference", given)
    assert count == 2
    for number, (value, exact) in enumerate(zip(found, truth, strict=True)):
        assert_close(f"result {number}", value, exact, FLOORS[dtype])


def test_rows_of_nothing_and_of_nan() -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    scores[1], scores[2, 4] = -torch.inf, torch.nan
    loss = functional.score_info_nce(scores, torch.zeros(4), reduction="none", backend="cuda")
    assert loss[1] == 0 and loss[2].isnan() and loss.isnan().sum() == 1
    nothing = functional.score_info_nce(scores[:0], torch.zeros(0), backend="cuda")
    assert nothing == 0


def test_a_further_positive_far_along_the_row() -> None:
    """The only one, among the columns that a thread takes second."""
    scores = torch.randn(2, 300, generator=torch.Generator().manual_seed(5))
    names = torch.arange(300) + 10
    names[200], names[140] = 0, 1
    given: dict[str, object] = {
        "query_ids": torch.arange(2), "key_ids": names, "false_negatives": "positive",
    }  # fmt: skip
    found = outcome(scores, torch.zeros(2), "cuda", given)
    truth = outcome(scores.double(), torch.zeros(2).double(), "reference", given)
    for number, (value, exact) in enumerate(zip(found, truth, strict=True)):
        assert_close(f"result {number}", value, exact, 5e-6)


def ring(dtype: torch.dtype) -> FragmentRing:
    rows, lengths = torch.full((5, 3, 70), 9.0, dtype=dtype), torch.full((5,), 9)
    state = torch.full((5,), -1), torch.tensor(3), torch.tensor(0), torch.tensor(0)
    return FragmentRing(rows, lengths, *state)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_sets_equal_those_of_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rings = {name: ring(dtype) for name in ("cuda", "torch")}
    for step, (sets, width) in enumerate(((3, 2), (0, 3), (4, 3), (11, 3), (2, 1))):
        keys = torch.randn(sets, width, 70, generator=generator)
        lengths = torch.randint(1, width + 1, (sets,), generator=generator) if step != 2 else None
        ids = torch.arange(sets) if step != 3 else None
        if step == 2:
            keys[1, 2, 69], keys[2, 0, 0] = torch.nan, 1e6  # the second only in half precision
            keys = keys.transpose(1, 2).contiguous().transpose(1, 2)
        if step == 3 and lengths is not None:
            lengths[-1], keys[-1, 2] = 2, torch.inf  # beyond its length
        before = cuda.report()[0]
        for name, its in rings.items():
            enqueue_fragments(its, keys, lengths, ids, name)
        assert cuda.report()[0] - before == int(sets > 0)
        for name, ours, theirs in zip(FragmentRing._fields, *rings.values(), strict=True):
            assert torch.equal(ours, theirs), (step, name)
    assert int(rings["cuda"].rejected) == (2 if dtype == F16 else 1)


def test_a_key_goes_into_the_ring_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDE_BACKEND", "cuda")
    bank = MemoryBank(7, 24, dtype=BF16)
    for _ in range(3):
        count, _ = launches(lambda: bank.enqueue(torch.randn(5, 24)))
        assert count == 1
    assert int(bank.ptr) == 15 % 7 and len(bank) == 7
