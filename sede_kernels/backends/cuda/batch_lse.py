"""In-batch negatives: the pass of ``bank_lse`` over the other keys, and its backward."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native
from sede_kernels.backends.cuda.bank_lse import sums
from sede_kernels.types import Bank, BatchSums, Match, SideGradients, Want


def batch_lse_kept(query: Tensor, key: Tensor) -> int:
    """Elements of s that the forward keeps: none, the backward forms s again."""
    return 0


def batch_lse(
    query: Tensor, key: Tensor, scales: Tensor, match: Match, want: Want, keep: bool
) -> BatchSums:
    """See ``sede_kernels.ops.batch_lse``."""
    found = sums(query, (Bank(key, ids=match.ids),), scales, match, want, in_batch=True)
    nothing = found.lse.new_empty((0,))
    return BatchSums(found.lse, found.moment, found.negatives, found.hardest, nothing)


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
    """See ``sede_kernels.ops.batch_lse``. Two launches a chunk of keys."""
    rows, exponents = query.shape[0], scales.shape[0]
    found = SideGradients(
        torch.empty(query.shape, dtype=torch.float32, device=query.device),
        torch.zeros(key.shape, dtype=torch.float32, device=key.device),
    )
    if found[0].numel() == 0:
        return found
    call = _native.Call(query.device)
    call.run(
        _native.module().batch_lse_backward,
        call.matrix(query),
        call.matrix(key),
        (
            call.array("query_ids", match.ids, torch.int64, rows),
            call.array("query_ids", match.ids, torch.int64, rows),
            call.array("limit", match.limit, torch.float32, rows),
            _native.SELECT_CODES[match.select],
            True,
        ),
        call.array("scales", scales, torch.float32, exponents),
        exponents,
        call.array("lse", lse, torch.float32, exponents * rows),
        call.array("grad", grad_lse * grad_scales.unsqueeze(1), torch.float32, exponents * rows),
        *(call.result(result) for result in found),
    )
    return found
