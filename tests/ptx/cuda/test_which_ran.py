"""After all other tests of this folder: no kernel was left out."""

import pytest

from tests.ptx.machine import cuda


def test_every_kernel_has_run(played: str, request: pytest.FixtureRequest) -> None:
    """Of those in the sources, after the tests before this one."""
    if hasattr(request.config, "workerinput"):
        pytest.skip("other processes ran tests too: pytest -n 0 has one")
    launches, _, ran = cuda.report()
    if launches < 200:
        pytest.skip("the other tests did not run")
    assert set(cuda.kernels(played)) - set(ran) == set()
