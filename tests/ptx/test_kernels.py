"""Every row of the launch tables, on two architectures.

Each architecture is a process of its own, for Triton keeps what it compiled for a device; two run
at a time.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.compile_report.cases import cases
from tests.ptx.kernels import record
from tests.ptx.kernels.execute import Outcome, problems
from tests.ptx.kernels.problem import Check, same

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.ptx.kernels", "--json", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def done() -> dict[str, subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(len(ARCHITECTURES)) as pool:
        found = pool.map(lambda name: run("--arch", name), ARCHITECTURES)
        return dict(zip(ARCHITECTURES, found, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_results_are_right_and_no_launch_has_a_fault(done, architecture):
    assert done[architecture].returncode == 0, done[architecture].stderr[-8000:]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_and_every_kernel_ran(done, architecture):
    lines = [json.loads(line) for line in done[architecture].stdout.splitlines()]
    rows = {(entry[0], entry[1]) for line in lines for entry in line["entries"]}
    tables = [path.stem for path in launch.TABLES.glob("*.json")]
    wanted = {
        (t, key) for t in tables for key in launch.table(t) if launch.listed(t, key, architecture)
    }
    assert rows == wanted
    ran = {name for line in lines for name in line["kernels"]}
    assert ran == {case.kernel.fn.__name__ for case in cases()}
    assert len(lines) == len(problems())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_errors_are_not_larger_than_recorded_and_instructions_as_many(done, architecture):
    lines = [json.loads(line) for line in done[architecture].stdout.splitlines()]
    if not record.of_version(lines[0]["triton"]):
        pytest.skip(f"there is no record of Triton {lines[0]['triton']}")
    assert record.differences(lines) == []


def test_a_larger_error_is_told():
    recorded = {"loss": [1e-6, 1e-5]}
    assert record.worse({"loss": [1.4e-6, 1.4e-5]}, recorded) == []
    assert len(record.worse({"loss": [3e-6, 1e-5]}, recorded)) == 1
    assert len(record.worse({"loss": [1e-6, 3e-5]}, recorded)) == 1
    assert len(record.worse({"loss": [float("nan"), float("inf")]}, recorded)) == 2


def test_other_kernels_and_another_number_of_instructions_are_told():
    recorded = {"kernels": {"a": "x", "b": "x"}, "warp_instructions": 459_652}
    assert record.changed({**recorded, "warp_instructions": 459_700}, recorded) == []
    assert len(record.changed({**recorded, "warp_instructions": 587_904}, recorded)) == 1
    assert len(record.changed({**recorded, "kernels": {"a": "x"}}, recorded)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"error": "ValueError"},
        {"texts": ["kernel: [shared-race] line 3"]},
        {"checks": [Check("loss", 2.0, 1.0)]},
        {"checks": [Check("loss", float("nan"), 1.0)]},
        {"checks": [same("mask", torch.tensor([True]), torch.tensor([False]))]},
        {"executed": {"kernel": 0.4}},
    ],
    ids=["raised", "fault", "beyond", "nan", "unequal", "not executed"],
)
def test_what_is_wrong_is_told(change):
    assert Outcome(problems()[0], "sm_90", {}).harmful == []
    assert len(Outcome(problems()[0], "sm_90", {}, **change).harmful) == 1
