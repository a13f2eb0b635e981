"""Every entry of every table on all architectures, and the other suites on the machine.

``pytest -m ptx_long tests/ptx`` takes about an hour on two cores.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = pytest.mark.ptx_long
ROOT = Path(__file__).parents[2]


def run(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90"])
def test_every_entry(architecture):
    run("tests.ptx.kernels", "--arch", architecture, "--every")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("folder", ["tests/interpret", "tests/gpu"])
def test_a_suite_of_another_folder(architecture, folder):
    run("tests.ptx.machine", "--arch", architecture, "-m", "pytest", "-q", "-m", "", folder)
