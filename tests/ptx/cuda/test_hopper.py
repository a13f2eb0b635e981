"""The pass by the instructions of compute capability 9.0, against its definition in fp64.

Where another architecture is played, these tests run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sede_kernels
from sede_kernels.backends.cuda import _native
from sede_kernels.backends.cuda.bank_lse import bank_lse, bank_lse_pair, sums
from sede_kernels.types import Bank, Match, Want
from tests.ptx.cuda.oracle import EXPONENTS, Problem, assert_close, assert_sums, expected
from tests.ptx.machine import cuda

BF16, F16 = torch.bfloat16, torch.float16
ONE, TWO, LSE = Want((0,)), Want((0,)), Want(())
FULL, STATS = Want((0,), moments=True, hardest=True), Want((), moments=True, hardest=True)
LEAN = {1: "one", 2: "two"}
NAMES = {torch.bfloat16: "bf16", torch.float16: "f16"}
ROOT = Path(__file__).parents[3]
#: Rows that fill the ring of tiles, go round it and end a column into a tile.
LONG = {64: 10 * 64 + 1, 128: 8 * 64 + 1, 256: 6 * 64 + 1}


@pytest.fixture
def hopper(played: str) -> None:
    if played != "sm_90":
        pytest.skip("on sm_90, in a process of its own")


def check(problem: Problem, want: Want, exponents: int, kernel: str | None = None) -> None:
    """Right, in two launches, the first of which is the kernel."""
    scales = EXPONENTS[:exponents]
    before = cuda.report()[0]
    found = bank_lse(problem.query, problem.bank, torch.tensor(scales), problem.match, want)
    if kernel is None:
        with_rows, without = ("full", "stats") if want.moments else (LEAN[exponents], "lse")
        kind = with_rows if want.accumulate else without
        padded = next(width for width in (64, 128, 256) if problem.dim <= width)
        kernel = f"hopper_{NAMES[problem.dtype]}_{kind}_{padded}"
    assert cuda.launched(before) == [kernel, "finish_sums"]
    assert_sums(problem, found, expected(problem, scales, want))


def test_on_another_architecture_they_pass_in_a_process_of_their_own(played: str) -> None:
    if played == "sm_90":
        pytest.skip("this is that process")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "ptx", "-p", "no:cacheprovider", __file__,
         __file__.replace(".py", "_faults.py")],
        cwd=ROOT, env={**os.environ, "SEDE_PTX_ARCH": "sm_90"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert " passed, 1 skipped" in done.stdout, done.stdout[-800:]


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(
    ("want", "exponents"), [(ONE, 1), (TWO, 2), (LSE, 1), (LSE, 2)], ids=["one", "two", "l1", "l2"]
)
def test_sums(dtype: torch.dtype, dim: int, want: Want, exponents: int) -> None:
    """Empty slots hold NaN; ids are of the query's own in an eighth of the slots."""
    check(Problem(130, LONG[dim], dim, dtype), want, exponents)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize(("want", "exponents"), [(FULL, 3), (STATS, 2)], ids=["full", "stats"])
def test_statistics(dtype: torch.dtype, dim: int, want: Want, exponents: int) -> None:
    """Moments and the hardest row; the first of two equal ones."""
    problem = Problem(130, LONG[dim], dim, dtype, limit=dim == 64)
    for of_slots in (problem.bank.rows, problem.bank.ids):
        of_slots[200:300] = of_slots[:100].clone()
    wide = want.accumulate and dim == 256
    check(problem, want, exponents, f"fused_{NAMES[dtype]}_full_256" if wide else None)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("size", [1, 63, 64, 65])
@pytest.mark.parametrize("rows", [1, 129])
def test_small_banks_and_batches(size: int, rows: int) -> None:
    check(Problem(rows, size, 64, BF16, ids=False), ONE, 1)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dim", [8, 120, 200])
def test_columns_beyond_the_rows_are_zeros(dim: int) -> None:
    check(Problem(5, 200, dim, BF16), ONE, 1)


@pytest.mark.usefixtures("hopper")
def test_a_bank_in_parts() -> None:
    """Of four multiprocessors each has a part, the last of fewer tiles."""
    check(Problem(9, 34 * 64 + 1, 64, BF16), TWO, 2)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("exponents", [1, 2])
def test_the_fixed_maximum(exponents: int) -> None:
    """Opposite rows too: their weights are e^{-40} of those that the maximum stands for."""
    problem = Problem(9, 333, 64, BF16)
    problem.query[2] = -problem.bank.rows[problem.bank.ids != -1][0]
    problem.query[3] = problem.bank.rows[problem.bank.ids != -1][1]
    check(problem, Want((0,), unit_length=True), exponents)


@pytest.mark.usefixtures("hopper")
def test_a_maximum_that_grows_along_the_bank() -> None:
    problem = Problem(9, 700, 64, BF16)
    growing = torch.linspace(0.1, 1, 700)[:, None]
    problem.bank = problem.bank._replace(rows=(problem.bank.rows.float() * growing).to(BF16))
    problem.query[1] = problem.bank.rows[problem.bank.ids != -1][-1]
    check(problem, ONE, 1)


@pytest.mark.usefixtures("hopper")
def test_ids_that_differ_in_their_high_words_only() -> None:
    problem = Problem(9, 200, 64, BF16)
    ids = problem.bank.ids
    problem.bank = problem.bank._replace(ids=torch.where(ids % 2 == 0, ids + (1 << 32), ids))
    check(problem, ONE, 1)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("select", ["keep", "mask"])
def test_nothing_counts(select: str) -> None:
    problem = Problem(4, 70, 64, BF16, select=select)
    problem.bank = Bank(problem.bank.rows, None, torch.full((70,), -1))
    check(problem, ONE, 1)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("select", ["keep", "mask"])
def test_similarities_above_a_limit_do_not_count(select: str) -> None:
    check(Problem(70, 200, 64, BF16, limit=True, select=select), TWO, 2)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("ids", [False, True], ids=["", "ids"])
def test_the_keys_of_a_batch(ids: bool) -> None:
    """A row's own key never counts, an id of -1 is unknown and counts."""
    keys = Problem(150, 150, 64, BF16, ids=False)
    own = torch.arange(150) % 40 - 1 if ids else None
    match = Match(own, None, "mask")
    before = cuda.report()[0]
    found = sums(
        keys.query, (Bank(keys.bank.rows, None, own),), torch.tensor([14.3]), match, LSE,
        in_batch=True,
    )  # fmt: skip
    assert cuda.launched(before) == ["hopper_bf16_lse_64", "finish_sums"]
    valid = ~torch.eye(150, dtype=torch.bool)
    if own is not None:
        valid &= (own[:, None] != own[None]) | (own == -1)[None]
    s = (14.3 * keys.similarity()).masked_fill(~valid, -torch.inf)
    assert_close("lse", found.lse[0], s.logsumexp(1), 2e-6)
    assert torch.equal(found.negatives, valid.sum(1))


@pytest.mark.usefixtures("hopper")
def test_two_banks_in_one_launch() -> None:
    one, two = (Problem(20, 200, 128, BF16, seed=seed) for seed in (0, 7))
    two.match = two.match._replace(ids=one.match.ids)
    before = cuda.report()[0]
    found = bank_lse_pair(
        torch.stack([one.query, two.query]), one.bank, two.bank, torch.tensor(EXPONENTS[:2]),
        one.match, TWO,
    )  # fmt: skip
    assert cuda.launched(before) == ["hopper_bf16_two_128", "finish_sums", "finish_sums"]
    for side, problem in enumerate((one, two)):
        truth = expected(problem, EXPONENTS[:2], TWO)
        assert_sums(problem, type(found)(*(result[side] for result in found)), truth)


@pytest.mark.usefixtures("hopper")
def test_a_nan_stays_in_its_row() -> None:
    problem = Problem(70, 200, 64, BF16)
    query = problem.query.clone()
    query[3] = torch.nan
    arguments = (problem.bank, torch.tensor([14.3]), problem.match, ONE)
    clean, found = bank_lse(problem.query, *arguments), bank_lse(query, *arguments)
    others = torch.arange(70) != 3
    assert found.lse[0, 3].isnan() and found.acc[0, 3].isnan().all()
    assert torch.equal(found.lse[:, others], clean.lse[:, others])
    assert torch.equal(found.acc[:, others], clean.acc[:, others])


@pytest.mark.usefixtures("hopper")
def test_own_rows_count_where_all_are_kept() -> None:
    check(Problem(9, 200, 64, BF16, select="keep"), ONE, 1)


@pytest.mark.usefixtures("hopper")
def test_what_it_does_not_serve_takes_the_other_path() -> None:
    rows = Problem(9, 200, 64, BF16)
    strided = torch.empty(200, 65, dtype=BF16)[:, :64].copy_(rows.bank.rows)
    for change, kernel in (
        (Problem(9, 200, 320, BF16), "fused_bf16_one_512"),
        (Problem(9, 200, 512, BF16), "fused_bf16_one_512"),
        (Problem(9, 200, 64, BF16, select="positive"), "fused_bf16_one_64"),
    ):
        check(change, ONE, 1, kernel)
    rows.bank = rows.bank._replace(rows=strided)
    before = cuda.report()[0]
    found = bank_lse(rows.query, rows.bank, torch.tensor([14.3]), rows.match, ONE)
    assert cuda.launched(before)[0] == "fused_exact_full_64"
    assert_sums(rows, found, expected(rows, (14.3,), ONE))


@pytest.mark.usefixtures("hopper")
def test_a_loss_and_its_gradient() -> None:
    """Through the public function: two launches forward and one backward."""
    problem = Problem(20, 200, 64, BF16)
    rows = problem.bank.rows.nan_to_num(0.0)
    options = {
        "temperature": 0.07, "hardness": 5.0, "query_ids": problem.match.ids,
        "bank_ids": problem.bank.ids,
    }  # fmt: skip
    query = problem.query.clone().requires_grad_()
    key = problem.query.roll(1, 0)
    before = cuda.report()[0]
    loss = sede_kernels.weighted_info_nce(query, key, rows, backend="cuda", **options)
    assert cuda.launched(before) == ["hopper_bf16_two_64", "info_nce_finish"]
    loss.backward()
    assert len(cuda.launched(before)) == 3
    truth = query.detach().double().requires_grad_()
    exact = sede_kernels.weighted_info_nce(
        truth, key.double(), rows.double(), backend="reference", **options
    )
    exact.backward()
    assert abs(loss.item() - exact.item()) <= 4e-3 * exact.item()
    error = (query.grad.double() - truth.grad).norm() / truth.grad.norm()
    assert float(error) <= 1e-2


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("dim", "stats"), [(64, False), (64, True), (256, False)], ids=["64", "stats", "256"]
)
def test_a_margin_is_found_in_the_pass(dim: int, stats: bool) -> None:
    """Two banks and the batch, more queries than a block has, keys of another stride."""
    found = []
    for backend, to in (("cuda", BF16), ("reference", torch.float64)):
        leaves = [Problem(150, 1, dim, BF16, seed=n).query.to(to) for n in range(2)]
        keys = [torch.cat([leaf.roll(1, 0), leaf], 1)[:, :dim] for leaf in reversed(leaves)]
        banks = [Problem(1, 200, dim, BF16, ids=False, seed=n).bank.rows.to(to) for n in (5, 6)]
        for leaf in leaves:
            leaf.requires_grad_()
        before = cuda.report()[0]
        loss = sede_kernels.symmetric_info_nce(
            *leaves, *keys, *banks, margin=0.05, ids=torch.arange(150) % 9, hardness=2.0,
            in_batch_negatives=True, return_stats=stats, backend=backend,
        )  # fmt: skip
        kinds = ("stats" if stats else "lse", "full" if stats else "two")
        if backend == "cuda":
            passes = cuda.launched(before)
            assert sorted(passes) == sorted(
                [*(f"hopper_bf16_{kind}_{dim}" for kind in kinds), "info_nce_finish"]
            )
        total, extra = loss if stats else (loss, ())
        grads = torch.autograd.grad(total, leaves)
        found.append((total.detach(), *grads, *(value for side in extra for value in side)))
    for value, truth in zip(*found, strict=True):
        if value.is_floating_point():
            assert_close("margin", value, truth, 8e-3)
        else:
            assert torch.equal(value, truth)


@pytest.mark.usefixtures("hopper")
def test_repeats_are_equal_to_the_bit() -> None:
    problem = Problem(130, LONG[64], 64, BF16)
    runs = [
        bank_lse(problem.query, problem.bank, torch.tensor([14.3]), problem.match, ONE)
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.usefixtures("hopper")
def test_it_can_be_left_out() -> None:
    module = _native.module()
    module.set_hopper(False)
    try:
        check(Problem(9, 70, 64, BF16), ONE, 1, "fused_bf16_one_64")
    finally:
        module.set_hopper(True)
