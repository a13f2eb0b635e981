"""The ``cuda`` backend on the PTX machine: compiled by nvcc, launched by its own host code.

``SEDE_PTX_ARCH`` names the architecture, sm_80 unless it is said. Without nvcc these tests are
skipped.
"""

import os
from collections.abc import Iterator

import pytest

from tests.ptx.machine import cuda


@pytest.fixture(scope="session", autouse=True)
def played() -> Iterator[str]:
    """The architecture that is played while these tests run."""
    if cuda.nvcc() is None:
        pytest.skip("nvcc was not found")
    from sede_kernels.backends import cuda as backend

    architecture = os.environ.get("SEDE_PTX_ARCH", "sm_80")
    cuda.install(architecture)
    assert backend.unavailable_reason() is None
    yield architecture
    backend.emulate(None)


@pytest.fixture
def many_processors(played: str) -> Iterator[None]:
    """A bank of 160 tiles then has 40 parts in the kernels of every GPU."""
    from sede_kernels.backends.cuda import _native

    _native.module().set_hopper(False)
    cuda.configure(played, cores=40)
    yield
    cuda.configure(played)
    _native.module().set_hopper(True)
