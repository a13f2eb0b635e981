"""Faults in the compiled CUDA kernels: the committed table, its kinds and a piece made again."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from sede_kernels.backends.cuda.nvcc import nvcc
from tests.ptx.mutation import cuda, score
from tests.ptx.mutation.cuda_faults import KINDS_OF_NVCC

ROOT = Path(__file__).parents[2]
LINES = score.load(cuda.FILE)
SAMPLES = {
    "bar.sync gone": ("bar.sync \t0;", ""),
    "bar.warp.sync gone": ("bar.warp.sync \t-1;", ""),
    "cp.async.wait_group gone": ("cp.async.wait_group 1;", ""),
    "cp.async.wait_group for one less": ("cp.async.wait_group 0;", "cp.async.wait_group 1;"),
    "cp.async.commit_group gone": ("cp.async.commit_group;", ""),
    "and.pred is or.pred": ("and.pred  \t%p3, %p1, %p2;", "or.pred %p3, %p1, %p2;"),
    "branch turned": ("@%p1 bra \t$L__BB0_2;", "@!%p1 bra $L__BB0_2;"),
    "comparison turned": ("setp.lt.s64 \t%p1, %rd1, %rd2;", "setp.ge.s64 %p1, %rd1, %rd2;"),
    "comparison of numbers turned": ("setp.gt.f32 \t%p1, %f1, %f2;", "setp.le.f32 %p1, %f1, %f2;"),
    "choice turned": ("selp.f32 \t%f3, %f1, %f2, %p1;", "selp.f32 %f3, %f2, %f1, %p1;"),
    "global, 4 bytes on": ("ld.global.nc.f32 \t%f1, [%rd4];", "ld.global.nc.f32 %f1, [%rd4+4];"),
    "shared, another offset": ("st.shared.u32 \t[%r4+8], %r1;", "st.shared.u32 [%r4+16], %r1;"),
    "ldmatrix, 16 bytes on": (
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1,%r2,%r3,%r4}, [%r5];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1,%r2,%r3,%r4}, [%r5+16];",
    ),
    "shift by two": ("shl.b32 \t%r1, %r2, 3;", "shl.b32 %r1, %r2, 2;"),
    "difference turned": ("sub.f32 \t%f1, %f2, %f3;", "sub.f32 %f1, %f3, %f2;"),
    "addend swapped with a factor": (
        "fma.rn.f32 \t%f1, %f2, %f3, %f4;", "fma.rn.f32 %f1, %f2, %f4, %f3;",
    ),
    "sum is a difference": ("add.f32 \t%f1, %f2, %f3;", "sub.f32 %f1, %f2, %f3;"),
    "another lane": (
        "shfl.sync.bfly.b32\t%r1|%p1, %r2, 2, 31, -1;",
        "shfl.sync.bfly.b32 %r1|%p1, %r2, 8, 31, -1;",
    ),
    "fragments swapped": (
        "mma.sync.aligned.x {%f1,%f2}, {%r1,%r2,%r3}, {%r5}, {%f1,%f2};",
        "mma.sync.aligned.x {%f1,%f2}, {%r2,%r1,%r3}, {%r5}, {%f1,%f2};",
    ),
    "larger is smaller": ("max.f32 \t%f1, %f2, %f3;", "min.f32 %f1, %f2, %f3;"),
    "product is a sum": ("mul.f32 \t%f1, %f2, %f3;", "add.f32 %f1, %f2, %f3;"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS_OF_NVCC, ids=lambda kind: kind.name)
def test_a_kind_changes_its_line_and_no_other(kind) -> None:
    before, after = SAMPLES[kind.name]
    assert kind.changed(before).split() == after.split()
    assert kind.changed("mov.b32 %r1, %r2;") is None


def test_a_kernel_alone_keeps_what_it_shares_with_others() -> None:
    text = (
        ".target sm_80\n.extern .shared .b8 memory[];\n.visible .entry one(\n)\n{\n\tret;\n}\n"
        ".visible .entry two(\n)\n{\n\tbar.sync 0;\n\tret;\n\n}\n.global .b32 x;\n"
    )
    kept = cuda.alone(text, "one")
    assert "bar.sync" not in kept and "two" not in kept
    assert ".entry one(" in kept and "memory[]" in kept and ".global .b32 x;" in kept


def test_what_noticed_a_fault_is_read_from_the_report() -> None:
    failed = "DriverError: the launch of k failed: "
    assert cuda.why(f"E  {failed}2 faults\nE   [race] k line 3: ... x4") == "race"
    assert cuda.why(f"{failed}it does not end") == "raised"
    assert cuda.why("AssertionError: lse: error 1 above 2e-06") == "result"


def test_the_table_has_160_faults_of_every_group_and_95_in_100_are_noticed() -> None:
    assert len(LINES) == len(cuda.GROUPS) * cuda.EACH == 160
    assert {line["problem"] for line in LINES} == set(cuda.GROUPS)
    assert len({score.key_of(line) for line in LINES}) == len(LINES)
    kinds = {kind.group for kind in KINDS_OF_NVCC}
    assert set(Counter(line["group"] for line in LINES)) == kinds
    real = [line for line in LINES if "equivalent" not in line]
    assert all(line["equivalent"] for line in LINES if "equivalent" in line)
    assert sum(bool(line["noticed"]) for line in real) >= 0.95 * len(real)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    if nvcc() is None:
        pytest.skip("nvcc was not found")
    if cuda.version() != LINES[0]["nvcc"]:
        pytest.skip(f"the table is of nvcc {LINES[0]['nvcc']}, this is {cuda.version()}")
    return cuda.texts()


def test_the_table_is_of_these_kernels(texts: dict[str, str]) -> None:
    """``python -m tests.ptx.mutation.cuda`` makes it again."""
    names = {line["kernel"] for line in LINES}
    today = {name: score.digest(texts[name])[:12] for name in names}
    assert {line["kernel"]: line["text"] for line in LINES} == today


def test_a_piece_of_the_table_comes_out_again(texts: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "mutations.jsonl"
    subprocess.run(
        [sys.executable, "-m", "tests.ptx.mutation.cuda", "--only", "hardest", "--each", "6",
         "--file", str(file)],
        cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": ""}, check=True, capture_output=True,
    )  # fmt: skip
    fresh = {score.key_of(line): line["noticed"] for line in score.load(file)}
    kept = {score.key_of(line): line["noticed"] for line in LINES}
    assert len(fresh) == 6
    assert fresh == {key: kept[key] for key in fresh}
