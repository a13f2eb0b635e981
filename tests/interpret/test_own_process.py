"""Runs every file of this folder with TRITON_INTERPRET=1, two processes at a time."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
FOLDER = Path(__file__).parent
FILES = sorted(path for path in FOLDER.glob("test_*.py") if path != Path(__file__))


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


def test_all_files_pass_on_the_interpreter():
    assert FILES
    with ThreadPoolExecutor(2) as pool:
        failures = [failure for failure in pool.map(_run, FILES) if failure]
    assert not failures, "\n\n".join(failures)
