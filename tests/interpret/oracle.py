"""What the interpreter tests share: random problems, fp64 references, tolerances."""

import torch
from torch import Tensor

from sede_kernels.backends.triton import emulated
from sede_kernels.testing import assert_within_budget, relative_error
from tests.conftest import TF32_FLOOR

#: Floors for |error| against fp64, relative to the largest reference value; a half type rounds
#: the weights of the second product, hence its own floor for gradients.
FLOORS = {
    torch.float32: 2e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}


def matrix(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, dim, generator=generator)
    return torch.nn.functional.normalize(values, dim=1).to(dtype)


def ids(rows: int, seed: int, low: int = 0, high: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (rows,), generator=generator)


def assert_close(name: str, value: Tensor, truth: Tensor, floor: float) -> None:
    """|value - truth| <= floor max(1, max |truth|), infinities and NaN in the same places."""
    value, truth = value.double(), truth.double()
    assert value.shape == truth.shape, f"{name}: shape {value.shape}, expected {truth.shape}"
    assert torch.equal(value.isnan(), truth.isnan()), f"{name}: NaN in other places"
    assert torch.equal(value.isinf(), truth.isinf()), f"{name}: infinities in other places"
    finite = truth.isfinite()
    if not finite.any():
        return
    scale = max(1.0, float(truth[finite].abs().max()))
    error = float((value - truth)[finite].abs().max())
    assert error <= floor * scale, f"{name}: error {error:.3g} above {floor * scale:.3g}"


def assert_product_within_budget(
    result: Tensor, truth: Tensor, eager: Tensor, dtype: torch.dtype
) -> None:
    """``assert_within_budget``; the floor of tf32 where compiled code multiplies tf32 operands."""
    allowed = torch.get_float32_matmul_precision() != "highest"
    if dtype == torch.float32 and allowed and emulated():
        error, budget = relative_error(result, truth), TF32_FLOOR
        assert error <= budget, (
            f"error against fp64 is {error:.3e}, the budget of tf32 {budget:.3e}"
        )
    else:
        assert_within_budget(result, truth, eager, dtype)
