"""Top-k over the bank in blocks: each block's candidates are merged into the running top-k."""

import torch
from torch import Tensor

from sede_kernels.backends.torch._blocks import (
    blocks,
    dense_block,
    valid_block,
)
from sede_kernels.precision import full_precision
from sede_kernels.types import Bank, Match, Ranked, result_dtype


def hardest(query: Tensor, bank: Bank, query_ids: Tensor | None, k: int) -> Ranked:
    """See ``sede_kernels.ops.hardest``. Ties go to the lowest index: stable sorts, index order."""
    dtype = result_dtype(query)
    with full_precision(query.device.type):
        q = query.to(dtype)
        rows = q.shape[0]
        values = q.new_full((rows, k), -torch.inf)
        indices = torch.full((rows, k), -1, dtype=torch.int64, device=q.device)
        for start, stop in blocks(bank.rows.shape[0] if rows else 0, rows):
            part = bank.part(start, stop)
            block = dense_block(part, dtype)
            s = q @ block.T
            s = s.masked_fill(s.isnan(), -torch.inf)  # no candidate
            valid = valid_block(Match(query_ids), part.ids, s)
            if valid is not None:
                s = s.masked_fill(~valid, -torch.inf)
            position = torch.arange(start, stop, device=q.device).expand_as(s)
            position = position.masked_fill(s == -torch.inf, -1)
            merged = torch.cat([values, s], dim=1)
            merged_index = torch.cat([indices, position], dim=1)
            merged, order = merged.sort(dim=1, descending=True, stable=True)
            values = merged[:, :k].contiguous()
            indices = merged_index.gather(1, order[:, :k])
        return Ranked(values, indices)
