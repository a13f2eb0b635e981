"""Intervals against published values of Student's t, and the facts behind a table."""

import math

import numpy as np
import pytest
import torch

from sede_kernels.training.paired import estimate, t_quantile, t_two_sided


@pytest.mark.parametrize(
    ("freedom", "value"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216),
     (10, 2.22814), (30, 2.04227), (120, 1.97993)],
)  # fmt: skip
def test_t_quantile(freedom, value):
    assert t_quantile(0.975, freedom) == pytest.approx(value, rel=3e-6)


def test_t_is_the_integral_of_its_density():
    x = torch.linspace(0, 1.7, 100_001, dtype=torch.float64)
    for freedom in (1, 2, 3, 7, 8):
        log_norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
        norm = math.exp(log_norm) / math.sqrt(freedom * math.pi)
        density = norm * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        area = 2 * float(torch.trapezoid(density, x))
        assert t_two_sided(1.7, freedom) == pytest.approx(area, abs=1e-9)


def test_paired_interval():
    # Student's own sleep data (1908): extra hours, drug 2 minus drug 1, ten patients.
    one = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    two = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = estimate([b - a for a, b in zip(one, two, strict=True)])
    assert found.mean == pytest.approx(1.58)
    assert found.interval == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert (found.verdict, found.count) == ("ahead", 10)
    assert estimate([-b for b in (1.0, 1.1, 1.2)]).verdict == "behind"
    assert estimate([1.0, -1.0]).verdict == "open"
    alone = estimate([4.0])
    assert (alone.mean, alone.verdict) == (4.0, "open")
    assert math.isnan(alone.half)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
    assert estimate(np.full(4, 2.5).tolist()).half == 0
