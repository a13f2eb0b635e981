"""Variant B of ``bank_lse``: the bank in chunks, weights of a chunk in memory that fits the L2."""

import math
from itertools import accumulate

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._host import (
    MAX_PARTS,
    describable,
    descriptor,
    has_descriptors,
)
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton._sums import combine, part_sums
from sede_kernels.backends.triton.kernels.chunks import _chunk_rows_kernel, _chunk_weights_kernel
from sede_kernels.types import Bank, Match, Sums, Want

#: Bytes of a chunk's weights, of all accumulators together.
CHUNK_BYTES = 16 << 20
#: Columns of the steps that the first product takes over D.
STEP = {"half": 64, "tf32": 32, "ieee": 32}
#: Columns of O that one program of the second product holds.
SLICE = 128


def chunk_size(rows: int, bank: int, accumulators: int, itemsize: int, block: int) -> int:
    """Bank rows of a chunk, a multiple of the tile."""
    most = max(1, CHUNK_BYTES // (max(rows, 1) * accumulators * itemsize * block))
    return min(most, -(-bank // block)) * block


def chunk_sums(
    problem: Problem, query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want
) -> Sums:
    """The pass with one or two accumulators; three launches a chunk, two where no id can be -1."""
    kind = problem.kind
    # To widen 8-bit rows costs registers.
    key = "int8" if kind == "half" and bank.row_scale is not None else kind
    wide = "ieee/int8" if kind == "ieee" and bank.row_scale is not None else key
    sizes = (query.shape[0], *bank.rows.shape)

    def run(first: launch.Config, second: launch.Config) -> Sums:
        return _run(problem, query, bank, scales, match, want, first, second)

    usual = problem.config("chunk_rows", wide)
    first = problem.choose("chunk_weights", key, sizes, lambda config: run(config, usual))
    second = problem.choose("chunk_rows", wide, sizes, lambda config: run(first, config))
    return run(first, second)


def _of_no_rows(
    query: Tensor, parts: int, exponents: int, want: Want, own_mass: bool
) -> tuple[Sums, Tensor | None]:
    """Sums of parts and masses (parts, A, B) before the first chunk, in as few fills as there are
    values: zeros of any dtype lie in one piece of memory, each array at a multiple of 16 bytes.
    """
    rows, dim = query.shape
    accumulators = len(want.accumulate)
    shapes = [
        (parts, exponents, rows),
        (parts, exponents if want.moments else 0, rows),
        (parts, accumulators, rows, dim),
        (parts, accumulators if own_mass else 0, rows),
        (parts, rows, 2),  # the counts, in halves
    ]
    sizes = [-(-math.prod(shape) // 4) * 4 for shape in shapes]
    whole = query.new_zeros((sum(sizes),), dtype=torch.float32)
    starts = (end - size for end, size in zip(accumulate(sizes), sizes, strict=True))
    lse, moment, acc, mass, counts = (
        whole[start : start + math.prod(shape)].view(shape)
        for start, shape in zip(starts, shapes, strict=True)
    )
    peak = query.new_full((parts, rows), -torch.inf, dtype=torch.float32)
    index = query.new_empty((parts, 0), dtype=torch.int64)
    if want.hardest:
        index = query.new_full((parts, rows), -1, dtype=torch.int64)
    state = Sums(lse, moment, acc, counts.view(torch.int64).squeeze(2), peak, index)
    return state, mass if own_mass else None


def _run(
    problem: Problem,
    query: Tensor,
    bank: Bank,
    scales: Tensor,
    match: Match,
    want: Want,
    first: launch.Config,
    second: launch.Config,
) -> Sums:
    B, D = query.shape
    K, E, A = bank.rows.shape[0], scales.shape[0], len(want.accumulate)
    dtype, kind = problem.dtype, problem.kind
    chunk = chunk_size(B, K, A, dtype.itemsize, first.cols)
    desc = problem.descriptors
    weight = query.new_empty((A, B, chunk), dtype=dtype)
    flat = weight.view(A * B, chunk)
    weight_desc = has_descriptors(problem.architecture) and describable(flat)
    tiles = chunk // first.cols
    programs = -(-B // second.rows) * -(-D // SLICE) * A
    parts = max(1, min(MAX_PARTS, tiles, problem.cores // programs))
    of_tiles = part_sums(query, tiles, E, want._replace(accumulate=()), index=torch.int32)
    # Half weights are rounded; those of an 8-bit row carry its scale, so the total serves them.
    own_mass = kind == "half" and bank.row_scale is None
    tile_mass = query.new_empty((tiles, A, B), dtype=torch.float32) if own_mass else None
    state, mass = _of_no_rows(query, parts, E, want, own_mass)
    peaks = state.hardest, torch.empty_like(state.hardest)
    # An 8-bit row is left out by its scale.
    passes = ["none"] if bank.ids is None or bank.row_scale is not None else ["without", "with"]
    order = want.order(E)
    operands = problem.operands
    for number, start in enumerate(range(0, K, chunk)):
        here = -(-min(chunk, K - start) // first.cols)
        _chunk_weights_kernel[(-(-B // first.rows), here)](
            query,
            descriptor(query, first.rows, STEP[kind]) if desc else None,
            bank.rows,
            descriptor(bank.rows, first.cols, STEP[kind]) if desc else None,
            bank.row_scale,
            scales,
            match.ids,
            bank.ids,
            match.limit,
            weight,
            of_tiles.hardest,
            of_tiles.lse,
            of_tiles.moment,
            tile_mass,
            of_tiles.negatives,
            of_tiles.hardest_index,
            start,
            B,
            K,
            D,
            chunk,
            *query.stride(),
            *bank.rows.stride(),
            E=E,
            A=A,
            SCALE_0=order[0],
            SCALE_1=order[1],
            SCALE_2=order[2],
            SELECT=match.select,
            HAS_ROW_IDS=match.ids is not None,
            HAS_COL_IDS=bank.ids is not None,
            HAS_LIMIT=match.limit is not None,
            MOMENTS=want.moments,
            HARDEST=want.hardest,
            MASS=own_mass,
            SCALED=bank.row_scale is not None,
            DESC=desc,
            BLOCK_B=first.rows,
            BLOCK_K=first.cols,
            BLOCK_D=STEP[kind],
            **operands,
            **first.options,
        )
        for holes in passes:
            _chunk_rows_kernel[(-(-B // second.rows), A * -(-D // SLICE), parts)](
                weight,
                descriptor(flat, second.rows, first.cols) if weight_desc else None,
                bank.rows,
                descriptor(bank.rows, first.cols, SLICE) if desc else None,
                scales,
                bank.ids,
                of_tiles.hardest,
                of_tiles.lse,
                of_tiles.moment,
                tile_mass,
                of_tiles.negatives,
                of_tiles.hardest_index,
                peaks[number % 2],
                peaks[1 - number % 2],
                state.lse,
                state.moment,
                mass,
                state.acc,
                state.negatives,
                state.hardest_index,
                start,
                here,
                -(-here // parts),
                B,
                K,
                D,
                chunk,
                *bank.rows.stride(),
                E=E,
                A=A,
                SCALE_0=order[0],
                SCALE_1=order[1],
                MOMENTS=want.moments,
                HARDEST=want.hardest,
                MASS=own_mass,
                HOLES=holes,
                DESC=desc,
                WEIGHT_DESC=weight_desc,
                BLOCK_B=second.rows,
                BLOCK_K=first.cols,
                BLOCK_D=SLICE,
                **operands,
                **second.options,
            )
    chunks = -(-K // chunk)
    return combine(query, scales, state._replace(hardest=peaks[chunks % 2]), want, order, mass)
