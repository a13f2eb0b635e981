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
        learn_hardness: make the hardness a parameter ((1,)). Below 0 it counts as 0, and each
            training call first puts it back there.
    """

    options: dict[str, Any]
    max_inverse_temperature: float | None = None  # set by ``set_cap``

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

    def set_cap(self, cap: Any) -> None:
        """Keep a learnable 1 / tau at most at ``cap``; None for no cap.

        Raises:
            ValueError: no number > 0, or below the first 1 / tau.
        """
        if cap is None:
            return
        name, first = type(self).__name__, self.fixed_temperature
        known = isinstance(cap, int | float) and not isinstance(cap, bool)
        number = float(cap) if known else math.nan
        if not (math.isfinite(number) and number > 0.0):
            raise ValueError(
                f"{name}: max_inverse_temperature must be None or a number > 0, got {cap!r}."
            )
        if self.log_inverse_temperature is None:
            return
        if number * first < 1.0 - 1e-6:
            raise ValueError(
                f"{name}: temperature {first:g} is below 1 / max_inverse_temperature = "
                f"{1.0 / number:g}; raise max_inverse_temperature, or pass None for no cap."
            )
        self.max_inverse_temperature = number

    def cap_temperature(self) -> None:
        """Put a learnable 1 / tau back under its cap; the losses do so in training mode."""
        cap = self.max_inverse_temperature
        if self.log_inverse_temperature is not None and cap is not None and self.training:
            with torch.no_grad():
                # The data: FSDP hands out views that autograd does not let be changed in place.
                self.log_inverse_temperature.data.clamp_(max=math.log(cap))

    def floor_hardness(self) -> None:
        """Put a learnable hardness below 0 back to 0, where it has a gradient and can leave it.

        The losses do so in training mode. Below 0 it would count as 0 and never learn again.
        """
        if isinstance(self.hardness, Tensor) and self.training:
            with torch.no_grad():
                self.hardness.data.clamp_(min=0.0)

    @property
    def bound(self) -> float | None:
        """``max_inverse_temperature`` for the function: above the cap by more than a rounding.

        A parameter at its cap keeps its gradient so, and can leave it.
        """
        cap = self.max_inverse_temperature
        return None if cap is None else cap * (1.0 + 1e-5)

    def parameter_group(self) -> dict[str, Any]:
        """The learnable scalars as a group of an optimizer, without weight decay.

        Decay would pull log(1 / tau) towards a temperature of 1.

        Example:
            >>> from sede_kernels import WeightedInfoNCE
            >>> loss = WeightedInfoNCE(learn_temperature=True)
            >>> model = nn.Linear(2, 2)
            >>> groups = [{"params": model.parameters()}, loss.parameter_group()]
            >>> torch.optim.AdamW(groups, weight_decay=0.1).param_groups[1]["weight_decay"]
            0.0
        """
        return {"params": list(self.parameters()), "weight_decay": 0.0}

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
