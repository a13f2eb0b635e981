"""What the launches of a loss share and no pass computes: exponents and limits.

Numbers that the host knows are written to the device once for each stream and kept. While a CUDA
graph is captured nothing that is kept may be used: the graph would outlive it.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends._tickets import stream_of
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.kernels.info_nce_start import _info_nce_start_kernel
from sede_kernels.backends.triton.kernels.info_nce_table import EXTRA_AT
from sede_kernels.types import InfoNCERule, Scalars, Side

_NUMBERS = 8


class Start(NamedTuple):
    """What the passes of a loss start from."""

    numbers: Tensor  # (8,), see _info_nce_start_kernel
    exponents: Tensor  # (E,) of the passes
    similarity: Tensor | None  # (S, B) s+, where a margin needs it
    limit: Tensor | None  # (S, B) largest similarity that counts

    @property
    def further(self) -> Tensor:
        """(2,) the exponents of further positives."""
        return self.numbers[EXTRA_AT.value : EXTRA_AT.value + 2]

    @classmethod
    def of(
        cls, problem: Problem, sides: list[Side], scalars: Scalars, rule: InfoNCERule
    ) -> "Start":
        """No launch where all numbers are known and kept; else one."""
        device = problem.device
        learned = scalars.temperature_at is not None or (
            rule.weighted and scalars.hardness_at is not None
        )
        hardness = scalars.hardness if rule.weighted else 0.0
        inverse = 1.0 / scalars.temperature
        stream = stream_of(device)
        given = [side.limit for side in sides if side.limit is not None]
        limit = None
        if given:
            limit = given[0].unsqueeze(0) if len(sides) == 1 else torch.stack(given)
        if not (learned or rule.margin or stream is None):
            numbers = _kept(inverse, hardness, str(device), stream)
            return cls(numbers, numbers[: rule.exponents], None, limit)
        numbers = torch.empty((_NUMBERS,), dtype=torch.float32, device=device)
        similarity = None
        if rule.margin:
            shape = (len(sides), sides[0].query.shape[0])
            similarity, limit = (
                torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2)
            )
        found = (numbers, similarity, limit if rule.margin else None)
        _start(problem, sides, scalars, rule, inverse, hardness, found)
        return cls(numbers, numbers[: rule.exponents], similarity, limit)


def _start(
    problem: Problem,
    sides: list[Side],
    scalars: Scalars,
    rule: InfoNCERule,
    inverse: float,
    hardness: float,
    out: tuple[Tensor, Tensor | None, Tensor | None],
) -> None:
    B, D = sides[0].query.shape
    pair = len(sides) == 2
    rows = [matrix for side in sides for matrix in (side.query, side.positive)]
    config = problem.config("info_nce", "whole")
    _info_nce_start_kernel[(-(-B // config.rows) if rule.margin else 1,)](
        *rows,
        *(() if pair else (None, None)),
        scalars.temperature_at,
        scalars.hardness_at,
        scalars.margin_at,
        *out,
        B,
        D,
        *sides[0].query.stride(),
        *sides[0].positive.stride(),
        inverse,
        hardness,
        inverse + hardness,
        scalars.margin,
        SIDES=len(sides),
        WEIGHTED=rule.weighted,
        BLOCK_B=config.rows,
        BLOCK_D=config.cols,
        **config.options,
    )


@lru_cache(maxsize=64)
def _kept(inverse: float, hardness: float, device: str, stream: int) -> Tensor:
    """The numbers of a temperature and hardness, filled in and never copied from the host."""
    values = (inverse + hardness, hardness, 0.0, 0.0, inverse, 0.0, hardness, 0.0)
    with torch.inference_mode(False), torch.no_grad():
        numbers = torch.empty((_NUMBERS,), dtype=torch.float32, device=device)
        for place, value in enumerate(values):
            numbers[place].fill_(value)
    return numbers
