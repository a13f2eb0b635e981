"""A file of tests in pieces: each goes on where the last one ended, and the line is of all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from tests.ptx import pieces, suites

TESTS = """import os, pathlib, pytest
def note(name): pathlib.Path(__file__).with_name(name).open("a").write("x")
def test_first(): note("first")
@pytest.mark.skip
def test_left_out(): pass
@pytest.mark.parametrize("part", ["a", "b"])
def test_wrong(part):
    note("wrong")
    assert part == "b"
def test_dies(): os._exit(3) if pathlib.Path(__file__).with_name("deadly").exists() else None
def test_last(): note("last")
"""


def run(file: str, architecture: str, kept: Path, seconds: float) -> tuple[int, str]:
    """A piece without the machine, which takes seconds to start."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", Path(file).parent,
         "-p", "no:cacheprovider", "-p", "tests.ptx.pieces", file],
        cwd=suites.ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONSAFEPATH": "",
             pieces.OUTCOMES: str(kept), pieces.SECONDS: str(seconds)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def piece(folder: Path, seconds: float = 0.0) -> int:
    return run(str(folder / "test_some.py"), "sm_80", folder / "outcomes", seconds)[0]


def outcomes(folder: Path) -> dict[str, str]:
    collected, ended = pieces.load(folder / "outcomes")
    assert len(collected) == 6 and set(ended) <= set(collected)
    return {test.partition("::")[2]: line["outcome"] for test, line in ended.items()}


def test_what_ended_well_does_not_run_again_and_what_failed_does(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "deadly").touch()
    assert piece(tmp_path, seconds=1e-9) == pytest.ExitCode.INTERRUPTED
    assert outcomes(tmp_path) == {"test_first": "passed"}
    assert piece(tmp_path) == 3
    ended = outcomes(tmp_path)
    assert ended == {"test_first": "passed", "test_left_out": "skipped",
                     "test_wrong[a]": "failed", "test_wrong[b]": "passed"}  # fmt: skip
    (tmp_path / "deadly").unlink()
    assert piece(tmp_path) == pytest.ExitCode.TESTS_FAILED
    assert outcomes(tmp_path) == {**ended, "test_dies": "passed", "test_last": "passed"}
    assert not pieces.complete(tmp_path / "outcomes")
    runs = {name: len((tmp_path / name).read_text()) for name in ("first", "wrong", "last")}
    assert runs == {"first": 1, "wrong": 3, "last": 1}


def test_a_line_cut_off_and_an_empty_file_are_not_complete(tmp_path):
    kept = tmp_path / "outcomes"
    assert pieces.load(kept) == ([], {}) and not pieces.complete(kept)
    ended = {"test": "a", "outcome": "passed", "seconds": 0.1}
    kept.write_text(
        json.dumps({"collected": ["a", "b"]}) + "\n" + json.dumps(ended) + '\n{"test": "b'
    )
    assert pieces.load(kept) == (["a", "b"], {"a": ended}) and not pieces.complete(kept)


def test_pieces_make_the_line_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, "_test", run)
    file, kept = tmp_path / "test_some.py", tmp_path / "outcomes"
    file.write_text(TESTS)
    first = suites.run(str(file), "sm_80", kept, seconds=1e-9)
    assert (first["passed"], first["failed"], first["left"]) == (1, [], 5)
    (tmp_path / "deadly").touch()
    cut = suites.run(str(file), "sm_80", kept)
    assert cut["failed"][0] == "test_wrong[a]" and len(cut["failed"]) == 2 and "left" not in cut
    file.write_text(TESTS.replace('part == "b"', "part"))
    (tmp_path / "deadly").unlink()
    line = suites.run(str(file), "sm_80", kept)
    assert (line["passed"], line["skipped"], line["failed"]) == (5, 1, []) and "left" not in line
    assert suites.run(str(file), "sm_80", kept) == line
    assert len((tmp_path / "last").read_text()) == 1


def test_another_kernel_file_or_architecture_starts_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("SEDE_PTX_CACHE", str(tmp_path))
    first, second = (file for file in suites.files() if "/gpu/" in file)
    kept = {suites.outcomes(file, name) for file in (first, second) for name in ("sm_80", "sm_90")}
    assert len(kept) == 4 and suites.outcomes(first, "sm_80") in kept
    monkeypatch.setattr(suites.triton, "__version__", "0.0")
    assert suites.outcomes(first, "sm_80") not in kept
