"""Runs the files of this folder with TRITON_INTERPRET=1, by two processes.

The long ones wait for ``pytest -m interpret_long tests/interpret``.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
FOLDER = Path(__file__).parent
FILES = sorted(path for path in FOLDER.glob("test_*.py") if path != Path(__file__))
SHARED = ["-n", "2", "--dist", "worksteal"] if find_spec("xdist") else []
LONG = {
    f"test_{name}.py"
    for name in (
        "bank_lse_pair",
        "cancelling_contexts",
        "cross_attention",
        "cross_attention_pairs",
        "hardest",
        "public",
        "two_sums",
    )
}


def _check(files: list[Path]) -> None:
    """One pytest for all of them, with two processes that share the tests."""
    assert files
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SHARED, *map(str, files)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


@pytest.mark.slow
def test_short_files_pass_on_the_interpreter():
    _check([path for path in FILES if path.name not in LONG])


@pytest.mark.interpret_long
def test_long_files_pass_on_the_interpreter():
    files = [path for path in FILES if path.name in LONG]
    assert len(files) == len(LONG)
    _check(files)
