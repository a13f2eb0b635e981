"""The op ``info_nce``: its contract with torch, and what its backward relies on."""

import pytest
import torch
from torch.library import opcheck

from sede_kernels import MemoryBank, symmetric_info_nce, weighted_info_nce
from sede_kernels.ops.info_nce import info_nce
from sede_kernels.types import TABLE, InfoNCERule, Scalars, Side
from tests.conftest import CPU_BACKENDS, unit

IDS, BANK_IDS = torch.tensor([0, 1, 1, 2, -1]), torch.arange(23) % 9 - 1
RULES = {
    "plain": InfoNCERule(weighted=False),
    "weighted": InfoNCERule(weighted=True, hardest=True),
    "attached": InfoNCERule(weighted=True, detach_weights=False, margin=True),
    "debiased": InfoNCERule(weighted=True, normalize_weights=False, tau_plus=0.1),
    "positives": InfoNCERule(weighted=True, false_negatives="positive", positive_focus=2.0),
    "rows": InfoNCERule(weighted=True, false_negatives="keep", reduction="none"),
    "batch": InfoNCERule(weighted=True, in_batch=True, hardest=True, reduction="sum"),
    "limit": InfoNCERule(weighted=True, in_batch=True),
    "batch positives": InfoNCERule(weighted=True, in_batch=True, false_negatives="positive"),
}


def arguments(name, backend, *, sides=2, dtype=torch.float64):
    """Of the op, with all that may be learnt learnt."""
    rule = RULES[name]._replace(query_grad=True, scalar_grad=True, keep=RULES[name].in_batch)

    def side() -> Side:
        query, positive = (unit(5, 6, dtype=dtype).requires_grad_() for _ in range(2))
        limit = torch.linspace(-0.3, 0.4, 5, dtype=dtype) if name == "limit" else None
        return Side(query, positive, unit(23, 6, dtype=dtype), None, BANK_IDS, IDS, limit)

    number = torch.float64 if dtype == torch.float64 else torch.float32
    temperature, hardness = (
        torch.tensor(value, dtype=number, requires_grad=True) for value in (0.3, 4.0)
    )
    margin = torch.tensor(0.2, dtype=number) if rule.margin else None
    scalars = Scalars(1.0, 0.0, 0.0, temperature, hardness, margin)
    return side(), side() if sides == 2 else None, scalars, rule, backend


def leaves(side, other, scalars, *_):
    tensors = [*side[:2], *(other[:2] if other else ()), *scalars[3:5]]
    return [tensor for tensor in tensors if tensor is not None]


def outcome(loss, learned):
    grads = torch.autograd.grad(loss.sum(), learned, allow_unused=True)
    return [loss.detach(), *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_eager_calls_and_the_dispatcher_give_the_same_bits(name, sides, backend) -> None:
    given = arguments(name, backend, sides=sides)
    learned = leaves(*given)
    found = info_nce(*given)
    direct = outcome(found.loss, learned)
    dispatched = torch.ops.sede.info_nce(*info_nce.flat(*given))
    through = outcome(dispatched[0], learned)
    assert found.loss.grad_fn is not None
    assert len(direct) == len(through) > 3
    for got, want in zip(through, direct, strict=True):
        assert torch.equal(got, want)
    # Room for similarities is not written to its end.
    for got, want in zip(dispatched[1:-1], found[1:-1], strict=True):
        assert torch.equal(got, want)
        assert not got.requires_grad
        assert not want.requires_grad


@pytest.mark.parametrize("name", ["attached", "rows", "limit", "batch positives"])
def test_opcheck(name, backend) -> None:
    for sides in (1, 2):
        *given, rule, _ = arguments(name, backend, sides=sides, dtype=torch.float32)
        # Room for similarities is not written to its end.
        flat = info_nce.flat(*given, rule._replace(keep=False), backend)
        opcheck(torch.ops.sede.info_nce.default, flat)


@pytest.mark.parametrize("name", RULES)
def test_gradcheck(name, backend) -> None:
    """Weights that are detached and the focus have no derivative that differences could show."""
    given = arguments(name, backend)
    rule = given[3]._replace(detach_weights=False, positive_focus=0.0)
    side, other, scalars = given[:3]

    def loss(query, positive, other_query, other_positive, temperature, hardness):
        sides = (
            side._replace(query=query, positive=positive),
            other._replace(query=other_query, positive=other_positive),
        )
        at = scalars._replace(temperature_at=temperature, hardness_at=hardness)
        return info_nce(*sides, at, rule, backend).loss

    assert torch.autograd.gradcheck(loss, leaves(*given), atol=1e-6)


@pytest.mark.skipif("cpu" not in CPU_BACKENDS, reason="the native module is not built")
@pytest.mark.parametrize("name", RULES)
def test_every_backend_keeps_the_same_table(name) -> None:
    """What ``finish`` writes, row by row, against that of the torch backend."""
    given = arguments(name, "torch")
    want, got = info_nce(*given), info_nce(*given[:-1], "cpu")
    rule = given[3]
    read = dict.fromkeys(TABLE[:8], True) | {"hardest": rule.hardest}
    read |= dict.fromkeys(("lse", "lse_grad"), rule.in_batch)
    read |= dict.fromkeys(("lse_1", "lse_grad_1"), rule.in_batch and rule.exponents == 2)
    read |= dict.fromkeys(TABLE[12:], rule.in_batch and rule.extra_positives)
    for row, part in enumerate(TABLE):
        if read[part]:
            torch.testing.assert_close(
                got.table[:, row], want.table[:, row], msg=lambda m, part=part: f"{part}: {m}"
            )
    for index in (0, 2, 3, 4):
        torch.testing.assert_close(got[index], want[index])


def test_the_bank_may_move_on_before_the_backward(backend) -> None:
    bank = MemoryBank(8, 6)
    bank.enqueue(unit(8, 6, dtype=torch.float32))
    query, key = (unit(4, 6, dtype=torch.float32).requires_grad_() for _ in range(2))
    loss = weighted_info_nce(query, key, bank, backend=backend)
    (want,) = torch.autograd.grad(loss, query, retain_graph=True)
    bank.enqueue(unit(8, 6, dtype=torch.float32))
    (got,) = torch.autograd.grad(loss, query)
    assert torch.equal(got, want)


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_query_that_was_written_to_is_noticed(in_batch, backend) -> None:
    query = unit(4, 6, dtype=torch.float32)
    key = unit(4, 6, dtype=torch.float32).requires_grad_()
    loss = weighted_info_nce(
        query, key, unit(8, 6, dtype=torch.float32), in_batch_negatives=in_batch, backend=backend
    )
    query.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sides_of_unlike_dtypes(dtype, backend) -> None:
    """Each query in its own dtype, as each positive may be."""
    image = unit(4, 6, dtype=torch.float32).requires_grad_()
    text = unit(4, 6).to(dtype).requires_grad_()
    bank = unit(9, 6, dtype=torch.float32)
    loss = symmetric_info_nce(image, text, image, text, bank, bank, hardness=2.0, backend=backend)
    want = weighted_info_nce(image, text, bank, hardness=2.0, backend=backend)
    want = (want + weighted_info_nce(text, image, bank, hardness=2.0, backend=backend)) / 2
    torch.testing.assert_close(loss, want)
    for got, wanted in zip(
        *(torch.autograd.grad(x, (image, text)) for x in (loss, want)), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_an_expanded_gradient_of_the_rows(backend) -> None:
    query, key, bank = unit(4, 6).requires_grad_(), unit(4, 6), unit(9, 6)
    rows = weighted_info_nce(query, key, bank, reduction="none", backend=backend)
    (got,) = torch.autograd.grad(rows.sum(), query, retain_graph=True)
    (want,) = torch.autograd.grad(
        rows, query, torch.ones(4, dtype=torch.float64), retain_graph=True
    )
    assert torch.equal(got, want)
    (strided,) = torch.autograd.grad(rows, query, torch.ones(8, dtype=torch.float64)[::2])
    assert torch.equal(strided, want)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_a_batch_that_does_not_count_yet_has_no_gradient(backend: str) -> None:
    """With a small temperature e^{s / tau} of the batch is beyond fp32 beside an empty bank."""
    query = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    key = torch.tensor([[1.0], [1.0]], requires_grad=True)
    loss = weighted_info_nce(
        query, key, MemoryBank(1, 1), temperature=0.01,
        in_batch_negatives=torch.tensor(False), backend=backend,
    )  # fmt: skip
    assert loss == 0
    for grad in torch.autograd.grad(loss, (query, key)):
        assert torch.equal(grad, torch.zeros_like(grad))
