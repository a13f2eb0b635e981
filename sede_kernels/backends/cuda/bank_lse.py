"""Weighted sums over the bank; csrc/cuda/launch/bank.cpp chooses the kernels."""

import torch
from torch import Tensor

from sede_kernels.backends.cuda import _native
from sede_kernels.types import Bank, Match, Sums, Want


def _side(
    call: _native.Call, query: Tensor, bank: Bank, match: Match, found: Sums, in_batch: bool
) -> tuple[object, ...]:
    rows, size = query.shape[0], bank.rows.shape[0]
    return (
        call.matrix(query),
        call.matrix(bank.rows),
        call.array("row_scale", bank.row_scale, torch.float32, size),
        (
            call.array("query_ids", match.ids, torch.int64, rows),
            call.array("bank_ids", bank.ids, torch.int64, size),
            call.array("limit", match.limit, torch.float32, rows),
            _native.SELECT_CODES[match.select],
            in_batch,
        ),
        [call.result(result) for result in found],
    )


def sums(
    query: Tensor,
    banks: tuple[Bank, ...],
    scales: Tensor,
    match: Match,
    want: Want,
    *,
    in_batch: bool = False,
) -> Sums:
    """The pass of query (B, D) over one bank, or of query (2, B, D) over two of one shape.

    A launch of tensor cores where the rows are 16-bit vectors of at most 512 columns, or of 256 in
    tf32; else one in fp32 for rows of at most 512 columns; wider ones take three launches a chunk.
    Then one launch for each bank.
    """
    exponents = scales.shape[0]
    if query.shape[-2] == 0 or banks[0].rows.shape[0] == 0:
        return Sums.none(query, exponents, want)
    found = Sums.empty(query, exponents, want)
    call = _native.Call(query.device)
    if len(banks) == 1:
        sides = [_side(call, query, banks[0], match, found, in_batch)]
    else:
        sides = [
            _side(call, query[n], its, match.of_side(n), Sums(*(r[n] for r in found)), in_batch)
            for n, its in enumerate(banks)
        ]
    call.run(
        _native.module().bank_lse,
        sides,
        call.array("scales", scales, torch.float32, exponents),
        want.order(exponents)[:exponents],
        len(want.accumulate),
        want.moments,
        want.hardest,
        want.unit_length,
        _native.tf32(),
    )
    return found


def bank_lse(query: Tensor, bank: Bank, scales: Tensor, match: Match, want: Want) -> Sums:
    """See ``sede_kernels.ops.bank_lse`` and ``sums``."""
    return sums(query, (bank,), scales, match, want)


def bank_lse_pair(
    query: Tensor, bank: Bank, other: Bank, scales: Tensor, match: Match, want: Want
) -> Sums:
    """See ``sede_kernels.ops.bank_lse_pair`` and ``sums``."""
    return sums(query, (bank, other), scales, match, want)
