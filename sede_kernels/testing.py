"""The error budget of the kernels, for this project's tests and for a user's own checks."""

import torch
from torch import Tensor

#: Relative error floor per dtype of the inputs: where the yardstick happens to be (nearly) exact, a
#: kernel may still differ by so many roundings. One table, never loosened by a switch.
FLOORS = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 4e-3,
    torch.float16: 1e-3,
    torch.int8: 2e-6,
}


def relative_error(result: Tensor, truth: Tensor) -> float:
    """||result - truth|| / ||truth|| in fp64; the plain norm of the difference for a zero truth.

    Infinities must agree in place and sign, NaN never passes.

    Args:
        result: any shape and float dtype.
        truth: same shape, the fp64 reference.

    Returns:
        The relative error, inf where a non-finite value disagrees.

    Example:
        >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        0.0
    """
    a, b = result.detach().double().cpu(), truth.detach().double().cpu()
    if a.shape != b.shape:
        raise ValueError(
            f"relative_error: result must be {tuple(b.shape)} like truth, got {tuple(a.shape)}."
        )
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(a[~finite], b[~finite]):
        return float("inf")
    difference, size = float((a - b)[finite].norm()), float(b[finite].norm())
    return difference / size if size > 0 else difference


def assert_within_budget(
    result: Tensor, truth: Tensor, eager: Tensor | None = None, dtype: torch.dtype | None = None
) -> None:
    """Raise unless the error is at most twice that of same-dtype eager PyTorch, plus a floor.

    Args:
        result: what the kernel computed.
        truth: the fp64 reference.
        eager: the same quantity by plain PyTorch in the kernel's dtype; None counts as exact.
        dtype: dtype of the inputs, which picks the floor; by default that of ``result``.

    Raises:
        AssertionError: with both errors and the budget.
    """
    error = relative_error(result, truth)
    yardstick = 0.0 if eager is None else relative_error(eager, truth)
    budget = 2 * yardstick + FLOORS[dtype or result.dtype]
    if not error <= budget:
        raise AssertionError(
            f"error against fp64 is {error:.3e}, the budget is {budget:.3e} "
            f"(2 x eager's {yardstick:.3e} + floor)."
        )
