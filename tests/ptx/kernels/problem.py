"""What a problem is: a call of the public functions that takes one row of a launch table."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends.triton import launch
from sede_kernels.testing import FLOORS, relative_error
from tests.conftest import TF32_FLOOR


@dataclass(frozen=True)
class Check:
    """How far a result is from its fp64 truth.

    Attributes:
        name: of the result.
        error: relative, of the whole.
        budget: what it may be: twice eager's error and the floor.
        peak: the largest error of an element, relative to the root mean square of the truth.
    """

    name: str
    error: float
    budget: float
    peak: float = 0.0

    @property
    def share(self) -> float:
        """Error in budgets."""
        return self.error / self.budget


@dataclass(frozen=True)
class Problem:
    """A call and the rows of the launch tables that it takes.

    Attributes:
        name: unique.
        rows: (table, key) of each.
        call: runs it, given the entry of every row, and yields its checks.
        cores: multiprocessors that the host sees; with one a block has all tiles of the bank.
        every_pass: no compiled kernel of the call may leave most of its code unexecuted, as the
            pass for parts without an empty slot does where there are none.
    """

    name: str
    rows: tuple[tuple[str, str], ...]
    call: Callable[[dict[str, launch.Config]], Iterator[Check]]
    cores: int = 1
    every_pass: bool = True


#: Where the checks of a run that keeps results leave what was found, by the names of the checks.
results: dict[str, Tensor] | None = None


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random rows of unit length."""
    return F.normalize(torch.randn(*shape), dim=-1).to(dtype)


def ids(count: int, low: int = 0, high: int = 50) -> Tensor:
    """Random ids; -1 among them where ``low`` is."""
    return torch.randint(low, high, (count,))


def tiles(config: launch.Config) -> int:
    """Columns that fill every stage of a pipeline, go on, and end one column into a tile."""
    return config.cols * (config.stages + 2) + 1


def compared(
    names: tuple[str, ...],
    found: tuple[Tensor, ...],
    truth: tuple[Tensor, ...],
    eager: tuple[Tensor, ...],
    floor: float,
) -> Iterator[Check]:
    """A check each; ``floor`` as in ``sede_kernels.testing``."""
    for name, got, want, plain in zip(names, found, truth, eager, strict=True):
        _keep(name, got)
        budget = 2 * relative_error(plain, want) + floor
        yield Check(name, relative_error(got, want), budget, _peak(got, want))


def _keep(name: str, got: Tensor) -> None:
    if results is not None:
        results[name] = got.detach()


def _peak(got: Tensor, want: Tensor) -> float:
    difference = (got.double() - want.double())[want.isfinite()]
    size = want.double()[want.isfinite()].square().mean().sqrt()
    return float(difference.abs().max() / size) if difference.numel() else 0.0


def same(name: str, got: Tensor, want: Tensor) -> Check:
    """A check that must come out equal."""
    _keep(name, got)
    return Check(name, 0.0 if torch.equal(got, want) else float("inf"), 1.0)


def floor_of(kind: str, dtype: torch.dtype) -> float:
    """The floor of a kind of operands."""
    return TF32_FLOOR if kind == "tf32" else FLOORS[dtype]
