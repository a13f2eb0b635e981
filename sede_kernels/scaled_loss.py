"""A module with a temperature and a hardness, each a number or learnable."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sede_kernels import first_version
from sede_kernels.checks import check_hardness, check_temperature


def _learnable(value: float) -> nn.Parameter:
    """One number as (1,): sharding wrappers refuse parameters without a dimension."""
    return nn.Parameter(torch.tensor([float(value)], dtype=torch.float32))


class ScaledLoss(nn.Module):
    """What the modules of the weighted InfoNCE share.

    Args:
        temperature: tau > 0; kept as 1 / tau in log space when learnable, so it stays positive.
        hardness: beta >= 0.
        learn_temperature: make the temperature a parameter (``log_inverse_temperature``, (1,)).
        learn_hardness: make the hardness a parameter ((1,), clamped at 0 from below).
    """

    options: dict[str, Any]

    def __init__(
        self,
        temperature: float,
        hardness: float,
        learn_temperature: bool,
        learn_hardness: bool,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_temperature(name, temperature)
        check_hardness(name, hardness)
        self.log_inverse_temperature: nn.Parameter | None = None
        if learn_temperature:
            self.log_inverse_temperature = _learnable(-math.log(temperature))
        self.fixed_temperature = float(temperature)
        self.first_hardness = float(hardness)
        self.hardness = _learnable(hardness) if learn_hardness else float(hardness)

    @property
    def temperature(self) -> float | Tensor:
        """Tau: a number, or a tensor with a gradient when learnable."""
        if self.log_inverse_temperature is None:
            return self.fixed_temperature
        return torch.exp(-self.log_inverse_temperature).reshape(())

    @property
    def hardness_at_least_zero(self) -> float | Tensor:
        """Beta: a number, or a tensor with a gradient when learnable."""
        if isinstance(self.hardness, Tensor):
            return self.hardness.clamp(min=0.0).reshape(())
        return self.hardness

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The learnable scalars as they were at construction; also the way off the meta device."""
        if self.log_inverse_temperature is not None:
            self.log_inverse_temperature.fill_(-math.log(self.fixed_temperature))
        if isinstance(self.hardness, Tensor):
            self.hardness.fill_(self.first_hardness)

    def _apply(self, fn: Any, recurse: bool = True) -> "ScaledLoss":
        meta = any(parameter.is_meta for parameter in self.parameters(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if meta:
            self.reset_parameters()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Version 0.1.0 kept its scalars without a dimension.
        for name in self._parameters:
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.ndim == 0:
                state_dict[prefix + name] = value.reshape(1)
                first_version.expect_state_without_dimension(self._parameters[name])
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The options that differ from nothing."""
        shown = {"temperature": self.fixed_temperature, "hardness": self.hardness, **self.options}
        return ", ".join(f"{key}={value}" for key, value in shown.items())
