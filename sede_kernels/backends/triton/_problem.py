"""The facts of a call that decide its launches: worked out once, and passed on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch, tuning
from sede_kernels.backends.triton._host import (
    describable,
    has_descriptors,
    operand_dtype,
    operand_kind,
    precision,
    triton_dtype,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """The device of a call, and the operands of its matrix products.

    Args:
        device: where it runs.
        architecture: class of that device, a column of the launch tables.
        cores: its multiprocessors.
        dtype: what the matrix units multiply.
        precision: how they multiply fp32.
        kind: row key of the launch tables for such operands; "" without a product.
        describable: whether the copy engine can read every matrix.
    """

    device: torch.device
    architecture: str
    cores: int
    dtype: torch.dtype = torch.float32
    precision: str = ""
    kind: str = ""
    describable: bool = False

    @classmethod
    def on(cls, device: torch.device) -> "Problem":
        """The problem of a call that multiplies no matrices."""
        return cls(device, *launch.device_class(device))

    @classmethod
    def of_sets(cls, sets: Tensor) -> "Problem":
        """The problem of a call whose sets of vectors all have the dtype and device of these."""
        kind = operand_kind(sets.dtype)
        return replace(cls.on(sets.device), dtype=sets.dtype, precision=precision(), kind=kind)

    @classmethod
    def of(cls, query: Tensor, *others: Tensor) -> "Problem":
        """The problem of a call that multiplies ``query`` (..., B, D) by matrices of one dtype."""
        return cls.on(query.device).product(query, *others)

    def product(self, query: Tensor, *others: Tensor) -> "Problem":
        """The same with this product."""
        dtype = operand_dtype(query, others[0])
        return replace(
            self,
            dtype=dtype,
            precision=precision(),
            kind=operand_kind(dtype),
            describable=_describable(query, *others),
        )

    def of_side(self, query: Tensor, other: Tensor) -> "Problem":
        """One of the two products of ``of(queries, other, another)``."""
        return replace(self, describable=_describable(query, other))

    @property
    def descriptors(self) -> bool:
        """Whether the launches read through tensor descriptors."""
        return self.describable and has_descriptors(self.architecture)

    @property
    def operands(self) -> dict[str, Any]:
        """The constants of a kernel that multiplies."""
        return {"OPERAND": triton_dtype(self.dtype), "PRECISION": self.precision}

    def config(self, kernel: str, key: str) -> launch.Config:
        """The default of a row of a launch table."""
        return launch.candidates(kernel, key, self.architecture)[0]

    def choose(
        self,
        kernel: str,
        key: str,
        sizes: tuple[int, ...],
        run: Callable[[launch.Config], Any],
    ) -> launch.Config:
        """What ``tuning.choose`` finds for this device."""
        return tuning.choose(kernel, key, self.device, self.architecture, sizes, run)


def _describable(query: Tensor, *others: Tensor) -> bool:
    flat = query if query.ndim == 2 else query.flatten(0, -2)
    return all(describable(matrix) for matrix in (flat, *others))
