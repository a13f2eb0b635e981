"""What ships is what the committed report has seen, and nothing of it spills or does not fit.

The oracle is the compiler itself: the committed table holds its answers for every configuration,
and a few are compiled again here. The tables are those of the newest Triton, as the report is.
"""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
import triton

from sede_kernels.backends.triton import interpreting, launch, version_pair

if interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
from sede_kernels.backends.triton import bank_lse
from sede_kernels.backends.triton.compile_report import cases, report
from sede_kernels.backends.triton.compile_report.resources import compile_case, faults

RECORDS = Path(__file__).parents[2] / "records" / "compiler"
NEWEST = json.loads((RECORDS / report.JSON_NAME).read_text())["triton"]
ROWS = report.load(RECORDS)


def _of_the_report(patch):
    patch.setattr(launch, "triton_version", lambda: version_pair(NEWEST))


with pytest.MonkeyPatch.context() as patch:
    _of_the_report(patch)
    CASES = list(cases.cases())


@pytest.fixture(autouse=True)
def _newest(monkeypatch):
    _of_the_report(monkeypatch)


def test_every_shipped_configuration_is_clean_in_the_report():
    assert report.problems(CASES, ROWS) == []


def test_the_report_holds_nothing_else_and_the_page_shows_it():
    assert set(ROWS) == {case.key for case in CASES}
    assert len(CASES) == len({case.key for case in CASES})
    page = (RECORDS / report.TABLE_NAME).read_text()
    assert page.endswith(report.table(CASES, ROWS))


def test_every_table_serves_every_architecture():
    for path in launch.TABLES.glob("*.json"):
        for key, row in launch.table(path.stem).items():
            # Rows of 512 columns go in chunks where no tile fits.
            optional = {"sm_100"} if key.startswith("512/") else set()
            assert set(row) | optional == set(launch.CAPABILITY), f"{path.stem} {key}"
            assert all(row.values()), f"{path.stem} {key}"


@pytest.mark.parametrize(
    "architecture,key,rows,joint",
    [
        ("sm_90", "256/lean", 4096, True),
        ("sm_90", "512/lean", 4096, True),
        ("sm_100", "256/lean", 64, True),
        ("sm_100", "256/lean", 65, False),  # 64 rows a tile instead of 128
        ("sm_100", "512/lean", 1, False),  # no tile
    ],
)
def test_two_banks_in_one_launch_where_that_reads_no_more(architecture, key, rows, joint):
    assert bank_lse._worth_one_launch(key, rows, architecture) == joint


@pytest.mark.parametrize(
    "architecture,rows,dim,scaled,whole",
    [
        ("sm_90", 4096, 512, False, True),
        ("sm_90", 4096, 513, False, False),
        ("sm_90", 1, 512, True, False),
        ("sm_90", 1, 256, True, True),
        ("sm_100", 1, 512, False, False),  # no tile
        ("sm_80", 64, 512, False, True),
        ("sm_80", 65, 512, False, False),  # three tiles of 32 rows, while B reads the bank twice
        ("sm_80", 65, 256, False, True),
    ],
)
def test_wide_rows_go_in_one_pass_where_that_reads_the_bank_no_more(
    architecture, rows, dim, scaled, whole
):
    query = torch.empty(rows, dim, dtype=torch.bfloat16, device="meta")
    found = bank_lse.one_pass(query, query.dtype, 1, architecture, scaled=scaled)
    assert found == whole


def test_both_products_of_a_chunk_take_the_same_tiles():
    weights, rows = launch.table("chunk_weights"), launch.table("chunk_rows")
    for key, by_architecture in rows.items():
        kind = "ieee" if key == "ieee/int8" else key
        for architecture, entries in by_architecture.items():
            columns = {entry[1] for entry in entries + weights[kind][architecture]}
            assert len(columns) == 1, f"{key} {architecture}"


@pytest.mark.parametrize(
    "change",
    [
        {"spills": 1},
        {"registers": 256},
        {"shared": 232_449},
        {"hgmma": 0},
        {"utmaldg": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_worse_row_is_a_fault(change):
    case = next(case for case in CASES if case.key.startswith("bank_lse") and case.copies)
    case = next(c for c in CASES if c.name == case.name and c.architecture == "sm_90")
    assert len(report.problems([case], {case.key: {**ROWS[case.key], **change}})) == 1


def test_a_changed_kernel_or_an_unseen_configuration_is_a_fault():
    case = CASES[0]
    stale = {case.key: {**ROWS[case.key], "digest": "0"}}
    assert report.problems([case], stale) == [f"{case.key}: changed since the report"]
    assert report.problems([case], {}) == [f"{case.key}: the report has not seen it"]


SAMPLE = (
    "bank_lse 256/lean", "chunk_weights half", "chunk_rows half", "erase 1024 prob", "enqueue int8",
    "cross_attention half/32 3x36", "cross_attention_backward ieee/64",
    "cross_attention_pairs half/64x64",
)  # fmt: skip


@pytest.mark.skipif(triton.__version__ != NEWEST, reason="the report is of another Triton")
@pytest.mark.parametrize("start", SAMPLE)
def test_compiled_again_it_is_still_clean(start):
    case = next(c for c in CASES if c.name.startswith(start) and c.architecture == "sm_90")
    assert faults(case, compile_case(case)) == []
