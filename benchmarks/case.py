"""What is measured: a case (op, mode, dtype, sizes), its inputs, and the variants of the op."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

FORWARD, BOTH = "forward", "forward+backward"
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}

#: Tensors and facts of one drawn input set, by name.
Inputs = dict[str, Any]
#: What a variant returns: results and gradients by name, to be compared with fp64.
Outputs = dict[str, Tensor]
#: One timed call: the number picks the input set, so that caches stay cold.
Run = Callable[[int], Outputs]


@dataclass(frozen=True)
class Case:
    """One row of the grid.

    Attributes:
        op: key of ``registry.OPERATIONS``.
        mode: ``forward`` (no gradient) or ``forward+backward``.
        dtype: of the bank or the inputs, key of ``DTYPES``.
        sizes: the op's sizes by name, in the order in which tables show them.
        only: names of the variants to run; empty for all.
    """

    op: str
    mode: str
    dtype: str
    sizes: Mapping[str, int]
    only: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> int:
        sizes = self.__dict__.get("sizes", {})
        if name in sizes:
            return int(sizes[name])
        raise AttributeError(name)

    @property
    def title(self) -> str:
        """``info_nce forward+backward fp32 B=128 K=65,536 D=256``."""
        sizes = " ".join(f"{name}={value:,}" for name, value in self.sizes.items())
        return f"{self.op} {self.mode} {self.dtype} {sizes}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the bank or the inputs."""
        return DTYPES[self.dtype]

    @property
    def query_dtype(self) -> torch.dtype:
        """The dtype of the queries: an int8 bank is asked with fp32 ones."""
        return torch.float32 if self.dtype == "int8" else DTYPES[self.dtype]

    @property
    def backward(self) -> bool:
        """Whether gradients are part of the case."""
        return self.mode == BOTH


@dataclass(frozen=True)
class Work:
    """What the case has to do at least, as formulas and numbers.

    Attributes:
        flops_formula: in the op's sizes, or why there is none.
        flops: its value, or None.
        bytes_formula: each input read once, each output written once.
        moved: its value in bytes, or None.
    """

    flops_formula: str
    flops: float | None
    bytes_formula: str
    moved: float | None


def _present(case: Case, device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class Variant:
    """One implementation of an op.

    Attributes:
        name: as records and figures show it.
        kind: ``ours``, ``eager`` (the yardstick of the error budget), ``peer``, or ``twin``: ours
            by another way to the same result, which is no competitor.
        build: (case, input sets) -> a call; all preparation happens here, none of it is timed.
        absent: (case, device) -> why it cannot run there, or None.
        truth: (case, inputs) -> fp64 outputs, where the peer's function differs from the op's.
    """

    name: str
    kind: str
    build: Callable[[Case, list[Inputs]], Run]
    absent: Callable[[Case, torch.device], str | None] = field(default=_present)
    truth: Callable[[Case, Inputs], Outputs] | None = None


class Operation(ABC):
    """An op: how its inputs are drawn, what is right, what it costs, who computes it."""

    def most_sets(self, device: torch.device) -> int:
        """Input sets that are drawn where fewer do not fill the cache."""
        return 32

    def absent(self, case: Case, device: torch.device) -> str | None:
        """Why the op as a whole cannot be measured here, or None."""
        return None

    @abstractmethod
    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """A fresh random input set; never zeros."""

    @abstractmethod
    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """fp64 results of the inputs as they are stored (rounded to the case's dtype)."""

    @abstractmethod
    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """The same by plain PyTorch in the case's dtype; its error sets the budget."""

    def finish(self, case: Case, outputs: Outputs) -> Outputs:
        """Bring a variant's outputs into the form of the truth; outside the clock."""
        return outputs

    @abstractmethod
    def work(self, case: Case) -> Work:
        """Least arithmetic and traffic."""

    @abstractmethod
    def variants(self, case: Case) -> list[Variant]:
        """All implementations, present or not; ours first."""


def of(generator: torch.Generator) -> dict[str, Any]:
    """Keywords of a draw: with the generator, on its device."""
    return {"generator": generator, "device": generator.device}


def with_gradient(
    case: Case, compute: Callable[[], Tensor], wanted: Mapping[str, Tensor], result: str
) -> Outputs:
    """Run ``compute`` as the mode says; the gradient of the sum of its result, by name.

    Args:
        case: its mode decides.
        compute: returns the result.
        wanted: name -> leaf tensor whose gradient belongs to the outputs.
        result: name of the result itself.
    """
    if not case.backward:
        with torch.no_grad():
            return {result: compute()}
    value = compute()
    scalar = value if value.ndim == 0 else value.sum()
    grads = torch.autograd.grad(scalar, list(wanted.values()))
    return {result: value.detach(), **dict(zip(wanted, grads, strict=True))}
