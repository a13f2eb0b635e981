"""The committed record of executed kernels is of the kernels and the tables as they are."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
import triton

from tests.ptx.kernels import record
from tests.ptx.machine.driver import TOLERATED

LINES = record.load(record.FOLDER)
VERSIONS = record.versions(LINES)
AGAIN = (
    "run python -m tests.ptx.kernels --every --write records/ptx for sm_80, sm_89 and sm_90, "
    "and make triton-matrix for other versions of Triton"
)


@pytest.mark.parametrize("version", VERSIONS)
def test_digests_are_those_of_today(version):
    lines = [line for line in LINES if line["triton"] == version]
    stale = [record.key_of(line) for line in lines if record.digest(line) != line["digest"]]
    assert stale == [], AGAIN


@pytest.mark.parametrize("version", VERSIONS)
def test_every_entry_is_there_and_nothing_else(version):
    assert record.missing(LINES, version) == [], AGAIN
    assert record.surplus(LINES, version) == [], AGAIN


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_version_ran_the_kernels_that_the_newest_runs(version):
    assert record.elsewhere(LINES, version) == [], AGAIN


def test_the_installed_version_has_a_record():
    assert triton.__version__ in VERSIONS, AGAIN


@pytest.mark.parametrize("line", LINES, ids=record.key_of)
def test_nothing_in_it_is_wrong(line):
    assert line["worst_share_of_budget"] <= 1.0
    assert set(line["faults"]) <= TOLERATED
    assert line["warp_instructions"] > 0 and line["errors"]


def test_another_kernel_or_entry_is_another_digest():
    line = LINES[0]
    for name, value in (("triton", "0.0"), ("architecture", "sm_1"), ("problem", "x")):
        assert record.digest({**line, name: value}) != line["digest"]
    assert record.digest({**line, "entries": [["bank_lse", "x", 1, 1, 1, 1]]}) != line["digest"]
    other = next(each for each in LINES if each["kernels"] != line["kernels"])
    assert record.digest({**line, "kernels": other["kernels"]}) != line["digest"]


def test_what_is_stale_or_surplus_is_told(tmp_path):
    mine = [line for line in LINES if line["triton"] == triton.__version__]
    stale = {**mine[0], "digest": "0"}
    gone = {**mine[0], "problem": "of no row any more"}
    record.write(tmp_path, [*mine[1:], stale, gone])
    assert record.current(tmp_path) == {record.key_of(line) for line in mine[1:]}
    record.prune(tmp_path)
    assert {record.key_of(x) for x in record.load(tmp_path)} == {record.key_of(x) for x in mine}


def test_an_older_version_has_the_first_entries_on_fewer_architectures():
    older, newest = {**LINES[0], "triton": "3.1.0"}, LINES[-1]["triton"]
    lines = [line for line in LINES if line["triton"] == newest]
    missing = record.missing([older, *lines], "3.1.0")
    assert missing and not [key for key in missing if "sm_89" in key]
    assert len(missing) < len([line for line in lines if line["architecture"] != "sm_89"])


def test_a_line_of_kernels_that_the_newest_does_not_run_is_told(tmp_path):
    newest = [line for line in LINES if line["triton"] == VERSIONS[-1]]
    older = [{**line, "triton": "3.1.0"} for line in newest[:2]]
    assert record.elsewhere([*newest, *older], "3.1.0") == []
    older[0]["kernels"] = {**older[0]["kernels"], "_gone_kernel": "gone"}
    assert record.elsewhere([*newest, *older], "3.1.0") == [record.key_of(older[0])]
