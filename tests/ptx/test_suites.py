"""The committed record of the interpreter's and the GPU's tests on the machine."""

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from tests.ptx import suites, summary
from tests.ptx.kernels import record

LINES = suites.load(suites.FILE)
TESTS = """import pytest
def test_right(): pass
def test_wrong(): assert False
@pytest.mark.skip
def test_left_out(): pass
"""


def test_every_file_ran_on_both_architectures_and_nothing_failed():
    every = {(file, name) for file in suites.files() for name in suites.ARCHITECTURES}
    assert {(line["file"], line["architecture"]) for line in LINES} == every
    assert [line for line in LINES if suites.unexplained(line) or not line["passed"]] == []


def test_only_a_known_miss_of_its_own_file_is_no_failure():
    (file, (known,)), *_ = suites.MISSED.items()
    assert suites.unexplained({"file": file, "failed": [known, "test_other"]}) == ["test_other"]
    assert suites.unexplained({"file": "tests/interpret/test_x.py", "failed": [known]}) == [known]


def test_a_line_counts_what_passed_and_names_what_failed(tmp_path):
    path = tmp_path / "test_three.py"
    path.write_text(TESTS)
    line = suites.run(str(path), "sm_80")
    assert (line["passed"], line["skipped"], line["failed"]) == (1, 1, ["test_wrong"])
    suites.write(tmp_path / "lines.jsonl", line)
    suites.write(tmp_path / "lines.jsonl", {**line, "passed": 2})
    (kept,) = suites.load(tmp_path / "lines.jsonl")
    assert kept == json.loads(json.dumps({**line, "passed": 2}))


def test_a_file_that_does_not_run_is_no_success(tmp_path):
    path = tmp_path / "test_broken.py"
    path.write_text("raise RuntimeError('broken')")
    assert "test_broken" in str(suites.run(str(path), "sm_80")["failed"])


def test_the_summary_counts_every_line():
    rows = [row.split("|")[1:-1] for row in list(summary.executed())[2:]]
    assert sum(int(row[2]) for row in rows) == len(record.load(record.FOLDER))
    assert {row[0].strip() for row in rows} == set(record.versions(record.load(record.FOLDER)))
    files = [row.split("|")[1:-1] for row in list(summary.others())[2:]]
    assert sum(int(row[1]) for row in files) == len(LINES)
    every = list(summary.mutations())[-1].split("|")[1:-1]
    assert sum(map(int, every[2:])) == int(every[1]) == 360


def test_a_table_takes_the_place_of_the_one_with_its_head():
    page = "# Page\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nText.\n"
    found = summary.replaced(page, ["| a | b |", "| --- | --- |", "| 3 | 4 |", "| 5 | 6 |"])
    assert found == "# Page\n\n| a | b |\n| --- | --- |\n| 3 | 4 |\n| 5 | 6 |\n\nText.\n"
    with pytest.raises(ValueError, match="no table with the head"):
        summary.replaced(page, ["| c |"])
