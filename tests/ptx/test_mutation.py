"""Faults in compiled kernels: the committed table, its kinds, and a piece of it made again."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from tests.ptx.mutation import score
from tests.ptx.mutation.faults import GROUPS, KINDS, faults_of

ROOT = Path(__file__).parents[2]
LINES = score.load(score.FILE)
SAMPLES = {
    "bar.sync gone": ("bar.sync \t0;", ""),
    "bar.warp.sync gone": ("bar.warp.sync 0xffffffff;", ""),
    "cp.async.wait_group gone": ("cp.async.wait_group \t0x2;", ""),
    "cp.async.wait_group for one less": ("cp.async.wait_group 2;", "cp.async.wait_group 3;"),
    "cp.async.commit_group gone": ("cp.async.commit_group;", ""),
    "wgmma.wait_group gone": ("wgmma.wait_group.sync.aligned 1;", ""),
    "wgmma.wait_group for one less": (
        "wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;",
    ),
    "mbarrier not waited for": (
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;",
        "setp.eq.u32 complete, 0, 0;",
    ),
    "half of the bytes expected": (
        "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 16384;",
        "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r6], 8192;",
    ),
    "fence.proxy.async gone": ("fence.proxy.async.shared::cta;", ""),
    "wgmma.fence gone": ("wgmma.fence.sync.aligned;", ""),
    "mbarrier.init gone": ("@%p1 mbarrier.init.shared::cta.b64 [%r1], 1;", "@%p1"),
    "and.pred is or.pred": ("and.pred \t%p1, %p2, %p3;", "or.pred %p1, %p2, %p3;"),
    "guard of an access gone": (
        "@%p4 ld.global.b32 { %r1 }, [ %rd1 + 0 ];", "ld.global.b32 { %r1 }, [ %rd1 + 0 ];",
    ),
    "guard of an access turned": (
        "@%p4 st.global.b32 [ %rd1 + 0 ], { %r1 };", "@!%p4 st.global.b32 [ %rd1 + 0 ], { %r1 };",
    ),
    "comparison turned": ("setp.lt.s32 %p1, %r1, %r2;", "setp.ge.s32 %p1, %r1, %r2;"),
    "choice turned": ("selp.f32 %r1, %r2, 0f0, %p1;", "selp.f32 %r1, 0f0, %r2, %p1;"),
    "global, 4 bytes on": (
        "ld.global.b32 { %r1 }, [ %rd1 + 8 ];", "ld.global.b32 { %r1 }, [ %rd1 + 12 ];",
    ),
    "shared, another offset": ("ld.shared.b32 %r1, [%r2];", "ld.shared.b32 %r1, [%r2+16];"),
    "ldmatrix, 16 bytes on": (
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1, %r2, %r3, %r4}, [%r5+16];",
    ),
    "tile of other coordinates": ("cp [%r1], [%rd1, {%r2, %r3}], [%r4];",
                                  "cp [%r1], [%rd1, {%r3, %r2}], [%r4];"),
    "shift by one less": ("shl.b32 %r1, %r2, 7;", "shl.b32 %r1, %r2, 6;"),
    "difference turned": ("sub.f32 %r1, %r2, %r3;", "sub.f32 %r1, %r3, %r2;"),
    "addend swapped with a factor": (
        "fma.rn.f32 %r1, %r2, %r3, %r4;", "fma.rn.f32 %r1, %r2, %r4, %r3;",
    ),
    "quotient turned": ("div.full.f32 %r1, %r2, %r3;", "div.full.f32 %r1, %r3, %r2;"),
    "sum is a difference": ("add.f32 %r1, %r2, %r3;", "sub.f32 %r1, %r2, %r3;"),
    "another lane": (
        "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;", "shfl.sync.bfly.b32 %r1, %r2, 2, 31, -1;",
    ),
    "fragments swapped": (
        "mma.sync.aligned.x { %r1, %r2 }, { %r3, %r4 }, { %r5 };",
        "mma.sync.aligned.x { %r1, %r2 }, { %r4, %r3 }, { %r5 };",
    ),
    "operands of a product swapped": (
        "wgmma.mma_async.x {%r1,%r2}, %rd1, %rd2, %p1, 1, 1;",
        "wgmma.mma_async.x {%r1,%r2}, %rd2, %rd1, %p1, 1, 1;",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_changes_its_line_and_no_other(kind):
    before, after = SAMPLES[kind.name]
    assert kind.changed(before).split() == after.split()
    assert kind.changed("mov.b32 %r1, %r2;") is None


def test_only_executed_lines_get_faults():
    text = "bar.sync 0;\nret;\nbar.sync 0;\n"
    assert [fault.line for fault in faults_of(text, {3})] == [3]
    assert next(faults_of(text, {3})).applied(text).splitlines()[0] == "bar.sync 0;"


def test_the_table_has_360_faults_of_every_group_and_95_in_100_are_noticed():
    places = {(name, a) for name in score.PROBLEMS for a in score.ARCHITECTURES}
    assert {(line["problem"], line["architecture"]) for line in LINES} == places
    assert len(LINES) == len(places) * score.EACH == 360
    assert len({score.key_of(line) for line in LINES}) == 360
    assert set(Counter(line["group"] for line in LINES)) == set(GROUPS)
    real = [line for line in LINES if "equivalent" not in line]
    assert all(line["equivalent"] for line in LINES if "equivalent" in line)
    assert sum(bool(line["noticed"]) for line in real) >= 0.95 * len(real)


def test_a_piece_of_the_table_comes_out_again(tmp_path):
    """The same kernels get the same faults, and the same is noticed; other kernels get others."""
    file = tmp_path / "mutations.jsonl"
    subprocess.run(
        [sys.executable, "-m", "tests.ptx.mutation", "--arch", "sm_80", "--only", "erase 64",
         "--file", str(file)],
        cwd=ROOT, env={**os.environ, "PYTHONSAFEPATH": ""}, check=True, capture_output=True,
    )  # fmt: skip
    fresh = {score.key_of(line): line for line in score.load(file)}
    assert len(fresh) == score.EACH
    assert sum(bool(line["noticed"]) for line in fresh.values()) >= 0.6 * score.EACH
    for line in LINES:
        again = fresh.get(score.key_of(line))
        if again is not None:
            assert bool(again["noticed"]) == bool(line["noticed"]), line
