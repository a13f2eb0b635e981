"""Variant B of ``bank_lse``: the bank in chunks, weights of a chunk in memory that fits the L2."""

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch, tuning
from sede_kernels.backends.triton._host import (
    MAX_PARTS,
    describable,
    descriptor,
    has_descriptors,
    operand_dtype,
    operand_kind,
    precision,
    triton_dtype,
)
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


def chunk_sums(query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want) -> Sums:
    """The pass with one or two accumulators; three launches a chunk, two where no id can be -1."""
    dtype = operand_dtype(query, bank.rows)
    kind = operand_kind(dtype)
    architecture, _ = launch.device_class(query.device)
    # To widen 8-bit rows costs registers.
    key = "int8" if kind == "half" and bank.row_scale is not None else kind
    wide = "ieee/int8" if kind == "ieee" and bank.row_scale is not None else key
    sizes = (query.shape[0], *bank.rows.shape)

    def run(first: launch.Config, second: launch.Config) -> Sums:
        return _run(query, bank, scales, match, want, first, second)

    usual = launch.candidates("chunk_rows", wide, architecture)[0]
    first = tuning.choose(
        "chunk_weights", key, query.device, sizes, lambda config: run(config, usual)
    )
    second = tuning.choose(
        "chunk_rows", wide, query.device, sizes, lambda config: run(first, config)
    )
    return run(first, second)


def _run(
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
    dtype = operand_dtype(query, bank.rows)
    kind = operand_kind(dtype)
    architecture, cores = launch.device_class(query.device)
    chunk = chunk_size(B, K, A, dtype.itemsize, first.cols)
    desc = has_descriptors(architecture) and describable(query) and describable(bank.rows)
    weight = query.new_empty((A, B, chunk), dtype=dtype)
    flat = weight.view(A * B, chunk)
    weight_desc = has_descriptors(architecture) and describable(flat)
    tiles = chunk // first.cols
    programs = -(-B // second.rows) * -(-D // SLICE) * A
    parts = max(1, min(MAX_PARTS, tiles, cores // programs))
    of_tiles = part_sums(query, tiles, E, want._replace(accumulate=()), index=torch.int32)
    state = part_sums(query, parts, E, want)
    for value, fill in zip(state, (0, 0, 0, 0, -torch.inf, -1), strict=True):
        value.fill_(fill)
    # Half weights are rounded; those of an 8-bit row carry its scale, so the total serves them.
    own_mass = kind == "half" and bank.row_scale is None
    tile_mass = query.new_empty((tiles, A, B), dtype=torch.float32) if own_mass else None
    mass = query.new_zeros((parts, A, B), dtype=torch.float32) if own_mass else None
    peaks = state.hardest, torch.empty_like(state.hardest)
    # An 8-bit row is left out by its scale.
    passes = ["none"] if bank.ids is None or bank.row_scale is not None else ["without", "with"]
    order = want.order(E)
    operand = {"OPERAND": triton_dtype(dtype), "PRECISION": precision()}
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
            **operand,
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
                **operand,
                **second.options,
            )
    chunks = -(-K // chunk)
    return combine(query, scales, state._replace(hardest=peaks[chunks % 2]), want, order, mass)
