"""How the parts of a split bank become one."""

import math

import torch
from torch import Tensor

from sede_kernels.backends.triton._host import MAX_PARTS
from sede_kernels.backends.triton.kernels.combine import _bank_lse_combine_kernel
from sede_kernels.types import Sums, Want

COMBINE = {"PARTS": MAX_PARTS, "BLOCK_S": 32, "BLOCK_D": 128}
COMBINE_OPTIONS = {"num_warps": 4, "num_stages": 2}


def part_sums(
    query: Tensor, parts: int, exponents: int, want: Want, *, index: torch.dtype = torch.int64
) -> Sums:
    """Memory for the unnormalised sums of parts, a leading (S,) before each.

    ``lse`` holds totals and ``hardest`` the peaks, which are always kept.
    """
    *sides, rows, dim = query.shape
    lead, f32 = (*sides, parts), torch.float32
    return Sums(
        query.new_empty((*lead, exponents, rows), dtype=f32),
        query.new_empty((*lead, exponents if want.moments else 0, rows), dtype=f32),
        query.new_empty((*lead, len(want.accumulate), rows, dim), dtype=f32),
        query.new_empty((*lead, rows), dtype=index),
        query.new_empty((*lead, rows), dtype=f32),
        query.new_empty((*lead, rows if want.hardest else 0), dtype=index),
    )


def combine(
    query: Tensor,
    scales: Tensor,
    found: Sums,
    want: Want,
    order: list[int],
    mass: Tensor | None = None,
) -> Sums:
    """One result of all parts, summed in their order. ``order``: exponents of the accumulators.

    ``mass`` (S, A, B): what the row sums are divided by, instead of the totals; of one bank.
    """
    parts, exponents, rows = found.lse.shape[-3:]
    accumulators, dim = len(want.accumulate), query.shape[-1]
    out = Sums.empty(query, exponents, want)
    slices = -(-dim // COMBINE["BLOCK_D"]) if accumulators else 1
    grid = (rows, slices, math.prod(query.shape[:-2]))
    _bank_lse_combine_kernel[grid](
        scales,
        found.hardest,
        found.lse,
        found.moment,
        mass,
        found.acc,
        found.negatives,
        found.hardest_index,
        *out,
        parts,
        rows,
        dim,
        E=exponents,
        A=accumulators,
        ACC_0=order[0],
        ACC_1=order[1],
        MOMENTS=want.moments,
        HARDEST=want.hardest,
        MASS=mass is not None,
        **COMBINE,
        **COMBINE_OPTIONS,
    )
    return out
