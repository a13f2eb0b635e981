"""The fused pass in fp32, of rows of any dtype and stride, against its definitions in fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sede_kernels import MemoryBank, functional
from sede_kernels.backends.cuda.bank_lse import bank_lse, bank_lse_pair
from sede_kernels.types import Match, Sums, Want
from tests.ptx.cuda.oracle import EXPONENTS, Problem, assert_close, assert_sums, expected, unit
from tests.ptx.machine import cuda

F32, BF16, F16, I8 = torch.float32, torch.bfloat16, torch.float16, torch.int8
FULL, BOTH, LSE = (
    Want((0,), True, True), Want((1, 0), True, True), Want((), moments=True, hardest=True),
)  # fmt: skip
KERNELS = {True: "fused_exact_full", False: "fused_exact_lse"}


def check(problem: Problem, want: Want = BOTH, exponents: int = 3) -> Sums:
    """One launch of the pass and one of the end; nothing is rounded to fewer bits than fp32."""
    scales, before = EXPONENTS[:exponents], cuda.report()[0]
    found = bank_lse(problem.query, problem.bank, torch.tensor(scales), problem.match, want)
    first, last = cuda.launched(before)
    assert first.startswith(KERNELS[bool(want.accumulate)]) and last == "finish_sums"
    truth = expected(problem, scales, want)
    assert_close("acc", found.acc, truth.acc, 2e-6)
    assert_sums(problem, found, truth)
    return found


@pytest.mark.parametrize(
    ("query", "bank", "dim"),
    [
        (query, bank, dim)
        for query in (F32, BF16, F16)
        for bank in (F32, BF16, F16, I8)
        for dim in (45, 48)
        if dim == 45 or query != bank or query == F32  # tensor cores serve the others
    ],
    ids=str,
)
def test_dtypes(query: torch.dtype, bank: torch.dtype, dim: int) -> None:
    check(Problem(20, 70, dim, query, bank))


@pytest.mark.parametrize("want", [FULL, LSE], ids=["full", "lse"])
@pytest.mark.parametrize("dim", [1, 3, 63, 64, 65, 100, 128, 129, 256, 257, 300, 511, 512])
def test_widths(dim: int, want: Want) -> None:
    check(Problem(20, 50, dim, F32), want, 2)


@pytest.mark.parametrize("bank", [F32, BF16, F16, I8], ids=str)
def test_strides(bank: torch.dtype) -> None:
    """Rows that begin anywhere, and columns apart."""
    for dim in (37, 40):
        problem = Problem(20, 70, dim, F32, bank, transposed=True)
        problem.query = problem.query.T.contiguous().T
        check(problem)
        problem = Problem(20, 70, dim, F32, bank)
        rows = torch.zeros(70, 2 * dim + 3).to(bank)
        rows[:, 1 : 2 * dim + 1 : 2] = problem.bank.rows
        problem.bank = problem.bank._replace(rows=rows[:, 1 : 2 * dim + 1 : 2])
        wide = torch.zeros(20, dim + 3)
        wide[:, 1 : dim + 1] = problem.query
        problem.query = wide[:, 1 : dim + 1]
        check(problem)


def test_elements_beyond_31_bits() -> None:
    """The second column of 8-bit rows is more than 2^31 elements behind the first."""
    problem = Problem(5, 40, 2, F32, I8)
    apart = (1 << 31) + 5
    rows = torch.empty(apart + 40, dtype=I8).as_strided((40, 2), (1, apart))
    rows.copy_(problem.bank.rows)
    problem.bank = problem.bank._replace(rows=rows)
    check(problem)


@pytest.mark.parametrize("select", ["mask", "positive", "keep"])
@pytest.mark.parametrize("limit", [False, True], ids=["", "limit"])
@pytest.mark.parametrize("dim", [24, 300])
def test_selections(select: str, limit: bool, dim: int) -> None:
    check(Problem(20, 200, dim, F32, I8, select=select, limit=limit), FULL, 2)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 300])
@pytest.mark.parametrize("rows", [1, 16, 17, 65])
def test_sizes(rows: int, size: int) -> None:
    check(Problem(rows, size, 24, F32, ids=False), FULL, 1)


@pytest.mark.usefixtures("many_processors")
@pytest.mark.parametrize(("dim", "tile"), [(24, 32), (300, 16)])
def test_many_parts(dim: int, tile: int) -> None:
    check(Problem(3, 160 * tile - 5, dim, F32, I8))


@pytest.mark.parametrize("exponent", [0.0, 1e-3, 500.0])
def test_extreme_exponents_of_8_bit_rows(exponent: float) -> None:
    problem = Problem(9, 150, 64, F32, I8)
    found = bank_lse(problem.query, problem.bank, torch.tensor([exponent]), problem.match, FULL)
    assert_sums(problem, found, expected(problem, (exponent,), FULL), exponent)


@pytest.mark.parametrize("dim", [24, 300])
def test_a_row_far_above_the_others(dim: int) -> None:
    """It comes last, so that the base of all sums so far changes."""
    problem, scales = Problem(9, 333, dim, F32, ids=False), (200.0, 150.0)
    problem.query = problem.bank.rows[324:333].clone()
    found = bank_lse(problem.query, problem.bank, torch.tensor(scales), problem.match, BOTH)
    assert_sums(problem, found, expected(problem, scales, BOTH), scales[0])


def test_empty_slots_of_8_bit_rows_have_no_scale() -> None:
    problem = Problem(9, 70, 24, F32, I8)
    scale = problem.bank.row_scale.clone()
    scale[problem.bank.ids == -1] = torch.nan
    clean = check(problem)
    problem.bank = problem.bank._replace(row_scale=scale)
    found = bank_lse(problem.query, problem.bank, torch.tensor(EXPONENTS), problem.match, BOTH)
    assert all(torch.equal(a, b) for a, b in zip(clean, found, strict=True))


def test_repeats_are_equal_to_the_bit() -> None:
    runs = [check(Problem(20, 200, 300, F32, BF16)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_two_banks_of_other_strides_share_a_launch() -> None:
    one, two = Problem(20, 100, 33, F32, I8), Problem(20, 100, 33, F32, I8, seed=7)
    two.match = two.match._replace(ids=one.match.ids)
    two.bank = two.bank._replace(rows=two.bank.rows.T.contiguous().T)
    before = cuda.report()[0]
    found = bank_lse_pair(
        torch.stack([one.query, two.query]), one.bank, two.bank, torch.tensor(EXPONENTS[:2]),
        Match(one.match.ids, None, "mask"), FULL,
    )  # fmt: skip
    assert cuda.launched(before) == ["fused_exact_full_64", "finish_sums", "finish_sums"]
    for side, problem in enumerate((one, two)):
        truth = expected(problem, EXPONENTS[:2], FULL)
        assert_sums(problem, Sums(*(result[side] for result in found)), truth)


#: Each of them once took launches of its own.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "margin": {"margin": 0.1},
    "positives": {"false_negatives": "positive"},
    "all": {"margin": 0.1, "positive_focus": 2.0, "false_negatives": "positive",
            "detach_weights": False},
}  # fmt: skip


def bank_with_holes(dim: int, kept: torch.dtype) -> MemoryBank:
    bank = MemoryBank(80, dim, dtype=kept)
    bank.enqueue(unit(50, dim, 9), torch.arange(50) % 20)
    return bank


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("query", "kept", "dim"),
    [(F32, F32, 64), (F32, F32, 300), (F32, F32, 512), (BF16, I8, 64), (F32, I8, 129),
     (BF16, BF16, 30)],
    ids=str,
)  # fmt: skip
def test_a_loss_is_two_launches_and_one(
    name: str, query: torch.dtype, kept: torch.dtype, dim: int
) -> None:
    bank, found = bank_with_holes(dim, kept), []
    rows = bank.dense(torch.float64)
    for backend, to in (("cuda", query), ("reference", torch.float64)):
        leaves = [unit(n, dim, n).to(query).to(to).requires_grad_() for n in (19, 19)]
        before = cuda.report()[0]
        loss = functional.weighted_info_nce(
            *leaves, bank if backend == "cuda" else rows, hardness=3.0, backend=backend,
            query_ids=torch.arange(19), bank_ids=None if backend == "cuda" else bank.ids,
            **OPTIONS[name],
        )  # fmt: skip
        forward = cuda.report()[0] - before
        grads: tuple[Tensor, ...] = torch.autograd.grad(loss, leaves)
        backward = cuda.report()[0] - before - forward
        assert (forward, backward) == ((2, 1) if backend == "cuda" else (0, 0))
        found.append((loss.detach(), *grads))
    floor = 5e-6 if query == F32 else 8e-3
    for value, truth in zip(*found, strict=True):
        assert_close(name, value, truth, floor)
