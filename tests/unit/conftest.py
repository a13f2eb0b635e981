"""The instruction sets of the native module, for tests of its kernels."""

from collections.abc import Iterator

import pytest

from sede_kernels.backends.cpu import _native

ISAS = _native.module().supported_isas() if _native.unavailable_reason() is None else []


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each instruction set that this processor has."""
    module = _native.module()
    before = module.isa()
    module.select_isa(request.param)
    yield str(request.param)
    module.select_isa(before)
