"""The Triton backend on a GPU; skipped without one. benchmarks/gpu_suite.sh runs these tests.

``python -m tests.ptx.machine --arch sm_90 -m pytest -m '' tests/gpu`` runs them, with small sizes,
on CPU tensors and the compiled code; what needs a driver (streams, graphs) is skipped there.
"""

import os

import problems
import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    off = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not (torch.cuda.is_available() or problems.EMULATED):
                item.add_marker(off)


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Blocks that the allocator hands out again hold NaN, so what is not written shows."""
    if not torch.cuda.is_available() or problems.EMULATED:
        yield
        return
    torch.cuda.empty_cache()
    blocks = [
        torch.full((size,), torch.nan, device="cuda") for size in [1 << n for n in range(6, 25)]
    ]
    del blocks
    yield


@pytest.fixture(autouse=True)
def _answering_device():
    """A fault on the GPU stays with its process, and all tests after it would fail.

    Under xdist the process ends and another one takes the tests that are left.
    """
    yield
    if not torch.cuda.is_available() or problems.EMULATED:
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(70)
        pytest.exit(f"the GPU is lost to this process: {error}", returncode=70)


@pytest.fixture(autouse=True)
def _single_precision():
    """fp32 products are fp32 unless a test says otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
