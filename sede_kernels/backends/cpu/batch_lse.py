"""In-batch negatives in native code, gradients to both sides: csrc/kernels/batch_lse.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native
from sede_kernels.types import BatchSums, Match, SideGradients, Want, result_dtype

_KEPT_ELEMENTS = 1 << 22  # of s, at most: 16 MB in fp32, 2,048 queries
_PANEL = 64  # a multiple of every instruction set's panel of queries


def batch_lse_kept(query: Tensor, key: Tensor) -> int:
    """Elements of s that the forward keeps for a backward; 0: too many, or products in bf16."""
    size = -(-query.shape[0] // _PANEL) * _PANEL * key.shape[0]
    return size if size <= _KEPT_ELEMENTS and query.dtype in (torch.float32, torch.float64) else 0


def batch_lse(
    query: Tensor, key: Tensor, scales: Tensor, match: Match, want: Want, keep: bool
) -> BatchSums:
    """See ``sede_kernels.ops.batch_lse``. Time 2 BBD FLOPs."""
    dtype = result_dtype(query)
    rows, exponents = query.shape[0], scales.shape[0]
    scales = scales.to(dtype).contiguous()
    query_ids = _native.contiguous(match.ids, torch.int64)
    limit = _native.contiguous(match.limit, dtype)
    found = BatchSums.empty(query, exponents, want, batch_lse_kept(query, key) if keep else 0)
    index = _native.empty(found.hardest.shape[0], dtype=torch.int64)
    _native.module().batch_lse(
        _native.matrix(query),
        _native.matrix(key),
        _native.address("scales", scales, dtype, exponents),
        exponents,
        _native.address("query_ids", query_ids, torch.int64, rows),
        _native.address("limit", limit, dtype, rows),
        _native.SELECT_CODES[match.select],
        found.kept.data_ptr(),
        found.lse.data_ptr(),
        found.moment.data_ptr(),
        found.negatives.data_ptr(),
        found.hardest.data_ptr(),
        index.data_ptr(),
    )
    return found


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
    """See ``sede_kernels.ops.batch_lse``. Time 4 BBD FLOPs, 6 where s was not kept."""
    dtype = result_dtype(query)
    rows, exponents = query.shape[0], scales.shape[0]
    if kept.numel():
        _native.address("kept", kept, dtype, batch_lse_kept(query, key))
    scales = scales.to(dtype).contiguous()
    lse = lse.to(dtype).contiguous()
    grad = (grad_lse.to(dtype) * grad_scales.to(dtype).unsqueeze(1)).contiguous()
    query_ids = _native.contiguous(match.ids, torch.int64)
    limit = _native.contiguous(match.limit, dtype)
    grad_query = _native.empty(*query.shape, dtype=dtype)
    grad_key = _native.empty(*key.shape, dtype=dtype)
    _native.module().batch_lse_backward(
        _native.matrix(query),
        _native.matrix(key),
        _native.address("scales", scales, dtype, exponents),
        exponents,
        _native.address("query_ids", query_ids, torch.int64, rows),
        _native.address("limit", limit, dtype, rows),
        _native.SELECT_CODES[match.select],
        kept.data_ptr(),
        _native.address("lse", lse, dtype, exponents * rows),
        _native.address("grad_lse", grad, dtype, exponents * rows),
        grad_query.data_ptr(),
        grad_key.data_ptr(),
    )
    return SideGradients(grad_query, grad_key)
