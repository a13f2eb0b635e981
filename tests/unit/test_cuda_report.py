"""The committed compile report of the CUDA kernels: of these sources, and without a spill."""

import json
from pathlib import Path

import pytest

from sede_kernels.backends.cuda import compile_report, loops

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "records" / "compiler" / "cuda.json"


@pytest.fixture(scope="module")
def report() -> dict:
    if not RECORD.is_file() or not (ROOT / "csrc" / "cuda").is_dir():
        pytest.skip("no clone of the sources")
    return json.loads(RECORD.read_text(encoding="utf-8"))


def test_it_is_of_these_sources(report, monkeypatch):
    monkeypatch.setattr(compile_report, "SOURCES", ROOT / "csrc" / "cuda")
    assert report["digest"] == compile_report.digest()


def test_no_kernel_spills_on_any_architecture(report):
    rows = report["kernels"]
    assert {row["architecture"] for row in rows} == set(compile_report.ARCHITECTURES)
    assert [row for row in rows if row["spilled"] or row["stl"]] == []


def test_the_whole_build_was_short_and_its_module_small(report):
    build = json.loads((RECORD.parent / "cuda_build.json").read_text(encoding="utf-8"))
    assert build["jobs"] <= 2 and build["capabilities"].count(";") == 6
    assert 0 < build["seconds"] <= 600
    assert 0 < build["module_bytes"] < 8e6


def test_fused_kernels_use_the_tensor_cores_and_asynchronous_copies(report):
    every = [row for row in report["kernels"] if row["kernel"].startswith("fused_")]
    fused = [row for row in every if not row["kernel"].startswith("fused_exact_")]
    assert len(fused) == 38 * len(compile_report.ARCHITECTURES)
    assert all(row["hmma"] and row["ldsm"] and row["ldgsts"] for row in fused)
    exact = [row for row in every if row not in fused]
    assert len(exact) == 8 * len(compile_report.ARCHITECTURES)
    assert not any(row["hmma"] for row in exact)


def test_what_the_assembler_says_is_read():
    said = """ptxas info    : Function properties for one
    24 bytes stack frame, 28 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 96 bytes smem
"""
    expected = {"spilled": 64, "stack": 24, "registers": 255, "static_shared": 96}
    assert compile_report.resources(said) == {"one": expected}
    code = """ Function : one
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R2, RZ ;
        /*0020*/              @!P0 STL [R1], R4 ;
"""
    assert compile_report.instructions(code) == {"one": {"HMMA": 1, "STL": 1}}


def test_the_pass_of_capability_9_0_has_its_products_and_copies(report):
    rows = [row for row in report["kernels"] if row["kernel"].startswith("hopper_")]
    assert {row["architecture"] for row in rows} == {"sm_90a"}
    assert len(rows) == 28
    for row in rows:
        dim = int(row["kernel"].rsplit("_", 1)[1])
        scores = dim // 16
        # The first S and the last O stand outside of the loop.
        sums_rows = "_lse_" not in row["kernel"] and "_stats_" not in row["kernel"]
        products = 2 * scores + 2 * 4 if sums_rows else scores
        assert row["hgmma"] == products
        assert row["utmaldg"] == 3 * dim // 64  # two groups of queries, and a tile
        assert row["registers"] * 384 <= 65536


@pytest.mark.parametrize(("kernel", "most"), [("one_128", 410), ("two_128", 530), ("two_256", 570)])
def test_a_tile_of_it_takes_no_more_instructions_than_it_did(report, kernel, most):
    (row,) = [row for row in report["kernels"] if row["kernel"] == f"hopper_bf16_{kernel}"]
    assert 0 < row["maximum"] < 60
    assert row["loop"] - row["rare"] <= most


def test_blocks_that_are_seldom_executed_are_told_apart():
    code = """
        /*0010*/                   IADD3 R0, R0, 0x1 ;
        /*0020*/                   HGMMA.64x64x16.F32 R2, gdesc[UR4], R2 ;
        /*0030*/              @!P0 BRA 0x60 ;
        /*0040*/                   SEL R1, R2, R3, P1 ;
        /*0050*/                   ISETP.EQ.AND P1, PT, R1, R2, PT ;
        /*0060*/               @P1 BRA 0x80 ;
        /*0070*/                   FMNMX R1, R2, R3, !PT ;
        /*0080*/               @P2 BRA 0xa0 ;
        /*0090*/                   FMUL R1, R2, R3 ;
        /*00a0*/              @!P3 BRA 0x20 ;
        /*00b0*/                   BRA 0xb0 ;
    """
    assert loops.loop_of(code) == (9, 3, 1)
    assert loops.loop_of("/*0010*/ BRA 0x10 ;") == (0, 0, 0)
