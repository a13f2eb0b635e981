"""Older versions of Triton: their rows of the launch tables, and the committed report of each."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from sede_kernels.backends import triton as backend
from sede_kernels.backends.triton import interpreting, launch, version_pair

if interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
from sede_kernels.backends.triton import bank_lse, gram
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.compile_report import cases, report
from sede_kernels.backends.triton.pair_launches import Pairs, PairSide

RECORDS = Path(__file__).parents[2] / "records" / "compiler"
VERSIONS = sorted(path.name.removeprefix("triton-") for path in RECORDS.glob("triton-*"))
#: What older versions are reported of: tiles that spilled with one of them.
PASSES = "bank_lse"


@pytest.fixture
def play(monkeypatch):
    """Makes the package believe in another Triton."""

    def other(version):
        for module in (backend, launch):
            monkeypatch.setattr(module, "triton_version", lambda: version_pair(version))

    return other


def test_the_versions_that_torch_pins_are_there():
    assert VERSIONS == ["3.6.0", "3.7.1", "3.8.0"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_runs_untuned_is_clean_in_the_report_of_a_version(play, version):
    play(version)
    wanted = [case for case in cases.served(cases.cases()) if PASSES in case.key]
    folder = RECORDS / f"triton-{version}"
    rows = report.load(folder)
    assert report.problems(wanted, rows) == [], "run make triton-matrix"
    assert set(rows) == {case.key for case in wanted}
    assert json.loads((folder / report.JSON_NAME).read_text())["triton"] == version
    classes = {case.architecture for case in wanted}
    assert ("sm_100" in classes) == (version_pair(version) >= (3, 8))


def test_one_entry_of_a_row_is_reported_and_no_twin(play):
    play("3.9.0")
    names = [case.key for case in cases.served(cases.cases())]
    first = "x".join(map(str, launch.table("bank_lse")["128/lean"]["sm_90"][0][:2]))
    of_row = [name for name in names if name.startswith("bank_lse 128/lean") and "sm_90" in name]
    assert len(of_row) == 1 and f" {first} " in of_row[0]
    assert not [name for name in names if "fp16" in name]


def test_an_older_triton_takes_its_own_rows(monkeypatch, tmp_path):
    for name, rows in (
        ("op.json", {"a": {"sm_80": [[1, 1, 1, 1]], "sm_90": [[2, 2, 2, 2]]}, "b": {"sm_80": []}}),
        ("below-3.9/op.json", {"a": {"sm_80": [[3, 3, 3, 3]]}}),
        ("below-3.7/op.json", {"a": {"sm_80": [[4, 4, 4, 4]], "sm_90": []}}),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows))
    monkeypatch.setattr(launch, "TABLES", tmp_path)
    launch._table.cache_clear()
    try:
        rows = {version: launch.table("op", version)["a"] for version in ("3.9", "3.8.1", "3.6")}
    finally:
        launch._table.cache_clear()
    assert rows["3.9"] == {"sm_80": [[1, 1, 1, 1]], "sm_90": [[2, 2, 2, 2]]}
    assert rows["3.8.1"] == {"sm_80": [[3, 3, 3, 3]], "sm_90": [[2, 2, 2, 2]]}
    assert rows["3.6"] == {"sm_80": [[4, 4, 4, 4]]}


@pytest.mark.parametrize(
    "folder", sorted(launch.TABLES.glob("below-*")), ids=lambda path: path.name
)
def test_what_is_changed_is_there(folder):
    for path in folder.glob("*.json"):
        newest = json.loads((launch.TABLES / path.name).read_text())
        for key, row in json.loads(path.read_text()).items():
            assert set(row) <= set(newest[key]), f"{path} {key}"
            for architecture, entries in row.items():
                assert entries != newest[key][architecture], f"{path} {key} {architecture}"


@pytest.mark.parametrize("version", ["3.9.0", *VERSIONS])
@pytest.mark.parametrize("architecture", launch.CAPABILITY)
def test_g_goes_over_one_stage_where_a_second_one_has_no_fence(version, architecture):
    found = gram.gram_options(architecture, version_pair(version))
    unfenced = (version, architecture) == ("3.6.0", "sm_90")
    assert found == {"num_warps": 8, "num_stages": 1 if unfenced else 2}


@pytest.mark.parametrize("version", ["3.9.0", *VERSIONS])
@pytest.mark.parametrize("name", ["bank_lse", "bank_lse_pair"])
def test_rows_of_512_columns_have_a_tile_for_every_variant_or_for_none(version, name):
    """Whether they go in one pass is asked of one variant."""
    rows = [set(row) for key, row in launch.table(name, version).items() if key[:4] == "512/"]
    assert len(rows) == 4 and rows.count(rows[0]) == 4
    assert ("sm_90" in rows[0]) == (version == "3.9.0")


@pytest.mark.parametrize("version,whole", [("3.9.0", True), ("3.8.0", False), ("3.6.0", False)])
def test_wide_rows_go_in_chunks_where_no_tile_is_clean(play, version, whole):
    play(version)
    query = torch.empty(64, 512, dtype=torch.bfloat16, device="meta")
    assert bank_lse.one_pass(query, query.dtype, 1, "sm_90", scaled=False) == whole
    assert bank_lse.one_pass(query[:, :256], query.dtype, 1, "sm_90", scaled=False)


@pytest.mark.parametrize(
    "version,architecture,queries,same",
    [
        ("3.9.0", "sm_90", 40, True),
        ("3.8.0", "sm_90", 40, True),
        ("3.7.1", "sm_90", 40, False),
        ("3.6.0", "sm_90", 64, False),
        ("3.7.1", "sm_90", 20, True),
        ("3.7.1", "sm_80", 40, True),
    ],
)
def test_the_gradient_of_long_half_sets_is_fp32_where_no_tile_is_right(
    play, version, architecture, queries, same
):
    play(version)
    sets = [torch.randn(2, count, 8).bfloat16() for count in (queries, 36)]
    query, source = (PairSide(each, None, 1, 0) for each in sets)
    problem = Problem(sets[0].device, architecture, 4, torch.bfloat16, "tf32", "half")
    call = Pairs(problem, query, source, 2, 1, None, (0.0, 0.0, 0, 0, 0), {})
    served = call.served("cross_attention_pairs_backward")
    assert (served is call) == same and call.served("cross_attention_pairs") is call
    assert served.problem.kind == ("half" if same else "ieee")
    for side, given in zip((served.query, served.source), sets, strict=True):
        assert side.sets.dtype == (torch.bfloat16 if same else torch.float32)
        assert torch.equal(side.sets, given.to(side.sets.dtype))
