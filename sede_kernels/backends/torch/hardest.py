"""Top-k over the bank in blocks: each block's candidates are merged into the running top-k."""

import torch
from torch import Tensor

from sede_kernels.backends.torch._blocks import (
    blocks,
    compute_dtype,
    dense_block,
    valid_block,
)


def hardest(
    query: Tensor,
    bank: Tensor,
    row_scale: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
    *,
    k: int,
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.hardest``. Ties go to the lowest index: stable sorts, index order."""
    dtype = compute_dtype(query)
    with torch.autocast(query.device.type, enabled=False):
        q = query.to(dtype)
        rows = q.shape[0]
        values = q.new_full((rows, k), -torch.inf)
        indices = torch.full((rows, k), -1, dtype=torch.int64, device=q.device)
        for start, stop in blocks(bank.shape[0] if rows else 0, rows):
            ids = None if bank_ids is None else bank_ids[start:stop]
            block = dense_block(
                bank[start:stop],
                None if row_scale is None else row_scale[start:stop],
                None if ids is None else ids != -1,
                dtype,
            )
            s = q @ block.T
            s = s.masked_fill(s.isnan(), -torch.inf)  # no candidate
            valid = valid_block(query_ids, ids, "mask", s)
            if valid is not None:
                s = s.masked_fill(~valid, -torch.inf)
            position = torch.arange(start, stop, device=q.device).expand_as(s)
            position = position.masked_fill(s == -torch.inf, -1)
            merged = torch.cat([values, s], dim=1)
            merged_index = torch.cat([indices, position], dim=1)
            merged, order = merged.sort(dim=1, descending=True, stable=True)
            values = merged[:, :k].contiguous()
            indices = merged_index.gather(1, order[:, :k])
        return values, indices
