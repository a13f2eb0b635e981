"""An upper bound of 1 / tau, which the host knows of a temperature that it does not."""

from typing import Any

from torch import Tensor

from sede_kernels.checks import check_number, check_temperature, scalar_parameter


def bounded(
    name: str, temperature: float | Tensor, most: float | None, like: Any
) -> float | Tensor:
    """``max(temperature, 1 / most)``; a tensor gets no gradient where the bound holds it.

    ``like`` is the query as it came.

    Raises:
        TypeError, ValueError: one sentence on what was expected and what came.
    """
    if most is None:
        return temperature
    most = check_number(name, "max_inverse_temperature", most, low=0.0, open_low=True)
    if not isinstance(temperature, Tensor):
        return max(check_temperature(name, temperature), 1.0 / most)
    if not isinstance(like, Tensor):
        return temperature  # which has an error of its own
    found = scalar_parameter(name, "temperature", temperature, like)
    assert isinstance(found, Tensor)
    return found.clamp(min=1.0 / most)
