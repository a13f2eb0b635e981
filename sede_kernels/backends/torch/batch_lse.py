"""In-batch negatives in blocks over the keys; the backward recomputes each block."""

import torch
from torch import Tensor

from sede_kernels.backends.torch._blocks import blocks, compute_dtype, valid_block
from sede_kernels.backends.torch.bank_lse import RunningSums, RunningTop


def _valid(
    s: Tensor, query_ids: Tensor | None, limit: Tensor | None, select: str, start: int
) -> Tensor:
    """(B, J) bool for keys start, start + 1, ...: never the row's own key."""
    rows, width = s.shape
    index = torch.arange(rows, device=s.device)
    valid = index.unsqueeze(1) != (index[:width] + start).unsqueeze(0)
    if query_ids is not None and select != "keep":
        chosen = valid_block(query_ids, query_ids[start : start + width], select, s)
        # An id of -1 means "unknown" in a batch, not an empty slot: such a key stays a negative.
        if chosen is not None and select == "mask":
            chosen = chosen | (query_ids[start : start + width] == -1)
        valid = valid if chosen is None else valid & chosen
    elif select == "positive":
        valid = torch.zeros_like(valid)
    return valid if limit is None else valid & (s <= limit.to(s.dtype).unsqueeze(1))


def batch_lse_kept(query: Tensor, key: Tensor) -> int:
    """Elements of s that the forward keeps: none, the backward forms s again."""
    return 0


def batch_lse(
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    *,
    select: str,
    moments: bool,
    hardest: bool,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``sede_kernels.ops.batch_lse``."""
    dtype = compute_dtype(query)
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.to(dtype), key.to(dtype)
        rows = q.shape[0]
        sums = RunningSums(scales.to(dtype), rows, 0, (), moments)
        top = RunningTop(q, rows if hardest else 0)
        count = torch.zeros(rows, dtype=torch.int64, device=q.device)
        for start, stop in blocks(rows, rows):
            s = q @ k[start:stop].T
            valid = _valid(s, query_ids, limit, select, start)
            count += valid.sum(dim=1)
            if hardest:
                top.add(s, valid, start)
            sums.add(s, k[start:stop], valid)
        lse, moment, _ = sums.finish()
        return lse, moment, count, top.value


def batch_lse_backward(
    grad_lse: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    query_ids: Tensor | None,
    limit: Tensor | None,
    *,
    select: str,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """See ``sede_kernels.ops.batch_lse``."""
    dtype = compute_dtype(query)
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.to(dtype), key.to(dtype)
        grad_query, grad_key = torch.zeros_like(q), torch.zeros_like(k)
        base = lse.masked_fill(lse == -torch.inf, 0.0)
        for start, stop in blocks(q.shape[0], q.shape[0]):
            s = q @ k[start:stop].T
            valid = _valid(s, query_ids, limit, select, start)
            weight = torch.zeros_like(s)
            for exponent in range(scales.shape[0]):
                p = (s * scales[exponent] - base[exponent].unsqueeze(1)).masked_fill_(
                    ~valid, -torch.inf
                )
                factor = grad_lse[exponent] * grad_scales[exponent]
                weight.addcmul_(p.exp_(), factor.unsqueeze(1))
            grad_query.addmm_(weight, k[start:stop])
            grad_key[start:stop] = weight.T @ q
        return grad_query, grad_key
