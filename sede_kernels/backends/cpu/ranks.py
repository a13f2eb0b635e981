"""Similarities of two sets of rows in native code, see csrc/kernels/ranks.cpp."""

import torch
from torch import Tensor

from sede_kernels.backends.cpu import _native


def block_scores(rows: Tensor, columns: Tensor) -> Tensor:
    """(N, M) similarities of rows (N, D) and (M, D) in fp32, or fp64 where one side is fp64.

    Equal rows have equal similarities to the bit, in a block of any size. Time 2NMD FLOPs.
    """
    scores = _native.empty(rows.shape[0], columns.shape[0], dtype=_dtype(rows, columns))
    if not _native.module().block_scores(rows, columns, scores):
        raise _refusal("block_scores")
    return scores


def count_below(
    rows: Tensor,
    columns: Tensor,
    bars: tuple[Tensor, Tensor],
    below: tuple[Tensor, Tensor],
) -> None:
    """Adds to each row, and to each column, how many of its similarities lie below its bar.

    Args:
        rows: (N, D), float.
        columns: (M, D), float.
        bars: (N,) and (M,), contiguous, of the dtype of ``block_scores``.
        below: (N,) and (M,) int64, contiguous; added to. NaN is not below.

    Cost:
        Time 2NMD FLOPs, one pass for both sides. Nothing of N x M is in memory.
    """
    if not _native.module().count_below(rows, columns, *bars, *below):
        raise _refusal("count_below")


def _dtype(rows: Tensor, columns: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (rows.dtype, columns.dtype) else torch.float32


def _refusal(name: str) -> ValueError:
    return ValueError(
        f"cpu backend: {name} takes floating rows (N, D) and (M, D), dense and on the CPU; "
        f"something else came."
    )
