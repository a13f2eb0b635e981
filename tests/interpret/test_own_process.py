"""Runs the files of this folder with TRITON_INTERPRET=1, two processes at a time.

The long ones wait for ``pytest -m interpret_long tests/interpret``.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
FOLDER = Path(__file__).parent
FILES = sorted(path for path in FOLDER.glob("test_*.py") if path != Path(__file__))
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


def _run(path: Path) -> str | None:
    """None, or the end of what the file's tests printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"{path.name}:\n{(done.stdout + done.stderr)[-4000:]}"


def _check(files: list[Path]) -> None:
    assert files
    with ThreadPoolExecutor(2) as pool:
        failures = [failure for failure in pool.map(_run, files) if failure]
    assert not failures, "\n\n".join(failures)


def test_short_files_pass_on_the_interpreter():
    _check([path for path in FILES if path.name not in LONG])


@pytest.mark.interpret_long
def test_long_files_pass_on_the_interpreter():
    files = [path for path in FILES if path.name in LONG]
    assert len(files) == len(LONG)
    _check(files)
