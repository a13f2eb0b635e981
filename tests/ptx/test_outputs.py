"""Results of a GPU beside the machine's: here the machine plays both."""

import os

import numpy as np
import pytest
import torch

from sede_kernels.backends import cuda as cuda_backend
from sede_kernels.backends import triton as triton_backend
from tests.ptx import outputs
from tests.ptx.kernels import record
from tests.ptx.machine import cuda, driver, gpu

ARCHITECTURE = os.environ.get("SEDE_PTX_ARCH", "sm_80")
PROBLEMS = ("enqueue int8", "enqueue_fragments bfloat16")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file of a run on a played GPU, of few problems."""
    if cuda.nvcc() is None:
        pytest.skip("nvcc was not found")
    every = outputs.listed
    monkeypatch.setattr(
        outputs, "listed", lambda *of: [each for each in every(*of) if each[0].name in PROBLEMS]
    )
    path = tmp_path / "outputs.npz"
    driver.install(ARCHITECTURE)
    cuda.install(ARCHITECTURE)
    with gpu.played(ARCHITECTURE):
        assert outputs.on_gpu(path, "triton", 0, 1, gpu.DEVICE) == 0
    yield path
    driver.state.strict = True
    cuda_backend.emulate(None)
    triton_backend.emulate(None)


def test_equal_results_are_equal_and_a_changed_one_shows(kept):
    lines = outputs.compare(kept)
    assert {name.split("/")[1] for name, *_ in lines} == set(PROBLEMS)
    assert {tuple(numbers) for _, *numbers in lines} == {(1.0, 0.0, 0.0)}
    with np.load(kept) as found:
        changed = dict(found.items())
    name = "triton/enqueue_fragments bfloat16/rows"
    changed[name][7] += 0.5
    np.savez_compressed(kept, **changed)
    apart = {line[0]: line for line in outputs.compare(kept, "fragments")}
    assert apart[name][1] < 1.0 and apart[name][3] > 0.1
    assert all(line[2] == 0.0 for key, line in apart.items() if key != name)


def test_a_result_that_is_not_finite_on_one_side_is_far_off():
    here = np.array([1.0, 2.0, 3.0])
    assert outputs.difference(here, here) == (1.0, 0.0, 0.0)
    assert outputs.difference(np.array([1.0, np.nan, 3.0]), here)[1] == np.inf
    assert outputs.difference(here[:2], here)[1] == np.inf
    nothing = np.array([0.0, 0.0, 0.0])
    assert outputs.difference(nothing, nothing) == (1.0, 0.0, 0.0)


def test_the_first_problems_launch_every_kernel():
    lines = [line for line in record.load(record.FOLDER) if line["architecture"] == "sm_90"]
    first = {k for line in lines if line["problem"] in outputs.FIRST for k in line["kernels"]}
    assert len(first) >= 20 and first == {k for line in lines for k in line["kernels"]}
    assert set(outputs.FIRST) <= {line["problem"] for line in lines}


def test_a_sample_is_spread_and_ends_with_the_norm():
    values = torch.arange(10_000.0)
    found = outputs.sample(values)
    assert found.size == 4097 and found[1] == 2.0 and found[-1] == values.double().norm()
