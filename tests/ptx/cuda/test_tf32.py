"""The fused pass of fp32 rows in tf32, against its definitions in fp64."""

from collections.abc import Iterator

import pytest
import torch

from sede_kernels import functional
from sede_kernels.backends.cuda.bank_lse import bank_lse
from sede_kernels.types import Want
from tests.ptx.cuda.oracle import EXPONENTS, Problem, assert_close, assert_sums, expected, unit
from tests.ptx.machine import cuda

F32 = torch.float32
LEAN, FULL = Want((0,)), Want((0,), moments=True, hardest=True)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Torch's setting with which fp32 may be multiplied in tf32."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """To ten bits: tf32 multiplies these without an error."""
    return ((rows.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("dim", [64, 72, 128, 256])
@pytest.mark.parametrize(
    ("want", "exponents"),
    [(LEAN, 1), (Want((1,)), 2), (Want((0, 1)), 2), (FULL, 3),
     (Want((), moments=True, hardest=True), 2)],
    ids=["one", "two", "both", "full", "lse"],
)  # fmt: skip
def test_tf32(tf32: None, dim: int, want: Want, exponents: int) -> None:
    """Of rows that tf32 holds only the weights of the second product are rounded."""
    problem, scales = Problem(70, 333, dim, F32), EXPONENTS[:exponents]
    problem.query = rounded(problem.query)
    problem.bank = problem.bank._replace(rows=rounded(problem.bank.rows))
    before = cuda.report()[0]
    found = bank_lse(problem.query, problem.bank, torch.tensor(scales), problem.match, want)
    assert cuda.report()[0] - before == 2
    truth = expected(problem, scales, want)
    assert_close("acc", found.acc, truth.acc, 2e-4)
    assert_sums(problem, found._replace(acc=truth.acc.float()), truth)


@pytest.mark.parametrize(
    ("dim", "kernel"), [(64, "tf32_full_64"), (264, "exact_full_512"), (63, "exact_full_64")]
)
def test_tf32_rounds_to_the_nearest_and_only_where_it_fits(
    tf32: None, dim: int, kernel: str
) -> None:
    problem = Problem(9, 150, dim, F32)
    before = cuda.report()[0]
    found = bank_lse(problem.query, problem.bank, torch.tensor([20.0]), problem.match, LEAN)
    assert cuda.launched(before) == [f"fused_{kernel}", "finish_sums"]
    truth, rounded_to = expected(problem, (20.0,), LEAN), kernel.startswith("tf32")
    assert_close("lse", found.lse, truth.lse, 4e-4 if rounded_to else 2e-6)
    assert_close("acc", found.acc, truth.acc, 5e-4 if rounded_to else 2e-6)


def test_a_loss_with_every_option_takes_two_launches(tf32: None) -> None:
    query, key, bank = (unit(n, 64, n) for n in (9, 9, 80))
    query.requires_grad_()
    options = {"margin": 0.1, "positive_focus": 2.0, "false_negatives": "positive",
               "detach_weights": False, "hardness": 3.0}  # fmt: skip
    names = {"query_ids": torch.arange(9), "bank_ids": torch.arange(80) % 20}
    found, launches = [], []
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        before = cuda.report()[0]
        loss = functional.weighted_info_nce(query, key, bank, backend="cuda", **names, **options)
        launches.append(cuda.report()[0] - before)
        found.append((loss.detach(), *torch.autograd.grad(loss, query)))
    assert launches == [2, 2]
    for value, truth in zip(*found, strict=True):
        assert_close("tf32", value, truth, 1e-3)
