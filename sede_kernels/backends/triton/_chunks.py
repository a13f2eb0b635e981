"""Variant B of ``bank_lse``: the bank in chunks, weights of a chunk in memory that fits the L2."""

from typing import Any

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
from sede_kernels.backends.triton._sums import Sums, combine, part_sums
from sede_kernels.backends.triton.kernels.chunks import _chunk_rows_kernel, _chunk_weights_kernel

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
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    bank_ids: Tensor | None,
    scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    *,
    select: str,
    accumulate: tuple[int, ...],
    moments: bool,
    hardest: bool,
) -> Sums:
    """The pass with one or two accumulators; three launches a chunk, two where no id can be -1."""
    dtype = operand_dtype(query, bank)
    kind = operand_kind(dtype)
    architecture, _ = launch.device_class(query.device)
    # To widen 8-bit rows costs registers.
    key = "int8" if kind == "half" and row_scale is not None else kind
    wide = "ieee/int8" if kind == "ieee" and row_scale is not None else key
    sizes = (query.shape[0], *bank.shape)

    def run(first: launch.Config, second: launch.Config) -> Sums:
        return _run(
            query,
            bank,
            row_scale,
            bank_ids,
            scales,
            query_ids,
            limit,
            first,
            second,
            select=select,
            accumulate=accumulate,
            moments=moments,
            hardest=hardest,
        )

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
    bank: Tensor,
    row_scale: Tensor | None,
    bank_ids: Tensor | None,
    scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    first: launch.Config,
    second: launch.Config,
    *,
    select: str,
    accumulate: tuple[int, ...],
    moments: bool,
    hardest: bool,
) -> Sums:
    B, D = query.shape
    K, E, A = bank.shape[0], scales.shape[0], len(accumulate)
    dtype = operand_dtype(query, bank)
    kind = operand_kind(dtype)
    architecture, cores = launch.device_class(query.device)
    chunk = chunk_size(B, K, A, dtype.itemsize, first.cols)
    desc = has_descriptors(architecture) and describable(query) and describable(bank)
    weight = query.new_empty((A, B, chunk), dtype=dtype)
    flat = weight.view(A * B, chunk)
    weight_desc = has_descriptors(architecture) and describable(flat)
    tiles = chunk // first.cols
    programs = -(-B // second.rows) * -(-D // SLICE) * A
    parts = max(1, min(MAX_PARTS, tiles, cores // programs))
    options: dict[str, Any] = {"moments": moments, "hardest": hardest}
    of_tiles = part_sums(query, tiles, E, 0, index=torch.int32, **options)
    state = part_sums(query, parts, E, A, **options)
    for value, fill in zip(state, (0, 0, 0, 0, -torch.inf, -1), strict=True):
        value.fill_(fill)
    # Half weights are rounded; those of an 8-bit row carry its scale, so the total serves them.
    own_mass = kind == "half" and row_scale is None
    tile_mass = query.new_empty((tiles, A, B), dtype=torch.float32) if own_mass else None
    mass = query.new_zeros((parts, A, B), dtype=torch.float32) if own_mass else None
    peaks = state.top, torch.empty_like(state.top)
    # An 8-bit row is left out by its scale.
    passes = ["none"] if bank_ids is None or row_scale is not None else ["without", "with"]
    order = [*accumulate, *(e for e in range(E) if e not in accumulate), 0, 0]
    operand = {"OPERAND": triton_dtype(dtype), "PRECISION": precision()}
    mask = (query_ids, bank_ids, limit)
    for number, start in enumerate(range(0, K, chunk)):
        here = -(-min(chunk, K - start) // first.cols)
        _chunk_weights_kernel[(-(-B // first.rows), here)](
            query,
            descriptor(query, first.rows, STEP[kind]) if desc else None,
            bank,
            descriptor(bank, first.cols, STEP[kind]) if desc else None,
            row_scale,
            scales,
            *mask,
            weight,
            of_tiles.top,
            of_tiles.lse,
            of_tiles.moment,
            tile_mass,
            of_tiles.number,
            of_tiles.top_index,
            start,
            B,
            K,
            D,
            chunk,
            *query.stride(),
            *bank.stride(),
            E=E,
            A=A,
            SCALE_0=order[0],
            SCALE_1=order[1],
            SCALE_2=order[2],
            SELECT=select,
            HAS_ROW_IDS=query_ids is not None,
            HAS_COL_IDS=bank_ids is not None,
            HAS_LIMIT=limit is not None,
            MOMENTS=moments,
            HARDEST=hardest,
            MASS=own_mass,
            SCALED=row_scale is not None,
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
                bank,
                descriptor(bank, first.cols, SLICE) if desc else None,
                scales,
                bank_ids,
                of_tiles.top,
                of_tiles.lse,
                of_tiles.moment,
                tile_mass,
                of_tiles.number,
                of_tiles.top_index,
                peaks[number % 2],
                peaks[1 - number % 2],
                state.lse,
                state.moment,
                mass,
                state.acc,
                state.number,
                state.top_index,
                start,
                here,
                -(-here // parts),
                B,
                K,
                D,
                chunk,
                *bank.stride(),
                E=E,
                A=A,
                SCALE_0=order[0],
                SCALE_1=order[1],
                MOMENTS=moments,
                HARDEST=hardest,
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
    return combine(query, scales, state._replace(top=peaks[chunks % 2]), order, mass)
