"""Every entry of every table on all architectures, and the other suites on the machine.

``pytest -m ptx_long tests/ptx`` takes hours where nothing is compiled yet. With
``SEDE_PTX_RESUME=1`` a test of another suite that passed does not run again while nothing changed:
call it until it ends.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from tests.ptx import suites
from tests.ptx.kernels import record

pytestmark = pytest.mark.ptx_long
ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


@pytest.mark.parametrize("architecture", record.ARCHITECTURES)
def test_every_entry(architecture):
    printed = run("tests.ptx.kernels", "--json", "--arch", architecture, "--every").splitlines()
    assert record.differences([json.loads(line) for line in printed]) == []


@pytest.mark.parametrize("architecture", suites.ARCHITECTURES)
@pytest.mark.parametrize("file", suites.files())
def test_a_file_of_another_suite(architecture, file):
    kept = suites.outcomes(file, architecture) if os.environ.get("SEDE_PTX_RESUME") else None
    assert suites.unexplained(suites.run(file, architecture, kept)) == []
