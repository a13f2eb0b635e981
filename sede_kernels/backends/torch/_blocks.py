"""What the blocked ops share: dtypes, block sizes, dense bank blocks, valid slots."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of one block of similarities: 4 MB in fp32, which stays in a last-level cache.
_BLOCK_ELEMENTS = 1 << 20


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 when any input is fp64, else fp32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def blocks(total: int, rows: int) -> Iterator[tuple[int, int]]:
    """(start, stop) ranges over ``total`` bank rows so that rows x block stays small."""
    size = max(256, min(8192, _BLOCK_ELEMENTS // max(rows, 1)))
    for start in range(0, total, size):
        yield start, min(start + size, total)


def dense_block(
    bank: Tensor, row_scale: Tensor | None, filled: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """A bank block [J, D] in ``dtype``; empty slots are zeroed, for they may hold anything."""
    rows = bank.to(dtype)
    if row_scale is not None:
        rows = rows * row_scale.to(dtype).unsqueeze(1)
    return rows if filled is None else rows.masked_fill(~filled.unsqueeze(1), 0.0)


def valid_block(
    query_ids: Tensor | None, bank_ids: Tensor | None, select: str, s: Tensor
) -> Tensor | None:
    """Selectable slots of s (B, J), (B or 1, J) bool; None where every slot is one.

    Without ids on both sides nothing has an id of its own: no slot is a "positive".
    """
    if select == "positive" and (query_ids is None or bank_ids is None):
        return s.new_zeros((1, s.shape[1]), dtype=torch.bool)
    if bank_ids is None:
        return None
    filled = (bank_ids != -1).unsqueeze(0)
    if select == "keep" or query_ids is None:
        return filled
    same = query_ids.unsqueeze(1) == bank_ids.unsqueeze(0)
    return filled & (same if select == "positive" else ~same)
