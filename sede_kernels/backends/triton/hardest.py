"""Hardest negatives: one pass over the bank for every ``RANKS`` of them."""

import torch
from torch import Tensor

from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton._chunks import STEP
from sede_kernels.backends.triton._host import (
    descriptor,
    on_device,
    parts_of_bank,
)
from sede_kernels.backends.triton._problem import Problem
from sede_kernels.backends.triton.kernels.hardest import (
    _hardest_combine_kernel,
    _hardest_fwd_kernel,
)
from sede_kernels.types import Bank, Ranked

#: Negatives that one pass keeps in registers.
RANKS = 16
COMBINE = {"RANKS": RANKS, "BLOCK_B": 16}
COMBINE_OPTIONS = {"num_warps": 4, "num_stages": 1}


def hardest(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked:
    """See ``sede_kernels.ops.hardest``. Two launches for every ``RANKS`` ranks."""
    B, K = query.shape[0], bank.rows.shape[0]
    if B == 0 or K == 0:
        return _nothing(query, k)
    problem = Problem.of(query, bank.rows)

    def run(config: launch.Config) -> Ranked:
        return _launch(problem, query, bank, query_ids, k, config)

    with on_device(query):
        return run(problem.choose("hardest", problem.kind, (B, K), run))


def _nothing(query: Tensor, k: int) -> Ranked:
    """What is found in an empty bank, and memory for what is found in another."""
    found = Ranked.empty(query, k)
    found.values.fill_(-torch.inf)
    found.indices.fill_(-1)
    return found


def _launch(
    problem: Problem,
    query: Tensor,
    bank: Bank,
    query_ids: Tensor | None,
    k: int,
    config: launch.Config,
) -> Ranked:
    B, D = query.shape
    K = bank.rows.shape[0]
    found = _nothing(query, k)
    desc, step = problem.descriptors, STEP[problem.kind]
    row_blocks, tiles = -(-B // config.rows), -(-K // config.cols)
    parts = parts_of_bank(row_blocks, tiles, problem.cores)
    keys = torch.empty((parts, B, RANKS), dtype=torch.int64, device=query.device)
    below = torch.empty((B,), dtype=torch.int64, device=query.device)
    for first in range(0, min(k, K), RANKS):
        _hardest_fwd_kernel[(row_blocks, parts)](
            query,
            descriptor(query, config.rows, step) if desc else None,
            bank.rows,
            descriptor(bank.rows, config.cols, step) if desc else None,
            bank.row_scale,
            query_ids,
            bank.ids,
            below,
            keys,
            B,
            K,
            D,
            *query.stride(),
            *bank.rows.stride(),
            -(-tiles // parts),
            HAS_ROW_IDS=query_ids is not None,
            HAS_COL_IDS=bank.ids is not None,
            HAS_BOUND=first > 0,
            SCALED=bank.row_scale is not None,
            DESC=desc,
            **problem.operands,
            RANKS=RANKS,
            BLOCK_B=config.rows,
            BLOCK_K=config.cols,
            BLOCK_D=step,
            **config.options,
        )
        _hardest_combine_kernel[(-(-B // COMBINE["BLOCK_B"]),)](
            keys, below, *found, parts, B, k, first, **COMBINE, **COMBINE_OPTIONS
        )
    return found
