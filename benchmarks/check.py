"""The green check every number needs: error against fp64 within the budget of eager PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sede_kernels.testing import FLOORS, relative_error

from .case import Case, Inputs, Operation, Outputs, Variant


@dataclass(frozen=True)
class Verdict:
    """Errors of one variant.

    Attributes:
        errors: relative error of each output, ||out - truth|| / ||truth||.
        budgets: what each may be: 2 x eager's error plus the floor of the dtype.
    """

    errors: dict[str, float]
    budgets: dict[str, float]

    @property
    def passed(self) -> bool:
        """Every output within its budget (a NaN never is)."""
        return all(error <= self.budgets[name] for name, error in self.errors.items())

    @property
    def worst(self) -> float:
        """The largest error."""
        return max(self.errors.values())


def _error(result: Tensor, truth: Tensor) -> float:
    # As sede_kernels.testing, without its copy to the host: a GPU result may be gigabytes.
    if truth.device.type == "cpu" or truth.numel() < 1 << 20:
        return relative_error(result, truth)
    wide = result.detach().double()
    if not bool(torch.isfinite(wide).all()):
        return float("inf")
    size = float(truth.norm())
    return float((wide - truth).norm()) / (size if size > 0 else 1.0)


class Checker:
    """Truth and budget of one case on one input set.

    Args:
        operation: the op.
        case: its case.
        inputs: the set that variants are checked on.
    """

    def __init__(self, operation: Operation, case: Case, inputs: Inputs) -> None:
        self.operation, self.case, self.inputs = operation, case, inputs
        self.truth = _wide(operation.truth(case, inputs))
        self.budgets = self._budgets(self.truth, operation.yardstick(case, inputs))

    def _budgets(self, truth: Mapping[str, Tensor], eager: Outputs) -> dict[str, float]:
        floor = FLOORS[self.case.query_dtype]
        return {name: 2 * _error(eager[name], truth[name]) + floor for name in truth}

    def verdict(self, variant: Variant, outputs: Outputs) -> Verdict:
        """Compare what the variant returned for the inputs.

        A variant may leave outputs out (a peer without a gradient for one side), never add any.
        """
        truth = self.truth
        if variant.truth is not None:
            truth = _wide(variant.truth(self.case, self.inputs))
        results = self.operation.finish(self.case, outputs)
        unknown = results.keys() - truth.keys()
        if unknown or not results:
            raise ValueError(f"{variant.name} returned {sorted(results)}, not {sorted(truth)}.")
        errors = {name: _error(value, truth[name]) for name, value in results.items()}
        return Verdict(errors, {name: self.budgets[name] for name in errors})


def _wide(outputs: Outputs) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in outputs.items()}
