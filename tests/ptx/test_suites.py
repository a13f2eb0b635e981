"""The committed record of the interpreter's and the GPU's tests on the machine."""

import json

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from tests.ptx import suites

LINES = suites.load(suites.FILE)
TESTS = """import pytest
def test_right(): pass
def test_wrong(): assert False
@pytest.mark.skip
def test_left_out(): pass
"""


def test_every_file_ran_on_both_architectures_and_nothing_failed():
    wanted = {(file, name) for file in suites.files() for name in suites.ARCHITECTURES}
    assert {(line["file"], line["architecture"]) for line in LINES} == wanted
    assert [line for line in LINES if line["failed"] or not line["passed"]] == []


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
