"""The core op in native code: one pass over the bank, see csrc/kernels/bank_lse.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends._pair import in_two_passes
from sede_kernels.backends.cpu import _native
from sede_kernels.types import Bank, Match, Sums, Want, result_dtype


def bank_lse(query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want) -> Sums:
    """See ``sede_kernels.ops.bank_lse``. Time 2 to 4 BKD FLOPs, extra memory 2 BD floats + 8 MB.

    ``unit_length`` changes nothing: the reference of the exponents seldom moves anyway.
    """
    dtype = result_dtype(query)
    rows, exponents, size = query.shape[0], scales.shape[0], bank.rows.shape[0]
    row_scale = _native.contiguous(bank.row_scale, torch.float32)
    scales = scales.to(dtype).contiguous()
    query_ids = _native.contiguous(match.ids, torch.int64)
    bank_ids = _native.contiguous(bank.ids, torch.int64)
    limit = _native.contiguous(match.limit, dtype)
    found = Sums.empty(query, exponents, want)
    _native.module().bank_lse(
        _native.matrix(query),
        _native.matrix(bank.rows),
        _native.address("row_scale", row_scale, torch.float32, size),
        _native.address("scales", scales, dtype, exponents),
        exponents,
        _native.address("query_ids", query_ids, torch.int64, rows),
        _native.address("bank_ids", bank_ids, torch.int64, size),
        _native.address("limit", limit, dtype, rows),
        _native.SELECT_CODES[match.select],
        list(want.accumulate),
        *(result.data_ptr() for result in found),
    )
    return found


bank_lse_pair = in_two_passes(bank_lse)
