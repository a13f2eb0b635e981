"""In-batch negatives in native code, gradients to both sides: csrc/kernels/batch_lse.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native

_KEPT_ELEMENTS = 1 << 20  # of s, at most: 4 MB in fp32, within a last-level cache
_PANEL = 64  # a multiple of every instruction set's panel of queries


def batch_lse_kept(query: Tensor, key: Tensor) -> int:
    """Elements of s that the forward keeps for a backward; 0: too many, or products in bf16."""
    size = -(-query.shape[0] // _PANEL) * _PANEL * key.shape[0]
    return size if size <= _KEPT_ELEMENTS and query.dtype in (torch.float32, torch.float64) else 0


def _check_kept(kept: Tensor, query: Tensor, key: Tensor) -> None:
    if kept.numel():
        _native.address("kept", kept, _native.compute_dtype(query), batch_lse_kept(query, key))


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
    """See ``sede_kernels.ops.batch_lse``. Time 2 BBD FLOPs."""
    dtype = _native.compute_dtype(query)
    rows, exponents = query.shape[0], scales.shape[0]
    _check_kept(kept, query, key)
    scales = scales.to(dtype).contiguous()
    query_ids = _native.contiguous(query_ids, torch.int64)
    limit = _native.contiguous(limit, dtype)
    lse = _native.empty(exponents, rows, dtype=dtype)
    moment = _native.empty(exponents if moments else 0, rows, dtype=dtype)
    count = _native.empty(rows, dtype=torch.int64)
    top = _native.empty(rows if hardest else 0, dtype=dtype)
    top_index = _native.empty(rows if hardest else 0, dtype=torch.int64)
    _native.module().batch_lse(
        _native.matrix(query),
        _native.matrix(key),
        _native.address("scales", scales, dtype, exponents),
        exponents,
        _native.address("query_ids", query_ids, torch.int64, rows),
        _native.address("limit", limit, dtype, rows),
        _native.SELECT_CODES[select],
        kept.data_ptr(),
        lse.data_ptr(),
        moment.data_ptr(),
        count.data_ptr(),
        top.data_ptr(),
        top_index.data_ptr(),
    )
    return lse, moment, count, top


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
    """See ``sede_kernels.ops.batch_lse``. Time 4 BBD FLOPs, 6 where s was not kept."""
    dtype = _native.compute_dtype(query)
    rows, exponents = query.shape[0], scales.shape[0]
    _check_kept(kept, query, key)
    scales = scales.to(dtype).contiguous()
    lse = lse.to(dtype).contiguous()
    grad = (grad_lse.to(dtype) * grad_scales.to(dtype).unsqueeze(1)).contiguous()
    query_ids = _native.contiguous(query_ids, torch.int64)
    limit = _native.contiguous(limit, dtype)
    grad_query = _native.empty(*query.shape, dtype=dtype)
    grad_key = _native.empty(*key.shape, dtype=dtype)
    _native.module().batch_lse_backward(
        _native.matrix(query),
        _native.matrix(key),
        _native.address("scales", scales, dtype, exponents),
        exponents,
        _native.address("query_ids", query_ids, torch.int64, rows),
        _native.address("limit", limit, dtype, rows),
        _native.SELECT_CODES[select],
        kept.data_ptr(),
        _native.address("lse", lse, dtype, exponents * rows),
        _native.address("grad_lse", grad, dtype, exponents * rows),
        grad_query.data_ptr(),
        grad_key.data_ptr(),
    )
    return grad_query, grad_key
