"""What a pass over the bank gives, and how the parts of a split bank become one."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sede_kernels.backends.triton._host import MAX_PARTS
from sede_kernels.backends.triton.kernels.combine import _bank_lse_combine_kernel

COMBINE = {"PARTS": MAX_PARTS, "BLOCK_S": 32, "BLOCK_D": 128}
COMBINE_OPTIONS = {"num_warps": 4, "num_stages": 2}


class Sums(NamedTuple):
    """fp32, number and index int64.

    With parts, each tensor has a leading (S,); before that a (2,) where two banks came.
    """

    lse: Tensor  # (E, B)
    moment: Tensor  # (E, B) or (0, B)
    acc: Tensor  # (A, B, D)
    number: Tensor  # (B,)
    top: Tensor  # (B,) or (0,)
    top_index: Tensor  # (B,) or (0,)


def empty_sums(
    query: Tensor, exponents: int, accumulators: int, *, moments: bool, hardest: bool
) -> Sums:
    """Memory for the results of a pass; ``query``: (B, D), or (2, B, D) for two banks."""
    *sides, rows, dim = query.shape
    kept = rows if hardest else 0
    f32, i64 = torch.float32, torch.int64
    return Sums(
        query.new_empty((*sides, exponents, rows), dtype=f32),
        query.new_empty((*sides, exponents if moments else 0, rows), dtype=f32),
        query.new_empty((*sides, accumulators, rows, dim), dtype=f32),
        query.new_empty((*sides, rows), dtype=i64),
        query.new_empty((*sides, kept), dtype=f32),
        query.new_empty((*sides, kept), dtype=i64),
    )


def no_sums(
    query: Tensor, exponents: int, accumulators: int, *, moments: bool, hardest: bool
) -> Sums:
    """The results of a pass over an empty bank."""
    found = empty_sums(query, exponents, accumulators, moments=moments, hardest=hardest)
    for value, fill in zip(found, (-torch.inf, 0, 0, 0, -torch.inf, -1), strict=True):
        value.fill_(fill)
    return found


def part_sums(
    query: Tensor,
    parts: int,
    exponents: int,
    accumulators: int,
    *,
    moments: bool,
    hardest: bool,
    index: torch.dtype = torch.int64,
) -> Sums:
    """Memory for the unnormalised sums of parts: ``lse`` holds totals, ``top`` the peaks."""
    *sides, rows, dim = query.shape
    lead, f32 = (*sides, parts), torch.float32
    return Sums(
        query.new_empty((*lead, exponents, rows), dtype=f32),
        query.new_empty((*lead, exponents if moments else 0, rows), dtype=f32),
        query.new_empty((*lead, accumulators, rows, dim), dtype=f32),
        query.new_empty((*lead, rows), dtype=index),
        query.new_empty((*lead, rows), dtype=f32),
        query.new_empty((*lead, rows if hardest else 0), dtype=index),
    )


def combine(
    query: Tensor, scales: Tensor, found: Sums, order: list[int], mass: Tensor | None = None
) -> Sums:
    """One result of all parts, summed in their order. ``order``: exponents of the accumulators.

    ``mass`` (S, A, B): what the row sums are divided by, instead of the totals; of one bank.
    """
    parts, exponents, rows = found.lse.shape[-3:]
    accumulators, dim = found.acc.shape[-3], query.shape[-1]
    moments, hardest = found.moment.shape[-2] > 0, found.top_index.shape[-1] > 0
    out = empty_sums(query, exponents, accumulators, moments=moments, hardest=hardest)
    slices = -(-dim // COMBINE["BLOCK_D"]) if accumulators else 1
    grid = (rows, slices, math.prod(query.shape[:-2]))
    _bank_lse_combine_kernel[grid](
        scales,
        found.top,
        found.lse,
        found.moment,
        mass,
        found.acc,
        found.number,
        found.top_index,
        *out,
        parts,
        rows,
        dim,
        E=exponents,
        A=accumulators,
        ACC_0=order[0],
        ACC_1=order[1],
        MOMENTS=moments,
        HARDEST=hardest,
        MASS=mass is not None,
        **COMBINE,
        **COMBINE_OPTIONS,
    )
    return out
