"""In-batch negatives in blocks over the keys; the backward recomputes each block."""

import torch
from torch import Tensor

from sede_kernels.backends.torch._blocks import blocks, valid_block
from sede_kernels.backends.torch.bank_lse import RunningHardest, RunningSums
from sede_kernels.precision import full_precision
from sede_kernels.types import EMPTY, BatchSums, Match, SideGradients, Want, result_dtype


def _valid(s: Tensor, match: Match, start: int) -> Tensor:
    """(B, J) bool for keys start, start + 1, ...: never the row's own key."""
    rows, width = s.shape
    index = torch.arange(rows, device=s.device)
    valid = index.unsqueeze(1) != (index[:width] + start).unsqueeze(0)
    if match.ids is not None and match.select != "keep":
        key_ids = match.ids[start : start + width]
        chosen = valid_block(match, key_ids, s)
        # An id of -1 means "unknown" in a batch, not an empty slot: such a key stays a negative.
        if chosen is not None and match.select == "mask":
            chosen = chosen | (key_ids == EMPTY)
        valid = valid if chosen is None else valid & chosen
    elif match.select == "positive":
        valid = torch.zeros_like(valid)
    return valid if match.limit is None else valid & (s <= match.limit.to(s.dtype).unsqueeze(1))


def batch_lse_kept(query: Tensor, key: Tensor) -> int:
    """Elements of s that the forward keeps: none, the backward forms s again."""
    return 0


def batch_lse(
    query: Tensor, key: Tensor, scales: Tensor, match: Match, want: Want, keep: bool
) -> BatchSums:
    """See ``sede_kernels.ops.batch_lse``."""
    dtype = result_dtype(query)
    with full_precision(query.device.type):
        q, k = query.to(dtype), key.to(dtype)
        rows = q.shape[0]
        sums = RunningSums(scales.to(dtype), rows, 0, (), want.moments)
        top = RunningHardest(q, rows if want.hardest else 0)
        count = torch.zeros(rows, dtype=torch.int64, device=q.device)
        for start, stop in blocks(rows, rows):
            s = q @ k[start:stop].T
            valid = _valid(s, match, start)
            count += valid.sum(dim=1)
            if want.hardest:
                top.add(s, valid, start)
            sums.add(s, k[start:stop], valid)
        lse, moment, _ = sums.finish()
        return BatchSums(lse, moment, count, top.value, lse.new_empty((0,)))


def batch_lse_backward(
    grad_lse: Tensor,
    lse: Tensor,
    kept: Tensor,
    query: Tensor,
    key: Tensor,
    scales: Tensor,
    grad_scales: Tensor,
    match: Match,
) -> SideGradients:
    """See ``sede_kernels.ops.batch_lse``."""
    dtype = result_dtype(query)
    with full_precision(query.device.type):
        q, k = query.to(dtype), key.to(dtype)
        grad_query, grad_key = torch.zeros_like(q), torch.zeros_like(k)
        base = lse.masked_fill(lse == -torch.inf, 0.0)
        for start, stop in blocks(q.shape[0], q.shape[0]):
            s = q @ k[start:stop].T
            valid = _valid(s, match, start)
            weight = torch.zeros_like(s)
            for exponent in range(scales.shape[0]):
                p = (s * scales[exponent] - base[exponent].unsqueeze(1)).masked_fill_(
                    ~valid, -torch.inf
                )
                factor = grad_lse[exponent] * grad_scales[exponent]
                weight.addcmul_(p.exp_(), factor.unsqueeze(1))
            grad_query.addmm_(weight, k[start:stop])
            grad_key[start:stop] = weight.T @ q
        return SideGradients(grad_query, grad_key)
