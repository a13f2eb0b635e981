"""The warm-up: the value of either side of it, one compiled graph, and old state dicts."""

import pytest
import torch
from torch._dynamo.utils import counters

from sede_kernels import FragmentBank, MemoryBank, SEDELoss, hardest_negatives, weighted_info_nce
from sede_kernels.functional import bank_lse, symmetric_info_nce
from sede_kernels.warmup import WarmUp
from tests.conftest import CPU_BACKENDS, unit

TRUE, FALSE = torch.tensor(True), torch.tensor(False)
EVERY = ["reference", *CPU_BACKENDS]


def f32(*shape: int) -> torch.Tensor:
    return unit(*shape, dtype=torch.float32)


def filled(size: int = 30, dim: int = 8, dtype: torch.dtype = torch.float32) -> MemoryBank:
    bank = MemoryBank(size, dim, dtype=dtype)
    bank.enqueue(f32(size - 4, dim), torch.arange(size - 4))
    return bank


def value_and_grads(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [loss, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("chosen", EVERY)
def test_a_bank_is_empty_where_its_flag_is_false(chosen, dtype) -> None:
    bank, query = filled(dtype=dtype), f32(5, 8)
    assert bank.where(None) is bank
    for flag, want in ((TRUE, bank), (FALSE, MemoryBank(30, 8, dtype=dtype))):
        view = bank.where(flag)
        assert torch.equal(
            bank_lse(query, view, 3.0, backend=chosen), bank_lse(query, want, 3.0, backend=chosen)
        )
        for got, right in zip(
            hardest_negatives(query, view, 2, backend=chosen),
            hardest_negatives(query, want, 2, backend=chosen),
            strict=True,
        ):
            assert torch.equal(got, right)
        loss = weighted_info_nce(query, query, view, query_ids=torch.arange(5), backend=chosen)
        right = weighted_info_nce(query, query, want, query_ids=torch.arange(5), backend=chosen)
        assert torch.equal(loss, right)


def test_a_fragment_bank_is_empty_where_its_flag_is_false() -> None:
    bank = FragmentBank(4, 3, 2)
    bank.enqueue(torch.ones(2, 2, 2), ids=torch.tensor([5, 6]))
    assert bank.where(None) is bank
    assert bank.where(TRUE).ids.tolist() == [5, 6, -1, -1]
    view = bank.where(FALSE)
    assert view.ids.tolist() == [-1] * 4
    assert view.rows is bank.rows and view.lengths is bank.lengths


@pytest.mark.parametrize("flag", [True, torch.ones(2, dtype=torch.bool), torch.tensor(1)], ids=str)
def test_a_flag_is_a_bool_of_no_dimensions(flag) -> None:
    for bank in (filled(), FragmentBank(2, 2, 2)):
        with pytest.raises(TypeError, match="flag must be a 0-d bool tensor or None, got"):
            bank.where(flag)
    if isinstance(flag, torch.Tensor):
        with pytest.raises(TypeError, match="in_batch_negatives must be a bool or a 0-d bool"):
            weighted_info_nce(f32(2, 8), f32(2, 8), filled(), in_batch_negatives=flag)


@pytest.mark.parametrize("false_negatives", ["mask", "positive", "keep"])
@pytest.mark.parametrize("chosen", EVERY)
def test_the_batch_counts_where_the_flag_is_true(chosen, false_negatives) -> None:
    query, key = (f32(6, 8).requires_grad_() for _ in range(2))
    ids, bank = torch.tensor([0, 1, 1, 40, 41, 41]), filled()
    options = {
        "hardness": 4.0, "tau_plus": 0.1, "query_ids": ids, "false_negatives": false_negatives,
        "backend": chosen, "reduction": "none",
    }  # fmt: skip
    for flag in (TRUE, FALSE):
        got, want = (
            weighted_info_nce(query, key, bank, in_batch_negatives=counts, **options)
            for counts in (flag, bool(flag))
        )
        assert torch.equal(got, want)
        for a, b in zip(
            value_and_grads(got.sum(), query, key),
            value_and_grads(want.sum(), query, key),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    nothing = weighted_info_nce(query, key, None, in_batch_negatives=FALSE, backend=chosen)
    assert [t.abs().max().item() for t in value_and_grads(nothing, query, key)] == [0.0] * 3


def test_statistics_leave_out_a_batch_that_does_not_count(backend) -> None:
    query, key, bank = f32(6, 8), f32(6, 8), filled()
    for flag in (TRUE, FALSE):
        (_, got), (_, want) = (
            weighted_info_nce(
                query, key, bank, in_batch_negatives=counts, return_stats=True, backend=backend
            )
            for counts in (flag, bool(flag))
        )
        for name, value in got._asdict().items():
            assert torch.equal(value, getattr(want, name)), name


@pytest.mark.parametrize("in_batch", [False, True], ids=["bank", "bank+batch"])
@pytest.mark.parametrize("chosen", EVERY)
def test_sede_loss_before_and_after_its_warm_up(chosen, in_batch) -> None:
    criterion = SEDELoss(
        16, 8, start_step=2, hardness=3.0, in_batch_negatives=in_batch, backend=chosen
    )
    image, text = (f32(5, 8).requires_grad_() for _ in range(2))
    image_key, text_key = f32(5, 8), f32(5, 8)
    ids = torch.arange(5)
    for step in range(4):
        warm = step >= 2
        banks = (criterion.image_bank, criterion.text_bank) if warm else (None, None)
        want = symmetric_info_nce(
            image, text, image_key, text_key, *banks, hardness=3.0, ids=ids,
            in_batch_negatives=in_batch or not warm, backend=chosen,
        )  # fmt: skip
        got = criterion(image, text, image_key, text_key, ids=ids)
        for a, b in zip(
            value_and_grads(got, image, text), value_and_grads(want, image, text), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        criterion.enqueue(image_key, text_key, ids=ids + 100 * step)
    assert int(criterion.steps) == 4


@pytest.mark.parametrize("start_step", [0, 3])
def test_a_training_step_is_one_graph_however_long_the_run(start_step, backend) -> None:
    torch._dynamo.reset()
    counters.clear()
    criterion, plain = (SEDELoss(16, 8, start_step=start_step, backend=backend) for _ in range(2))

    def step(loss, a, b):
        value = loss(a, b, a.detach(), b.detach())
        loss.enqueue(a.detach(), b.detach())
        return value

    compiled = torch.compile(
        lambda a, b: step(criterion, a, b), fullgraph=True, backend="aot_eager"
    )
    for _ in range(10):
        a, b = f32(4, 8).requires_grad_(), f32(4, 8).requires_grad_()
        got, want = compiled(a, b), step(plain, a, b)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got, (a, b)), torch.autograd.grad(want, (a, b))
        )
    assert counters["stats"]["unique_graphs"] == 1
    assert int(criterion.steps) == (10 if start_step else 0)


def test_the_counter_is_a_tensor_and_old_state_dicts_load() -> None:
    module = WarmUp(3)
    assert module.steps.dtype == torch.int64 and module.steps.ndim == 0
    module.advance()
    assert list(module.state_dict()) == ["steps"] and not bool(module.warm)
    module.load_state_dict({"_extra_state": 7})
    assert int(module.steps) == 7 and bool(module.warm)
    module.load_state_dict({})
    assert int(module.steps) == 7
    outer = torch.nn.ModuleDict({"loss": WarmUp(3)})
    outer.load_state_dict({"loss._extra_state": 4})
    assert int(outer["loss"].steps) == 4
    module.reset_parameters()
    assert int(module.steps) == 0
    plain = WarmUp()
    plain.advance()
    assert plain.warm is None and int(plain.steps) == 0


@pytest.mark.parametrize("start_step", [-1, 1.5, True, "2"], ids=str)
def test_a_wrong_start_step_is_named(start_step) -> None:
    with pytest.raises(ValueError, match="SEDELoss: start_step must be an integer >= 0, got"):
        SEDELoss(4, 2, start_step=start_step)
