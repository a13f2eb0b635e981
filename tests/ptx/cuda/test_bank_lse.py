"""Passes over a bank, fused and in chunks, against their definitions in fp64."""

from collections.abc import Iterator

import pytest
import torch

from sede_kernels.backends.cuda import _native
from sede_kernels.backends.cuda.bank_lse import bank_lse, bank_lse_pair
from sede_kernels.types import Bank, Match, Want
from tests.ptx.cuda.oracle import EXPONENTS, Problem, assert_sums, expected
from tests.ptx.machine import cuda

F32, BF16, F16, I8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
LEAN, FULL = Want((0,)), Want((0,), moments=True, hardest=True)


@pytest.fixture
def ampere() -> Iterator[None]:
    """The kernels of every GPU, on compute capability 9.0 too."""
    _native.module().set_hopper(False)
    yield
    _native.module().set_hopper(True)


def check(problem: Problem, want: Want, exponents: int, launches: int | None = None) -> None:
    scales = EXPONENTS[:exponents]
    before = cuda.report()[0]
    found = bank_lse(problem.query, problem.bank, torch.tensor(scales), problem.match, want)
    assert launches is None or cuda.report()[0] - before == launches
    assert_sums(problem, found, expected(problem, scales, want))


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("dim", [64, 72, 128, 256, 320, 512])
@pytest.mark.parametrize(
    ("want", "exponents"),
    [(LEAN, 1), (Want((1,)), 2), (FULL, 3), (Want((), moments=True, hardest=True), 2)],
    ids=["one", "two", "full", "lse"],
)
def test_fused(dtype: torch.dtype, dim: int, want: Want, exponents: int) -> None:
    check(Problem(70, 333, dim, dtype), want, exponents, launches=2)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize("dim", [64, 256, 512])
@pytest.mark.parametrize("exponents", [1, 2])
def test_fixed_maximum(dim: int, exponents: int) -> None:
    """Opposite rows too: their weights are e^{-40} of those that the maximum stands for."""
    problem = Problem(9, 333, dim, BF16)
    problem.query[2] = -problem.bank.rows[problem.bank.ids != -1][0]
    problem.query[3] = problem.bank.rows[problem.bank.ids != -1][1]
    check(problem, Want((0,), unit_length=True), exponents, launches=2)


@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
@pytest.mark.parametrize("limit", [False, True], ids=["", "limit"])
def test_fused_selections(select: str, limit: bool) -> None:
    check(Problem(5, 500, 64, BF16, select=select, limit=limit), FULL, 2, launches=2)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1500])
def test_fused_sizes(size: int) -> None:
    check(Problem(3, size, 64, BF16, ids=False), LEAN, 1, launches=2)


@pytest.mark.usefixtures("many_processors")
def test_more_parts_than_a_warp_has_lanes() -> None:
    check(Problem(3, 160 * 64 - 5, 64, BF16), Want((1, 0), True, True), 3, launches=2)


@pytest.mark.parametrize(
    "problem",
    [
        Problem(9, 150, 40, F32),
        Problem(70, 130, 33, F32, transposed=True),
        Problem(9, 150, 520, BF16),
        Problem(9, 150, 64, BF16, transposed=True),
        Problem(9, 150, 65, F16),
        Problem(9, 150, 48, BF16, I8),
        Problem(9, 150, 48, F32, I8),
        Problem(9, 150, 48, F32, BF16),
        Problem(9, 150, 48, F32, limit=True),
        Problem(9, 150, 1, F32, ids=False),
    ],
    ids=["f32", "transposed-f32", "wide", "transposed-bf16", "odd", "int8", "int8-f32", "mixed",
         "limit", "one-column"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("want", "exponents"), [(LEAN, 1), (Want((1, 0), True, True), 3)], ids=["lean", "full"]
)
@pytest.mark.parametrize("chunks", [1, 3])
def test_chunked(problem: Problem, want: Want, exponents: int, chunks: int) -> None:
    _native.module().set_exact(False)
    if chunks > 1:
        _native.module().set_chunk(0, 64)
    try:
        check(problem, want, exponents)
    finally:
        _native.module().set_chunk(1 << 22, 1024)
        _native.module().set_exact(True)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_two_banks(dtype: torch.dtype) -> None:
    one, two = (Problem(20, 200, 64, dtype, seed=seed, limit=True) for seed in (0, 7))
    two.match = two.match._replace(ids=one.match.ids)
    limits = torch.stack([one.match.limit, two.match.limit])
    found = bank_lse_pair(
        torch.stack([one.query, two.query]), one.bank, two.bank, torch.tensor(EXPONENTS[:2]),
        Match(one.match.ids, limits, "mask"), FULL,
    )  # fmt: skip
    for side, problem in enumerate((one, two)):
        truth = expected(problem, EXPONENTS[:2], FULL)
        assert_sums(problem, type(found)(*(result[side] for result in found)), truth)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_nothing_counts(dtype: torch.dtype) -> None:
    problem = Problem(4, 70, 64, dtype)
    nothing = Bank(problem.bank.rows, None, torch.full((70,), -1))
    found = bank_lse(problem.query, nothing, torch.tensor([9.0]), problem.match, FULL)
    assert (found.lse == -torch.inf).all() and (found.hardest == -torch.inf).all()
    assert (found.acc == 0).all() and (found.moment == 0).all()
    assert (found.negatives == 0).all() and (found.hardest_index == -1).all()


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    problem = Problem(70, 200, 64, dtype)
    query = problem.query.clone()
    query[3] = torch.nan
    arguments = (problem.bank, torch.tensor([14.3]), problem.match, FULL)
    clean, found = bank_lse(problem.query, *arguments), bank_lse(query, *arguments)
    others = torch.arange(70) != 3
    assert found.lse[0, 3].isnan() and found.acc[0, 3].isnan().all()
    assert found.hardest[3].isnan() and found.hardest_index[3] == -1
    assert torch.equal(found.lse[:, others], clean.lse[:, others])
    assert torch.equal(found.acc[:, others], clean.acc[:, others])


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("exponent", [0.0, 1e-3, 500.0])
def test_extreme_exponents(dtype: torch.dtype, exponent: float) -> None:
    problem = Problem(9, 150, 64, dtype)
    found = bank_lse(problem.query, problem.bank, torch.tensor([exponent]), problem.match, FULL)
    assert_sums(problem, found, expected(problem, (exponent,), FULL), exponent)


@pytest.mark.parametrize("dim", [64, 128, 256, 512])
@pytest.mark.parametrize("exponents", [1, 2])
def test_a_row_far_above_the_others(dim: int, exponents: int) -> None:
    """Relative to any lower one its weight is no number in fp16."""
    problem = Problem(9, 333, dim, F16, ids=False)
    problem.query, scales = problem.bank.rows[100:109].clone(), (200.0, 150.0)[:exponents]
    found = bank_lse(problem.query, problem.bank, torch.tensor(scales), problem.match, LEAN)
    assert_sums(problem, found, expected(problem, scales, LEAN), scales[0])


def test_repeats_are_equal_to_the_bit() -> None:
    problem = Problem(70, 333, 64, BF16)
    runs = [
        bank_lse(problem.query, problem.bank, torch.tensor([14.3]), problem.match, FULL)
        for _ in range(3)
    ]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
