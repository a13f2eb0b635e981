"""Random problems, and what a pass over a bank finds from its definitions in fp64."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sede_kernels.types import Bank, Match, Sums, Want

#: |error| against fp64, relative to the largest true value. Half types round the weights of the
#: second product, hence their floor for what it gives.
FLOOR = 2e-6
ROUNDED = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
EXPONENTS = (14.3, 20.0, 5.7)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    """Rows of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=1)


@dataclass
class Problem:
    """Queries and a bank; empty slots hold NaN, which nothing may read."""

    rows: int
    size: int
    dim: int
    dtype: torch.dtype
    bank_dtype: torch.dtype | None = None
    ids: bool = True
    limit: bool = False
    select: str = "mask"
    transposed: bool = False
    seed: int = 0
    query: Tensor = field(init=False)
    bank: Bank = field(init=False)
    match: Match = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed + 1)
        self.query = unit(self.rows, self.dim, self.seed + 2).to(self.dtype)
        rows, scale = unit(self.size, self.dim, self.seed + 3), None
        kind = self.bank_dtype or self.dtype
        if kind == torch.int8:
            scale = rows.abs().amax(1).clamp(min=1e-6) / 127
            rows = (rows / scale[:, None]).round()
        rows = rows.to(kind)
        names = max(2, self.size // 8)
        ids = torch.randint(-1, names, (self.size,), generator=generator) if self.ids else None
        if ids is not None and kind != torch.int8:
            rows[ids == -1] = torch.nan
        if self.transposed:
            rows = rows.T.contiguous().T
        self.bank = Bank(rows, scale, ids)
        own = torch.randint(0, names, (self.rows,), generator=generator) if self.ids else None
        limit = torch.rand(self.rows, generator=generator) * 0.1 if self.limit else None
        self.match = Match(own, limit, self.select)

    def similarity(self) -> Tensor:
        """(B, K) in fp64; 0 for empty slots."""
        return self.query.double() @ self.dense().T

    def dense(self) -> Tensor:
        """(K, D) in fp64; 0 for empty slots."""
        rows = self.bank.dense(torch.float64)
        return (
            rows if self.bank.ids is None else rows.masked_fill((self.bank.ids == -1)[:, None], 0)
        )

    def valid(self, s: Tensor) -> Tensor:
        """(B, K) bool: what counts."""
        valid = torch.ones_like(s, dtype=torch.bool)
        if self.bank.ids is not None:
            valid &= (self.bank.ids != -1)[None]
        if self.select != "keep" and self.match.ids is not None and self.bank.ids is not None:
            same = self.match.ids[:, None] == self.bank.ids[None]
            valid &= same if self.select == "positive" else ~same
        return (
            valid if self.match.limit is None else valid & (s <= self.match.limit.double()[:, None])
        )


def expected(problem: Problem, exponents: tuple[float, ...], want: Want) -> Sums:
    """The sums from their definitions."""
    s = problem.similarity()
    valid, rows = problem.valid(s), problem.dense()
    lse, moment, acc = [], [], {}
    for number, exponent in enumerate(exponents):
        logits = (s * float(torch.tensor(exponent))).masked_fill(~valid, -torch.inf)
        lse.append(logits.logsumexp(1))
        p = (logits - lse[-1][:, None]).exp().nan_to_num(0.0)
        moment.append((p * s).sum(1))
        if number in want.accumulate:
            acc[number] = p @ rows
    hard, index = s.masked_fill(~valid, -torch.inf).max(1)
    index = index.masked_fill(hard == -torch.inf, -1)
    return Sums(
        torch.stack(lse),
        torch.stack(moment) if want.moments else s.new_empty((0, s.shape[0])),
        torch.stack([acc[a] for a in want.accumulate])
        if acc
        else s.new_empty((0, *problem.query.shape)),
        valid.sum(1),
        hard if want.hardest else s.new_empty((0,)),
        index if want.hardest else torch.empty(0, dtype=torch.int64),
    )


def assert_close(name: str, value: Tensor, truth: Tensor, floor: float) -> None:
    """|value - truth| <= floor max(0.01, max |truth|); infinities in the same places, no NaN."""
    assert value.shape == truth.shape, (
        f"{name}: shape {tuple(value.shape)}, not {tuple(truth.shape)}"
    )
    value, truth = value.double(), truth.double()
    assert not value.isnan().any(), f"{name}: NaN"
    assert torch.equal(value.isinf(), truth.isinf()), f"{name}: infinities in other places"
    finite = truth.isfinite()
    scale = max(0.01, float(truth[finite].abs().max())) if finite.any() else 1.0
    error = float((value - truth)[finite].abs().max()) if finite.any() else 0.0
    assert error <= floor * scale, f"{name}: error {error:.3g} above {floor * scale:.3g}"


def assert_sums(problem: Problem, found: Sums, truth: Sums, exponent: float = 1.0) -> None:
    """Every field, the accumulators within what rounded weights allow.

    An ``exponent`` above 50 multiplies the rounding of s by more than the floors assume.
    """
    amplified = max(1.0, exponent / 50)
    assert_close("lse", found.lse, truth.lse, FLOOR)
    assert_close("moment", found.moment, truth.moment, FLOOR * amplified)
    assert_close("acc", found.acc, truth.acc, ROUNDED[problem.dtype] * amplified)
    assert torch.equal(found.negatives, truth.negatives)
    assert_close("hardest", found.hardest, truth.hardest, FLOOR)
    assert torch.equal(found.hardest_index, truth.hardest_index)
