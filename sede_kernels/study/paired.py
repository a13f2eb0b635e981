"""Means and 95 % intervals of paired differences, from Student's t."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean of n values.

    Attributes:
        mean: of the values.
        spread: sample standard deviation; NaN for one value.
        half: half width of the 95 % interval of the mean; NaN for one value.
        count: n.
    """

    mean: float
    spread: float
    half: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval."""
        return self.mean - self.half, self.mean + self.half

    @property
    def verdict(self) -> str:
        """``ahead`` or ``behind`` where the interval excludes 0, else ``open``."""
        low, high = self.interval
        return "ahead" if low > 0 else "behind" if high < 0 else "open"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, spread and 95 % interval; differences of pairs make it the paired t interval.

    Raises:
        ValueError: no values.
    """
    count = len(values)
    if not count:
        raise ValueError("estimate needs at least one value")
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, spread, t_quantile(0.975, count - 1) * spread / math.sqrt(count), count)


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t above the median, by bisection of :func:`t_two_sided`."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_two_sided(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_two_sided(t: float, freedom: int) -> float:
    """P(-t < T < t) for a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3, .4)."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
