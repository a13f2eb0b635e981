"""positive_focus: rows of tiny losses keep their share of the mean, and gradients stay finite."""

import math
from decimal import Decimal, getcontext

import pytest
import torch

from sede_kernels import reference
from sede_kernels.backends._info_nce_row import reduce as reduce_rows
from tests.conftest import unit
from tests.unit.test_weighted_info_nce import value_and_grads

getcontext().prec = 60

REDUCTIONS = [
    pytest.param(lambda *rows: reduce_rows(*rows)[1], id="torch"),
    pytest.param(reference.reduce_loss, id="reference"),
]
LOSSES = [
    pytest.param([0.3, 1.5, 2.0, 0.01], id="usual"),
    pytest.param([1e-12, 3e-12, 2e-12, 1e-15], id="small"),
    pytest.param([1e-38, 3e-38, 2e-38, 1e-40], id="subnormal"),
    pytest.param([3e-20, 1.0, 1e-30, 1e-25], id="one large"),
    pytest.param([0.0, 2e-30, 0.0, 1e-30], id="some zero"),
]


def exact_shares(losses: list[float], focus: float) -> list[float]:
    """(1 - e^-l)^focus over its sum, in 60 digits."""
    base = [1 - (-Decimal(loss)).exp() if loss > 1e-20 else Decimal(loss) for loss in losses]
    weight = [b ** Decimal(focus) if b else Decimal(0) for b in base]
    return [float(w / sum(weight)) for w in weight]


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("focus", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mean_is_that_of_exact_weights(reduce, losses, focus, dtype) -> None:
    rows = torch.tensor(losses, dtype=dtype, requires_grad=True)
    shares = exact_shares(rows.detach().double().tolist(), focus)
    mean = reduce(rows, focus, "mean")
    (grad,) = torch.autograd.grad(mean, rows)
    want = torch.tensor(shares, dtype=torch.float64)
    rtol = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(grad.double(), want, rtol=rtol, atol=1e-30)
    expected = math.fsum(s * x for s, x in zip(shares, rows.tolist(), strict=True))
    assert mean.item() == pytest.approx(expected, rel=rtol, abs=3e-45)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_sum_none_and_the_limits(reduce) -> None:
    rows = torch.tensor([0.3, 1e-3, 0.0, 2.0], dtype=torch.float64)
    want = (1 - torch.exp(-rows)) ** 1.5 * rows
    torch.testing.assert_close(reduce(rows, 1.5, "none"), want)
    torch.testing.assert_close(reduce(rows, 1.5, "sum"), want.sum())
    for reduction in ("mean", "sum"):
        assert reduce(torch.zeros(0), 2.0, reduction) == 0
        assert reduce(torch.zeros(0), 0.0, reduction) == 0
        zero = torch.zeros(3, requires_grad=True)
        loss = reduce(zero, 2.0, reduction)
        (grad,) = torch.autograd.grad(loss, zero)
        assert loss == 0 and grad.isfinite().all()
    assert reduce(torch.tensor([1.0, math.nan]), 2.0, "mean").isnan()


@pytest.mark.parametrize("backend", ["torch", "cpu", "reference"])
@pytest.mark.parametrize(
    "temperature, focus",
    [(0.008, 1.0), (0.0095, 1.0), (0.016, 2.0), (0.018, 2.0), (0.023, 3.0), (0.04, 5.0)],
)
def test_gradient_where_every_row_is_well_separated(temperature, focus, backend) -> None:
    case = {"query": unit(4, 256), "bank": unit(64, 256)}
    case["positive"] = case["query"]
    options = {"temperature": temperature, "positive_focus": focus}
    truth = value_and_grads(case, backend="reference", **options)
    single = {name: tensor.float() for name, tensor in case.items()}
    got = value_and_grads(single, backend=backend, **options)
    for found, want in zip(got, truth, strict=True):
        assert found.isfinite().all()
        tiny = torch.finfo(torch.float32).tiny  # below it exponentials may come as 0
        torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=tiny)
