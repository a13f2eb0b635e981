"""Hardest negatives: one pass over the bank for every ``RANKS`` of them."""

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch, tuning
from sede_kernels.backends.triton._chunks import STEP
from sede_kernels.backends.triton._host import (
    describable,
    descriptor,
    has_descriptors,
    on_device,
    operand_dtype,
    operand_kind,
    parts_of_bank,
    precision,
    triton_dtype,
)
from sede_kernels.backends.triton.kernels.hardest import (
    _hardest_combine_kernel,
    _hardest_fwd_kernel,
)

#: Negatives that one pass keeps in registers.
RANKS = 16
COMBINE = {"RANKS": RANKS, "BLOCK_B": 16}
COMBINE_OPTIONS = {"num_warps": 4, "num_stages": 1}


def hardest(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    *,
    k: int,
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.hardest``. Two launches for every ``RANKS`` ranks."""
    B, K = query.shape[0], bank.shape[0]
    if B == 0 or K == 0:
        return _nothing(query, k)
    kind = operand_kind(operand_dtype(query, bank))
    tensors = (query, bank, row_scale, query_ids, bank_ids)

    def run(config: launch.Config) -> tuple[Tensor, Tensor]:
        return _launch(*tensors, config, k=k)

    with on_device(query):
        return run(tuning.choose("hardest", kind, query.device, (B, K), run))


def _nothing(query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What is found in an empty bank, and memory for what is found in another."""
    shape = (query.shape[0], k)
    values = torch.full(shape, -torch.inf, dtype=torch.float32, device=query.device)
    return values, torch.full(shape, -1, dtype=torch.int64, device=query.device)


def _launch(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    config: launch.Config,
    *,
    k: int,
) -> tuple[Tensor, Tensor]:
    B, D = query.shape
    K = bank.shape[0]
    values, indices = _nothing(query, k)
    dtype = operand_dtype(query, bank)
    kind = operand_kind(dtype)
    architecture, cores = launch.device_class(query.device)
    desc = has_descriptors(architecture) and describable(query) and describable(bank)
    row_blocks, tiles = -(-B // config.rows), -(-K // config.cols)
    parts = parts_of_bank(row_blocks, tiles, cores)
    keys = torch.empty((parts, B, RANKS), dtype=torch.int64, device=query.device)
    below = torch.empty((B,), dtype=torch.int64, device=query.device)
    for first in range(0, min(k, K), RANKS):
        _hardest_fwd_kernel[(row_blocks, parts)](
            query,
            descriptor(query, config.rows, STEP[kind]) if desc else None,
            bank,
            descriptor(bank, config.cols, STEP[kind]) if desc else None,
            row_scale,
            query_ids,
            bank_ids,
            below,
            keys,
            B,
            K,
            D,
            *query.stride(),
            *bank.stride(),
            -(-tiles // parts),
            HAS_ROW_IDS=query_ids is not None,
            HAS_COL_IDS=bank_ids is not None,
            HAS_BOUND=first > 0,
            SCALED=row_scale is not None,
            DESC=desc,
            OPERAND=triton_dtype(dtype),
            PRECISION=precision(),
            RANKS=RANKS,
            BLOCK_B=config.rows,
            BLOCK_K=config.cols,
            BLOCK_D=STEP[kind],
            **config.options,
        )
        _hardest_combine_kernel[(-(-B // COMBINE["BLOCK_B"]),)](
            keys, below, values, indices, parts, B, k, first, **COMBINE, **COMBINE_OPTIONS
        )
    return values, indices
